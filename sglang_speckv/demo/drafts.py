"""The demo's drafts: ``examples/models/<name>`` of a clone, or of the package that is made of that
folder; completed with what they share with the target.

A committed draft may leave out tensors that are the target's own (its embedding, rows of its
output matrix). Its ``assemble.json`` then says where they come from::

    {"lm_head.weight": {"from": "model.embed_tokens.weight", "rows": "t2d"}}

``rows`` is "all", or the name of a boolean tensor of the draft that selects rows.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from sglang_speckv.config import ConfigError
from sglang_speckv.demo.target import cache_dir, cached, checked_model_dir
from sglang_speckv.files import BAD_JSON

DEMO_DRAFTS = ("eagle3", "standalone")
_MODELS = Path(__file__).resolve().parents[2] / "examples" / "models"
_PACKAGE = "sglang_speckv_drafts"
_RECIPE = "assemble.json"


class TensorSource(msgspec.Struct, rename={"tensor": "from"}):
    """One entry of ``assemble.json``."""

    tensor: str
    rows: str = "all"


def _folder() -> Path:
    """Where the demo's drafts are, or would be."""
    found = None if _MODELS.is_dir() else importlib.util.find_spec(_PACKAGE)
    return _MODELS if found is None or found.origin is None else Path(found.origin).parent


def resolve_draft(name_or_path: str, target: Path | str) -> Path:
    """A complete draft checkpoint for ``target``: a demo draft by name, or any directory."""
    path = Path(name_or_path).expanduser()
    source = checked_model_dir(_folder() / path if name_or_path in DEMO_DRAFTS else path)
    return assemble(source, target) if (source / _RECIPE).exists() else source


def check_demo_drafts(names: Sequence[str]) -> None:
    """Raise :class:`ConfigError` where a demo draft among ``names`` is not on this machine. Without
    names one of them is enough."""
    asked = [name for name in names or DEMO_DRAFTS if name in DEMO_DRAFTS]
    absent = [name for name in asked if not (_folder() / name / "config.json").is_file()]
    if absent and (names or absent == asked):
        raise ConfigError(
            f"the demo drafts ({', '.join(absent)}) are a package of their own; install it from a "
            "clone of the repository with pip install CLONE/examples/models, or name your own with "
            "--draft PATH"
        )


def algorithm_of(draft: Path) -> str:
    """The speculative algorithm that this checkpoint is made for, read from its architecture."""
    try:
        config = msgspec.json.decode((draft / "config.json").read_bytes())
        architecture = str(config.get("architectures", [""])[0])
    except (OSError, *BAD_JSON, AttributeError, LookupError, TypeError):
        raise ConfigError(f"{draft / 'config.json'} is not a readable model config") from None
    if "Eagle3" in architecture:
        return "EAGLE3"
    return "EAGLE" if "Eagle" in architecture else "STANDALONE"


def assemble(source: Path, target: Path | str) -> Path:
    """The checkpoint of ``source`` with the target's tensors filled in, in the cache."""
    weights = Path(target) / "model.safetensors"
    if not weights.is_file():
        raise ConfigError(
            f"the draft {source} takes tensors from its target, but {weights} does not exist; "
            "give a target directory with one model.safetensors, or another --draft"
        )
    recipe = _read_recipe(source / _RECIPE)
    identity = msgspec.json.encode([_identity(source), _identity(weights.parent)])
    key = hashlib.sha256(identity).hexdigest()[:12]

    def build(folder: Path) -> None:
        from safetensors.torch import save_file

        left_out = shutil.ignore_patterns(_RECIPE, "*.safetensors")
        shutil.copytree(source, folder, ignore=left_out)
        tensors = _completed(source, weights, recipe)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return cached(cache_dir() / "drafts" / key / source.name, build)


def _completed(
    source: Path, target_weights: Path, recipe: dict[str, TensorSource]
) -> dict[str, Any]:
    """The tensors of ``source`` and those that ``recipe`` takes from the target."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    tensors = load_file(source / "model.safetensors")
    with safe_open(target_weights, "pt") as target:
        for name, entry in recipe.items():
            try:
                rows = slice(None) if entry.rows == "all" else tensors[entry.rows].bool()
                tensors[name] = target.get_tensor(entry.tensor)[rows].contiguous()
            except (SafetensorError, KeyError, IndexError) as error:
                raise ConfigError(
                    f"{_RECIPE}: {name} cannot be taken from the target's {entry.tensor} "
                    f"({error}); this draft belongs to another target"
                ) from error
    return tensors


def _read_recipe(path: Path) -> dict[str, TensorSource]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, TensorSource])
    except (OSError, *BAD_JSON) as error:
        raise ConfigError(f"{path} is not a readable recipe: {error}") from None


def _identity(folder: Path) -> list[list[object]]:
    """Name, length and time of each file: enough to see that a checkpoint was replaced."""
    stats = [(file.name, file.stat()) for file in sorted(folder.iterdir()) if file.is_file()]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
