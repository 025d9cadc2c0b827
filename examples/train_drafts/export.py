"""Stage 6: a trained draft as it is committed, without the tensors that are the target's own.

    python -m examples.train_drafts.export --target DIR --draft RUN/eagle3 \
        --out examples/models/eagle3

What equals a tensor of the target, or the rows of its embedding that `t2d` marks, is left to
`assemble.json`, from which set-up completes the checkpoint.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

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


def export(draft: Path, target: Path, out: Path) -> dict:
    """Write `out` anew; returns the recipe."""
    stored, recipe = split(
        load_file(draft / "model.safetensors"), load_file(target / "model.safetensors")
    )
    out.mkdir(parents=True, exist_ok=True)
    save_file(stored, out / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(draft / "config.json", out / "config.json")
    (out / "assemble.json").unlink(missing_ok=True)
    if recipe:
        (out / "assemble.json").write_text(json.dumps(recipe, indent=1) + "\n")
    return recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--target", "--draft", "--out"):
        parser.add_argument(name, type=Path, required=True)
    args = parser.parse_args()
    recipe = export(args.draft, args.target, args.out)
    size = (args.out / "model.safetensors").stat().st_size
    print(f"{args.out}: {size / 2**20:.1f} MiB stored, {len(recipe)} tensors left to the target")


if __name__ == "__main__":
    main()
