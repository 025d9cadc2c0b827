"""The demo's own target and EAGLE-3 head: the text is the target's, as Transformers computes it."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sglang_speckv.bench.lossless import first_difference
from sglang_speckv.bench.prompts import load_prompts
from sglang_speckv.config import ConfigError
from sglang_speckv.demo.drafts import resolve_draft
from sglang_speckv.demo.target import demo_target
from tests.engine.conftest import serving

pytestmark = pytest.mark.engine

LENGTH = 16
TIE = 1e-3
"""Where the target's two best logits are this close, float32 may prefer either."""


@pytest.fixture(scope="module")
def target() -> str:
    try:
        return str(demo_target())
    except ConfigError as error:
        pytest.skip(f"no demo target here: {error}")


def test_lossless_with_the_real_head(target: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    tokenizer = AutoTokenizer.from_pretrained(target)
    prompts = [
        tokenizer.apply_chat_template(prompt.chat(), add_generation_prompt=True)["input_ids"]
        for prompt in load_prompts()[:3]
    ]
    args = ["--model-path", target, "--speculative-algorithm", "EAGLE3"]
    args += ["--speculative-draft-model-path", str(resolve_draft("eagle3", target))]
    args += ["--max-total-tokens", "4096", "--speckv", "--speckv-candidate-steps", "0,1,3"]
    args += ["--speckv-profile", "0"]
    with (
        serving(tmp_path_factory.mktemp("demo"), *args) as server,
        server.shuffled_depths([3, 0, 1]),
    ):
        sampling = {"temperature": 0, "max_new_tokens": LENGTH, "ignore_eos": True}
        body = {"input_ids": prompts, "sampling_params": sampling}
        answers = [answer["output_ids"] for answer in server.post("/generate", body)]
        assert server.speckv()["correct_drafts"] > 0
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    for prompt, answer in zip(prompts, answers, strict=True):
        wanted, gaps = greedy(model, prompt)
        where = first_difference(answer, wanted)
        assert where is None or gaps[where] < TIE


@torch.inference_mode()
def greedy(model: torch.nn.Module, prompt: list[int]) -> tuple[list[int], list[float]]:
    """The target's own continuation and, for each token, how far ahead of the next best it was."""
    ids, gaps, past = torch.tensor([prompt]), [], None
    chosen: list[int] = []
    for _ in range(LENGTH):
        done = model(ids, past_key_values=past, use_cache=True)
        best = done.logits[0, -1].topk(2)
        chosen.append(int(best.indices[0]))
        gaps.append(float(best.values[0] - best.values[1]))
        ids, past = best.indices[:1].unsqueeze(0), done.past_key_values
    return chosen, gaps
