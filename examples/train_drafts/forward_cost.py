"""A draft's forward against the target's, batch 1, one token after 256: transformers on one core.

    python -m examples.train_drafts.forward_cost --target DIR --draft DIR

CPU time, not wall time, so that a busy machine does not change the answer. The engine adds the
same fixed cost to both.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

CONTEXT, REPEATS, ROUNDS = 256, 8, 5


@torch.no_grad()
def step_seconds(model: LlamaForCausalLM) -> float:
    """The fastest of some rounds."""
    tokens = torch.randint(1000, (1, CONTEXT))
    best = float("inf")
    for _ in range(ROUNDS):
        cache = model(tokens, use_cache=True).past_key_values
        start = time.process_time()
        for _ in range(REPEATS):
            model(tokens[:, :1], past_key_values=cache, use_cache=True)
        best = min(best, (time.process_time() - start) / REPEATS)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--draft", type=Path, required=True)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    dtype = getattr(torch, args.dtype)
    target, draft = (
        step_seconds(LlamaForCausalLM.from_pretrained(folder, dtype=dtype))
        for folder in (args.target, args.draft)
    )
    ratio = round(draft / target, 3)
    print(
        json.dumps(
            {"target_ms": round(target * 1e3, 2), "draft_ms": round(draft * 1e3, 2), "ratio": ratio}
        )
    )


if __name__ == "__main__":
    main()
