"""Drafts completed from the target, and which algorithm a draft is made for."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sglang_speckv.config import ConfigError
from sglang_speckv.demo import drafts
from sglang_speckv.demo.drafts import algorithm_of, check_demo_drafts, resolve_draft


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
    assert complete.name == source.name, "what traces and artifacts call it, on any machine"
    assert algorithm_of(complete) == "EAGLE3"
    assert resolve_draft("eagle3", target) == complete
    assert resolve_draft(str(source), target) == complete


def test_a_draft_of_another_target_is_another_folder(frozen_draft):
    _, target = frozen_draft
    first = resolve_draft("eagle3", target)
    embed = torch.arange(8.0, 20.0).reshape(4, 3)
    save_file({"model.embed_tokens.weight": embed}, target / "model.safetensors")
    second = resolve_draft("eagle3", target)
    assert first != second and first.is_dir()
    assert load_file(second / "model.safetensors")["lm_head.weight"].shape == (2, 3)


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
        check_demo_drafts(["standalone"])
    for missing in ("standalone", str(tmp_path)):
        with pytest.raises(ConfigError, match=r"holds no config\.json"):
            resolve_draft(missing, tmp_path)


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
