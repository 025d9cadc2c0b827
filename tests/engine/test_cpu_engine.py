"""The CPU kernels inside the real engine, against Transformers' own Llama: plain decoding,
SGLang's default draft tree, cached prefixes, sampling."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine.conftest import PROMPTS, TOKENS, Serving, flags, serving
from tests.engine.reference import AT_A_TIME, Reference, follows_target, sampled

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def reference(models: dict[str, str]) -> Reference:
    return Reference(models["target"])


@pytest.fixture(scope="module")
def tree(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """STANDALONE with SGLang's own defaults for a Llama: 5 steps, topk 4, 8 draft tokens."""
    asked = [*flags(models, "STANDALONE", "alike"), "--max-running-requests", AT_A_TIME]
    with serving(tmp_path_factory.mktemp("tree"), *asked) as running:
        yield running


def test_plain_decoding_is_that_of_transformers(
    plain_answers: dict[str, Any], reference: Reference
) -> None:
    wanted = [reference.greedy(prompt, TOKENS) for prompt in PROMPTS]
    assert plain_answers == {"alone": wanted, "batch": wanted}


def test_default_tree_gives_the_same_text_in_fewer_rounds(
    tree: Serving, plain_answers: dict[str, Any]
) -> None:
    answers = tree.generate(PROMPTS)
    assert [answer["output_ids"] for answer in answers] == plain_answers["batch"]
    assert min(answer["meta_info"]["spec_accept_length"] for answer in answers) > 1.2
    assert [tree.tokens([prompt])[0] for prompt in PROMPTS] == plain_answers["alone"]


def test_the_plugin_is_silent_unless_asked(tree: Serving) -> None:
    assert "speckv" not in tree.state()
    assert not tree.set_state(speckv_num_steps=1)
    assert "SpecKV" not in tree.log.read_text(errors="replace")


def test_cached_prefix(tree: Serving, reference: Reference) -> None:
    """Prompts that share their first half, long enough for the masks of a prefill."""
    shared = "The same words come first, and they come again. " * 6
    prompts = [shared + prompt * 2 for prompt in PROMPTS]
    tree.tokens([shared])
    answers = tree.generate(prompts, max_new_tokens=16)
    assert min(answer["meta_info"]["cached_tokens"] for answer in answers) >= len(shared) - 1
    wanted = [reference.greedy(prompt, 16) for prompt in prompts]
    assert [answer["output_ids"] for answer in answers] == wanted


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_sampled_text_follows_the_target(tree: Serving, reference: Reference, top_p: float) -> None:
    """SGLang's own verification: see ``sglang_speckv.srt.joint_cut``."""
    assert follows_target(sampled(tree, top_p), reference, top_p, rescaled=True)
