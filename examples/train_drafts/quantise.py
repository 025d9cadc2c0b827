"""INT8 and NF4 versions of the target, to see what compression does to acceptance.

    python -m examples.train_drafts.quantise --target DIR --level int8 --out DIR-int8

The projection matrices of the layers are quantised and written back *dequantised*, in bfloat16: a
CPU then does the same work as before, so this changes what is accepted, never what a step costs.
Embedding and norms stay as they are. Needs `pip install --no-deps torchao==0.18.0`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def int8(weight: Tensor) -> Tensor:
    """torchao's weight-only int8: symmetric, one scale per row."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    quantize_(linear, Int8WeightOnlyConfig())
    return linear.weight.dequantize().to(weight.dtype)


def nf4(weight: Tensor) -> Tensor:
    """torchao's NF4 (QLoRA's): blocks of 64 values, their scales quantised to int8 in turn."""
    from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import to_nf4

    return to_nf4(weight, block_size=64, scaler_block_size=64).get_original_weight()


LEVELS: dict[str, Callable[[Tensor], Tensor]] = {"int8": int8, "nf4": nf4}


def quantise(target: Path, level: str, out: Path) -> float:
    """Write the model to `out`; returns the root mean square error relative to the weights."""
    weights = load_file(target / "model.safetensors")
    error = total = 0.0
    for name, weight in weights.items():
        if name.endswith("_proj.weight"):
            new = LEVELS[level](weight)
            error += (new.float() - weight.float()).pow(2).sum().item()
            total += weight.float().pow(2).sum().item()
            weights[name] = new.contiguous()
    shutil.copytree(target, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    label = {
        "weights": level,
        "stored": "dequantised to bfloat16",
        "relative_rms": (error / total) ** 0.5,
    }
    (out / "quantised.json").write_text(json.dumps(label, indent=1) + "\n")
    return label["relative_rms"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--level", choices=sorted(LEVELS), required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    error = quantise(args.target, args.level, args.out)
    print(f"{args.out}: {args.level}, relative error {error:.4f}")


if __name__ == "__main__":
    main()
