"""Stage 6: a trained draft as it is committed, without the tensors that are the target's own.

    python -m examples.train_drafts.export --target DIR --draft RUN/eagle3 \
        --out examples/models/eagle3

What equals a tensor of the target, or the rows of its embedding that `t2d` marks, is left to
`assemble.json`, from which set-up completes the checkpoint.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from examples.train_drafts.training import frequent, read_items, token_counts

EMBEDDING = "model.embed_tokens.weight"


def source_in(target: dict[str, Tensor], value: Tensor) -> str | None:
    """The name of the target's tensor that equals `value`."""
    same = (n for n, t in target.items() if t.shape == value.shape and torch.equal(t, value))
    return next(same, None)


def split(draft: dict[str, Tensor], target: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict]:
    """(what has to be stored, the recipe for the rest)."""
    stored, recipe = {}, {}
    for name, value in draft.items():
        source = source_in(target, value)
        if source:
            recipe[name] = {"from": source, "rows": "all"}
        elif name == "lm_head.weight" and torch.equal(value, target[EMBEDDING][draft["t2d"]]):
            recipe[name] = {"from": EMBEDDING, "rows": "t2d"}
        else:
            stored[name] = value
    return stored, recipe


def trimmed(head: dict[str, Tensor], counts: np.ndarray, size: int) -> dict[str, Tensor]:
    """A head with only the `size` most frequent ids of its draft vocabulary."""
    ids = head["d2t"] + torch.arange(len(head["d2t"]))
    kept = frequent(counts[ids.numpy()], size)
    known = torch.zeros_like(head["t2d"])
    known[ids[kept]] = True
    return head | {
        "lm_head.weight": head["lm_head.weight"][kept].clone(),
        "d2t": ids[kept] - torch.arange(size),
        "t2d": known,
    }


def export(args: argparse.Namespace) -> dict:
    """Write `args.out` anew; returns the recipe."""
    tensors = load_file(args.draft / "model.safetensors")
    config = json.loads((args.draft / "config.json").read_text())
    if args.draft_vocab:
        items = read_items(args.data, 4 * config["hidden_size"])
        counts = token_counts(items, config["vocab_size"])
        tensors = trimmed(tensors, counts, args.draft_vocab)
        config["draft_vocab_size"] = args.draft_vocab
    stored, recipe = split(tensors, load_file(args.target / "model.safetensors"))
    out = args.out
    out.mkdir(parents=True, exist_ok=True)
    save_file(stored, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    (out / "assemble.json").unlink(missing_ok=True)
    if recipe:
        (out / "assemble.json").write_text(json.dumps(recipe, indent=1) + "\n")
    return recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--target", "--draft", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--draft-vocab", type=int, help="keep that many ids of a head's vocabulary")
    parser.add_argument("--data", type=Path, nargs="+", help="shards to count them in")
    args = parser.parse_args()
    recipe = export(args)
    size = (args.out / "model.safetensors").stat().st_size
    print(f"{args.out}: {size / 2**20:.1f} MiB stored, {len(recipe)} tensors left to the target")


if __name__ == "__main__":
    main()
