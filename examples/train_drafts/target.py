"""The target model as the training stages need it: captured states, and batched decoding.

Only what SGLang's EAGLE-3 path would capture is kept: the residual entering layers 2, L/2 and
L-3 (`aux`), and the final normed state, from which the target's distribution is one matmul away.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

BLOCK = 16  # neighbouring slots that decode to the length of the longest among them


class Shape(NamedTuple):
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    eps: float
    rope_theta: float

    @property
    def captured(self) -> tuple[int, int, int]:
        """SGLang's default EAGLE-3 layers (`set_eagle3_layers_to_capture`)."""
        return 2, self.layers // 2, self.layers - 3


def read_shape(model_dir: Path) -> Shape:
    c = json.loads((model_dir / "config.json").read_text())
    heads = c["num_attention_heads"]
    theta = c.get("rope_theta") or c["rope_parameters"]["rope_theta"]
    return Shape(
        c["hidden_size"],
        c["num_hidden_layers"],
        heads,
        c["num_key_value_heads"],
        c.get("head_dim") or c["hidden_size"] // heads,
        c["intermediate_size"],
        c["vocab_size"],
        c["rms_norm_eps"],
        theta,
    )


def rope_tables(head_dim: int, theta: float, length: int) -> tuple[Tensor, Tensor]:
    """(cos, sin), each [length, head_dim], in the half-split layout of Hugging Face."""
    inv = theta ** -(torch.arange(0, head_dim, 2).float() / head_dim)
    angle = torch.arange(length).float()[:, None] * inv
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding; cos and sin broadcast against x [..., head_dim]."""
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * cos + turned * sin


class Cache:
    """Keys and values of `slots` sequences, up to `length` tokens each."""

    def __init__(self, shape: Shape, slots: int, length: int, device: torch.device) -> None:
        size = (shape.layers, slots, shape.kv_heads, length, shape.head_dim)
        self.k = torch.zeros(size, dtype=torch.bfloat16, device=device)
        self.v = torch.zeros(size, dtype=torch.bfloat16, device=device)


class Target:
    """A Llama in bfloat16. States come as [.., 4 * hidden]: three captured ones, then the final."""

    def __init__(self, model_dir: Path, device: torch.device, max_length: int = 2048) -> None:
        self.shape, self.device = read_shape(model_dir), device
        weights = load_file(model_dir / "model.safetensors")
        self.w = {n: t.to(device, torch.bfloat16) for n, t in weights.items()}
        self.embed = self.w["model.embed_tokens.weight"]
        tables = rope_tables(self.shape.head_dim, self.shape.rope_theta, max_length)
        self.cos, self.sin = (t.to(device, torch.bfloat16) for t in tables)
        for i in range(self.shape.layers):
            self._fuse(i)

    def _fuse(self, layer: int) -> None:
        p = f"model.layers.{layer}."
        qkv = [self.w.pop(f"{p}self_attn.{n}_proj.weight") for n in "qkv"]
        gate_up = [self.w.pop(f"{p}mlp.{n}_proj.weight") for n in ("gate", "up")]
        self.w[p + "qkv"], self.w[p + "gate_up"] = torch.cat(qkv), torch.cat(gate_up)

    def logits(self, final: Tensor) -> Tensor:
        return F.linear(final, self.w.get("lm_head.weight", self.embed))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, (self.shape.hidden,), self.w[name + ".weight"], self.shape.eps)

    def _qkv(self, x: Tensor, layer: int, pos: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated q [.., heads, D], rotated k and plain v [.., kv_heads, D]; pos matches [..]."""
        s, p = self.shape, f"model.layers.{layer}."
        y = F.linear(self._norm(x, p + "input_layernorm"), self.w[p + "qkv"])
        y = y.unflatten(-1, (s.heads + 2 * s.kv_heads, s.head_dim))
        qk, v = y.split([s.heads + s.kv_heads, s.kv_heads], -2)
        qk = rotate(qk, self.cos[pos][..., None, :], self.sin[pos][..., None, :])
        q, k = qk.split([s.heads, s.kv_heads], -2)
        return q, k, v

    def _rest(self, x: Tensor, attended: Tensor, layer: int) -> Tensor:
        p = f"model.layers.{layer}."
        x = x + F.linear(attended, self.w[p + "self_attn.o_proj.weight"])
        y = F.linear(self._norm(x, p + "post_attention_layernorm"), self.w[p + "gate_up"])
        gate, up = y.chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, self.w[p + "mlp.down_proj.weight"])

    @torch.no_grad()
    def prefill(self, tokens: Tensor, keep_kv: bool = False) -> tuple[Tensor, Tensor | None]:
        """Right-padded tokens [B, T] -> states [B, T, 4H] and KV [2, layers, B, kv_heads, T, D]."""
        x, pos = self.embed[tokens], torch.arange(tokens.shape[1], device=self.device)
        aux, kv = [], []
        for i in range(self.shape.layers):
            if i in self.shape.captured:
                aux.append(x)
            q, k, v = (t.transpose(1, 2) for t in self._qkv(x, i, pos))
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            x = self._rest(x, a.transpose(1, 2).flatten(2), i)
            if keep_kv:
                kv.append(torch.stack([k, v]))
        states = torch.cat([*aux, self._norm(x, "model.norm")], -1)
        return states, torch.stack(kv, 1) if keep_kv else None

    @torch.no_grad()
    def decode(self, tokens: Tensor, pos: Tensor, cache: Cache) -> Tensor:
        """One token per slot [S] at its position [S] -> states [S, 4H]."""
        s, rows = self.shape, torch.arange(len(tokens), device=self.device)
        widths = (torch.stack([part.max() for part in pos.split(BLOCK)]) + 1).tolist()  # one sync
        hidden = torch.arange(max(widths), device=self.device) > pos[:, None]
        bias = torch.zeros_like(hidden, dtype=torch.float32).masked_fill(hidden, float("-inf"))
        x, aux = self.embed[tokens], []
        for i in range(s.layers):
            if i in s.captured:
                aux.append(x)
            q, k, v = self._qkv(x, i, pos)
            cache.k[i][rows, :, pos], cache.v[i][rows, :, pos] = k, v
            q = q.unflatten(1, (s.kv_heads, -1)) * s.head_dim**-0.5
            parts = zip(
                *(t.split(BLOCK) for t in (q, bias, cache.k[i], cache.v[i])), widths, strict=True
            )
            x = self._rest(x, torch.cat([_attend(*part) for part in parts]).flatten(1), i)
        return torch.cat([*aux, self._norm(x, "model.norm")], -1)


def _attend(q: Tensor, bias: Tensor, k: Tensor, v: Tensor, width: int) -> Tensor:
    """Scaled q [S, kv, group, D], bias [S, ..], cached k and v [S, kv, .., D] -> as q."""
    # Plain matmuls, keys first: on a CPU twice as fast as the fused kernel for one query.
    scores = torch.matmul(k[:, :, :width], q.transpose(-1, -2)).transpose(-1, -2)
    share = (scores.float() + bias[:, None, None, :width]).softmax(-1).to(v.dtype)
    return torch.matmul(share, v[:, :, :width])
