"""The CPU kernels inside the real engine, against Transformers' own Llama: plain decoding,
SGLang's default draft tree, cached prefixes, sampling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM

from tests.engine.conftest import PROMPTS, Serving, flags, serving

pytestmark = pytest.mark.engine

SAMPLES = 1200
TOP_K = 5
TEMPERATURE = 1.5
SIGNIFICANCE = 1e-5


class Reference:
    """The target as Transformers computes it."""

    def __init__(self, path: str) -> None:
        self.model = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32)
        self.tokenizer = AutoTokenizer.from_pretrained(path)

    @torch.inference_mode()
    def greedy(self, prompt: str, length: int) -> list[int]:
        ids = self.tokenizer(prompt, return_tensors="pt").input_ids
        for _ in range(length):
            best = self.model(ids).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, best], dim=1)
        return ids[0, -length:].tolist()

    @torch.inference_mode()
    def next_probs(self, ids: list[int], top_p: float) -> Tensor:
        logits = self.model(torch.tensor([ids])).logits[0, -1] / TEMPERATURE
        top = logits.topk(TOP_K)
        probs = top.values.softmax(-1)
        probs[probs.cumsum(-1) - probs >= top_p] = 0.0
        return torch.zeros_like(logits).scatter(0, top.indices, probs / probs.sum())


@pytest.fixture(scope="module")
def reference(models: dict[str, str]) -> Reference:
    return Reference(models["target"])


@pytest.fixture(scope="module")
def tree(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """STANDALONE with SGLang's own defaults for a Llama: 5 steps, topk 4, 8 draft tokens."""
    with serving(tmp_path_factory.mktemp("tree"), *flags(models, "STANDALONE", "alike")) as running:
        yield running


def test_plain_decoding_is_that_of_transformers(
    plain_answers: dict[str, Any], reference: Reference
) -> None:
    wanted = [reference.greedy(prompt, 48) for prompt in PROMPTS]
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
    """The second and third token, both from sampled verification, given the first."""
    prompt = PROMPTS[1]
    sampling = {"temperature": TEMPERATURE, "top_k": TOP_K, "top_p": top_p}
    answers = tree.generate([prompt] * SAMPLES, max_new_tokens=3, **sampling)
    texts = Counter(tuple(answer["output_ids"]) for answer in answers)
    ids = reference.tokenizer(prompt).input_ids
    wanted: Counter[tuple[int, ...]] = Counter()
    for first, count in Counter(answer["output_ids"][0] for answer in answers).items():
        second_probs = reference.next_probs([*ids, first], top_p)
        for second in second_probs.nonzero().flatten().tolist():
            third_probs = reference.next_probs([*ids, first, second], top_p)
            for third in third_probs.nonzero().flatten().tolist():
                joint = float(second_probs[second] * third_probs[third])
                wanted[first, second, third] = count * joint
    assert set(texts) <= set(wanted)
    common = [text for text in wanted if wanted[text] >= 5]
    rest = sum(wanted.values()) - sum(wanted[text] for text in common)
    rare = SAMPLES - sum(texts[text] for text in common)
    observed = [*(texts[text] for text in common), rare]
    expected = [*(wanted[text] for text in common), max(rest, 1e-6)]
    assert len(common) > 5
    scale = SAMPLES / sum(expected)
    p_value = stats.chisquare(observed, [value * scale for value in expected]).pvalue
    assert p_value > SIGNIFICANCE
