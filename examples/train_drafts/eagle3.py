"""The EAGLE-3 head in the layout SGLang's `llama_eagle3` loads, and its chain of draft steps.

Row t of a sequence knows token t+1 and the target's captured states at t, and predicts token t+2.
A chain started at row s goes on with its own output in place of the states: step k predicts
token s+2+k, attends to the target-fed rows up to s and to its own earlier steps.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from examples.train_drafts.target import Shape, rope_tables, rotate


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


class Norm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))  # a mix of types has no fused kernel


class Attention(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.q_proj = _linear(2 * s.hidden, s.heads * s.head_dim)
        self.k_proj = _linear(2 * s.hidden, s.kv_heads * s.head_dim)
        self.v_proj = _linear(2 * s.hidden, s.kv_heads * s.head_dim)
        self.o_proj = _linear(s.heads * s.head_dim, s.hidden)


class Mlp(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.gate_proj = _linear(s.hidden, s.intermediate)
        self.up_proj = _linear(s.hidden, s.intermediate)
        self.down_proj = _linear(s.intermediate, s.hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(s), Mlp(s)
        self.input_layernorm = Norm(s.hidden, s.eps)
        self.hidden_norm = Norm(s.hidden, s.eps)
        self.post_attention_layernorm = Norm(s.hidden, s.eps)


class Chain(NamedTuple):
    """Where chains start: sequence and row of each, [N]."""

    batch: Tensor
    row: Tensor


class Fed(NamedTuple):
    """Rows fed with the target's states: output [B, T, H], rotated q and k, v [B, heads, T, D]."""

    hidden: Tensor
    q: Tensor
    k: Tensor
    v: Tensor


class Eagle3(nn.Module):
    def __init__(
        self, shape: Shape, draft_vocab: int, max_length: int = 2048, captured: int = 3
    ) -> None:
        super().__init__()
        self.shape = shape
        self.fc = _linear(captured * shape.hidden, shape.hidden)
        self.midlayer = Layer(shape)
        self.norm = Norm(shape.hidden, shape.eps)
        self.lm_head = _linear(shape.hidden, draft_vocab)
        self.lm_head.weight.requires_grad_(False)  # as given, or rows of the target's
        cos, sin = rope_tables(shape.head_dim, shape.rope_theta, max_length)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def _qkv(self, embed: Tensor, hidden: Tensor, pos: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[.., heads, D] queries, and keys and values at [.., kv_heads, D]."""
        layer, attn, d = self.midlayer, self.midlayer.self_attn, self.shape.head_dim
        x = torch.cat([layer.input_layernorm(embed), layer.hidden_norm(hidden)], -1)
        w = torch.cat([attn.q_proj.weight, attn.k_proj.weight, attn.v_proj.weight])
        y = F.linear(x, w).unflatten(-1, (-1, d))
        qk, v = y[..., : -self.shape.kv_heads, :], y[..., -self.shape.kv_heads :, :]
        cos, sin = self.cos[pos][..., None, :].to(y.dtype), self.sin[pos][..., None, :].to(y.dtype)
        qk = rotate(qk, cos, sin)
        return qk[..., : self.shape.heads, :], qk[..., self.shape.heads :, :], v

    def _rest(self, hidden: Tensor, attended: Tensor) -> Tensor:
        hidden = hidden + self.midlayer.self_attn.o_proj(attended)
        return hidden + self.midlayer.mlp(self.midlayer.post_attention_layernorm(hidden))

    def logits(self, hidden: Tensor, columns: Tensor | slice = slice(None)) -> Tensor:
        return F.linear(self.norm(hidden), self.lm_head.weight[columns])

    def first(self, aux: Tensor, embed: Tensor) -> Fed:
        """All target-fed rows: aux [B, T, captured * H], next tokens' embed [B, T, H]."""
        pos = torch.arange(aux.shape[1], device=aux.device)
        hidden = self.fc(aux)
        q, k, v = (t.transpose(1, 2) for t in self._qkv(embed, hidden, pos))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return Fed(self._rest(hidden, a.transpose(1, 2).flatten(2)), q, k, v)

    def step(
        self,
        chain: Chain,
        hidden: Tensor,
        embed: Tensor,
        fed: Fed,
        own: list[tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        """Next step of N chains, hidden and embed [N, H], and its last KV group's attention to
        the rows `fed`, [N, heads of the group, T].

        `own` gathers the chains' own keys and values [N, kv_heads, D]; this step appends to it.
        """
        s = self.shape
        q, k, v = self._qkv(embed, hidden, chain.row + len(own) + 1)
        own.append((k, v))
        q = q.unflatten(1, (s.kv_heads, -1)) * s.head_dim**-0.5  # [N, kv, group, D]
        later = torch.arange(fed.k.shape[2], device=q.device) > chain.row[:, None]
        scores = _per_sequence(q, fed.k.transpose(-1, -2), chain.batch).float()
        scores = scores.masked_fill(later[:, None, None], float("-inf"))
        mine = [(q * kj[:, :, None]).sum(-1, keepdim=True).float() for kj, _ in own]
        attention = torch.cat([scores, *mine], -1).softmax(-1)
        share = attention.to(q.dtype)
        a = _per_sequence(share[..., : -len(own)], fed.v, chain.batch)
        for j, (_, vj) in enumerate(own):
            a = a + share[..., j - len(own), None] * vj[:, :, None]
        return self._rest(hidden, a.flatten(1)), attention[:, -1, :, : -len(own)]


def _per_sequence(x: Tensor, y: Tensor, batch: Tensor) -> Tensor:
    """x [N, kv, group, M] times y [B, kv, M, P] of the sequence each row belongs to.

    Rows of one sequence are neighbours (`batch` is sorted), so this is one matmul per sequence.
    """
    out = []
    for b, rows in enumerate(x.split(torch.bincount(batch, minlength=y.shape[0]).tolist())):
        if len(rows):
            n, kv, group, m = rows.shape
            z = torch.matmul(rows.permute(1, 0, 2, 3).reshape(kv, n * group, m), y[b])
            out.append(z.view(kv, n, group, -1).permute(1, 0, 2, 3))
    return torch.cat(out)


def load(folder: Path, shape: Shape, embed: Tensor) -> tuple[Eagle3, Tensor]:
    """A head and its draft vocabulary (ids of the target); an absent lm_head is the target's."""
    saved = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    shape = shape._replace(heads=heads, kv_heads=kv_heads)  # more than the target's
    ids = saved["d2t"].long() + torch.arange(len(saved["d2t"]))
    captured = saved["fc.weight"].shape[1] // shape.hidden
    head = Eagle3(shape, len(ids), captured=captured)
    names = {"lm_head.weight": embed[ids]} | saved
    head.load_state_dict({n: t for n, t in names.items() if n in head.state_dict()})
    return head.float(), ids


def fresh(shape: Shape, target: dict[str, Tensor], ids: Tensor) -> Eagle3:
    """A head that starts as the target's last layer, reading the highest captured state.

    It has one KV group more, which adds nothing yet and is there to point (`pointing.py`).
    """
    h, heads = shape.hidden, shape.heads + shape.heads // shape.kv_heads
    head = Eagle3(shape._replace(heads=heads, kv_heads=shape.kv_heads + 1), len(ids))
    last = f"model.layers.{shape.layers - 1}."
    state = head.state_dict()
    for name, value in state.items():
        source = target.get(name.replace("midlayer.", last))
        if source is not None and source.shape == value.shape:
            value.copy_(source)
        elif name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            value.normal_(std=0.01)
            value[: len(source), h:] = source
        elif name.endswith("o_proj.weight"):
            value.zero_()[:, : source.shape[1]] = source
    state["fc.weight"].normal_(std=0.002)
    state["fc.weight"][:, 2 * h :] += torch.eye(h)
    state["midlayer.hidden_norm.weight"].copy_(target[last + "input_layernorm.weight"])
    state["midlayer.input_layernorm.weight"].fill_(1.0)
    state["norm.weight"].copy_(target["model.norm.weight"])
    state["lm_head.weight"].copy_(target["model.embed_tokens.weight"][ids])
    return head


def save(head: Eagle3, ids: Tensor, folder: Path, target_config: dict) -> None:
    """The complete head, lm_head included; `export` leaves out what set-up can cut again."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {n: t.detach().to(torch.bfloat16).contiguous() for n, t in head.state_dict().items()}
    known = torch.zeros(head.shape.vocab, dtype=torch.bool)
    known[ids] = True
    tensors |= {"d2t": ids - torch.arange(len(ids)), "t2d": known}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = target_config | {
        "architectures": ["LlamaForCausalLMEagle3"],
        "num_hidden_layers": 1,
        "num_attention_heads": head.shape.heads,
        "num_key_value_heads": head.shape.kv_heads,
        "head_dim": head.shape.head_dim,
        "draft_vocab_size": len(ids),
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
