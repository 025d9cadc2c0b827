"""The demo's own target and EAGLE-3 head: the text is the target's, as Transformers computes it."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sglang_speckv.ab.prompts import load_prompts
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
        assert len(answer) == LENGTH and max(gaps(model, prompt, answer)) < TIE


@torch.inference_mode()
def gaps(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> list[float]:
    """How far each token of an answer is below the target's own choice at its place."""
    logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    own = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
    return (logits.max(dim=1).values - own).tolist()
