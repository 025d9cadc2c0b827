"""The target as Transformers computes it, an EAGLE-3 head as its trainer computes it, and whether
sampled text follows the target."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from scipy import stats
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.train_drafts.eagle3 import Chain, load
from examples.train_drafts.target import read_shape
from tests.engine.conftest import PROMPTS, Serving

SAMPLES, AT_A_TIME = 900, "24"
"""How many sampled answers are asked for, and how many a server should work on together."""
TOP_K = 5
TEMPERATURE = 1.5
SIGNIFICANCE = 1e-5
PROMPT = PROMPTS[1]


class Reference:
    """The target as Transformers computes it."""

    def __init__(self, path: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        self.tokenizer = AutoTokenizer.from_pretrained(path)

    def ids(self, prompt: str) -> list[int]:
        return self.tokenizer(prompt).input_ids

    @torch.inference_mode()
    def greedy(self, prompt: str, length: int) -> list[int]:
        ids = torch.tensor([self.ids(prompt)])
        for _ in range(length):
            best = self.model(ids).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, best], dim=1)
        return ids[0, -length:].tolist()

    @torch.inference_mode()
    def next_probs(self, ids: list[int], top_p: float, rescaled: bool = False) -> Tensor:
        """As plain decoding cuts them; or with ``top_p`` of what top-k leaves, as SGLang's
        verification does by itself."""
        logits = self.model(torch.tensor([ids])).logits[0, -1] / TEMPERATURE
        top = logits.topk(TOP_K)
        probs = top.values.softmax(-1) if rescaled else logits.softmax(-1)[top.indices]
        probs[probs.cumsum(-1) - probs >= top_p] = 0.0
        return torch.zeros_like(logits).scatter(0, top.indices, probs / probs.sum())


class HeadReference:
    """An EAGLE-3 head as its trainer computes it, fed by the target as Transformers computes it."""

    def __init__(self, head: str, target: str) -> None:
        self.target = Reference(target)
        self.embed = self.target.model.get_input_embeddings().weight
        self.head, self.ids = load(Path(head), read_shape(Path(target)), self.embed)
        config = json.loads((Path(head) / "config.json").read_text())
        self.captured = config["eagle_config"]["eagle_aux_hidden_state_layer_ids"]

    @torch.inference_mode()
    def drafts(self, text: list[int], lengths: Sequence[int], steps: int) -> Tensor:
        """Distributions [N, steps, draft vocabulary] of greedy drafts behind the first ``lengths``
        [N] tokens of ``text``."""
        ids, rows = torch.tensor([text]), torch.tensor(lengths) - 2
        states = self.target.model(ids, output_hidden_states=True).hidden_states
        aux = torch.cat([states[layer + 1][:, :-1] for layer in self.captured], -1)
        fed = self.head.first(aux, self.embed[ids[:, 1:]])
        chain, hidden, own = Chain(torch.zeros_like(rows), rows), fed.hidden[0, rows], []
        logits = [self.head.logits(hidden)]
        while len(logits) < steps:
            token = self.ids[logits[-1].argmax(-1)]
            hidden, _ = self.head.step(chain, hidden, self.embed[token], fed, own)
            logits.append(self.head.logits(hidden))
        return torch.stack(logits, 1).softmax(-1)


def sampled(server: Serving, top_p: float, **more: float) -> list[list[int]]:
    """Three tokens behind PROMPT, many times over."""
    sampling = {"temperature": TEMPERATURE, "top_k": TOP_K, "top_p": top_p, **more}
    answers = server.generate([PROMPT] * SAMPLES, max_new_tokens=3, **sampling)
    return [answer["output_ids"] for answer in answers]


def follows_target(
    answers: list[list[int]], reference: Reference, top_p: float, rescaled: bool = False
) -> bool:
    """Of answers from :func:`sampled`: the second and third token, both from verification, given
    the first (chi-square)."""
    texts = Counter(map(tuple, answers))
    ids = reference.ids(PROMPT)
    wanted: Counter[tuple[int, ...]] = Counter()
    for first, count in Counter(answer[0] for answer in answers).items():
        second_probs = reference.next_probs([*ids, first], top_p, rescaled)
        for second in second_probs.nonzero().flatten().tolist():
            third_probs = reference.next_probs([*ids, first, second], top_p, rescaled)
            for third in third_probs.nonzero().flatten().tolist():
                joint = float(second_probs[second] * third_probs[third])
                wanted[first, second, third] = count * joint
    if not set(texts) <= set(wanted):
        return False
    common = [text for text in wanted if wanted[text] >= 5]
    rest = sum(wanted.values()) - sum(wanted[text] for text in common)
    rare = len(answers) - sum(texts[text] for text in common)
    observed = [*(texts[text] for text in common), rare]
    expected = [*(wanted[text] for text in common), max(rest, 1e-6)]
    assert len(common) > 5
    scale = len(answers) / sum(expected)
    p_value = stats.chisquare(observed, [value * scale for value in expected]).pvalue
    return bool(p_value > SIGNIFICANCE)
