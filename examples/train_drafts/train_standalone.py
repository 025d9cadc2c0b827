"""Stage 4: train the STANDALONE draft, a shallow Llama that starts as a few layers of the target.

    python -m examples.train_drafts.train_standalone --target DIR --data DATA/own \
        --tokens answers.npz --out RUN/standalone

It keeps the target's tokenizer and, frozen, its embedding and the attention of its first layer,
which then need not be stored with it. It learns the target's distribution where states are at
hand, else its tokens; `pointing.py` shows it where the coming token stands earlier in the text.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from examples.train_drafts.common import pick_device, system_prefix
from examples.train_drafts.features import read_answers
from examples.train_drafts.pointing import causal_shares, pointing_loss, right_copies
from examples.train_drafts.shards import Sequence
from examples.train_drafts.target import rotate
from examples.train_drafts.training import (
    Item,
    add_training,
    endless,
    frequent,
    read_items,
    soft_cross_entropy,
    token_counts,
    train,
)

FROZEN = ("model.embed_tokens.", "model.layers.0.self_attn.")


def fresh(target: Path, layers: list[int]) -> LlamaForCausalLM:
    """The target with only `layers` left."""
    config = LlamaConfig.from_pretrained(target)
    config.num_hidden_layers = len(layers)
    model = LlamaForCausalLM(config).float()
    weights = load_file(target / "model.safetensors")
    state = model.state_dict()
    for name, value in state.items():
        source = name
        if name.startswith("model.layers."):
            _, _, index, rest = name.split(".", 3)
            source = f"model.layers.{layers[int(index)]}.{rest}"
        value.copy_(weights.get(source, weights["model.embed_tokens.weight"]))
    return model


def freeze(model: LlamaForCausalLM) -> None:
    """What set-up can take from the target stays as it is there."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(FROZEN))


def known_tokens(path: Path, target: Path) -> list[Item]:
    """Answers without states."""
    given = read_answers(path, system_prefix(target))
    return [
        Item(Sequence(g.prompt, "answers", g.temperature, g.prompt_length, 0, g.tokens), None)
        for g in given
        if len(g.tokens) - g.prompt_length >= 5
    ]


def pad(items: list[Item], device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens [B, T] and where an answer's token follows [B, T - 1]."""
    width = max(i.seq.length for i in items) + 1
    tokens = torch.zeros(len(items), width, dtype=torch.long)
    answer = torch.zeros(len(items), width - 1, dtype=torch.bool)
    for row, (seq, _) in enumerate(items):
        tokens[row, : seq.length + 1] = torch.tensor(seq.tokens)
        answer[row, seq.prompt_length - 1 : seq.length] = True
    return tokens.to(device), answer.to(device)


def labels_of(items: list[Item], columns: Tensor, tokens: Tensor, table: Tensor) -> Tensor:
    """Label distributions over `columns`, one row per answer token [N, columns]."""
    parts = []
    for row, (seq, shard) in enumerate(items):
        rows = slice(seq.prompt_length - 1, seq.length)
        if shard is None:
            places = torch.searchsorted(columns, tokens[row, seq.prompt_length : seq.length + 1])
            one_hot = table.new_zeros(len(places), len(columns))
            parts.append(one_hot.scatter_(1, places[:, None], 1.0))
        else:
            final = shard.states(seq)[rows, -table.shape[1] :].to(table.device)
            parts.append(F.linear(final, table).float().softmax(-1).to(table.dtype))
    return torch.cat(parts)


class LastAttention:
    """The attention of the last layer's last KV group in the model's latest forward."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.attention = model.model.layers[-1].self_attn
        self.attention.register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(self, module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        self.hidden, self.tables = kwargs["hidden_states"], kwargs["position_embeddings"]

    def shares(self) -> Tensor:
        """[B, heads of the group, T, T]."""
        attention, width = self.attention, self.attention.head_dim
        group = attention.num_key_value_groups * width
        q = F.linear(self.hidden, attention.q_proj.weight[-group:])
        k = F.linear(self.hidden, attention.k_proj.weight[-width:])
        q, k = (x.unflatten(-1, (-1, width)).transpose(1, 2) for x in (q, k))
        cos, sin = (t[:, None].to(q.dtype) for t in self.tables)
        return causal_shares(rotate(q, cos, sin), rotate(k, cos, sin))


def token_loss(
    model: LlamaForCausalLM,
    items: list[Item],
    hot: Tensor,
    embed: Tensor,
    last: LastAttention,
    pointing: float,
) -> tuple[Tensor, list[float]]:
    """Cross-entropy over frequent, occurring and some random tokens, plus `pointing` times the loss
    of pointing.py; beside it the share of right guesses and of attention pointed right.
    """
    tokens, answer = pad(items, embed.device)
    true = tokens[:, 1:][answer]
    chance = torch.randint(embed.shape[0], (1024,), device=embed.device)
    columns = torch.cat([hot, true, chance]).unique()
    table = embed[columns]
    with torch.autocast(embed.device.type, dtype=torch.bfloat16):
        hidden = model.model(tokens[:, :-1]).last_hidden_state[answer]
        logits = F.linear(hidden, table)
        loss = soft_cross_entropy(logits, labels_of(items, columns, tokens, table))
        shares = last.shares().transpose(1, 2)[answer]
        pointed, share = pointing_loss(shares, right_copies(tokens)[answer])
    right = (columns[logits.argmax(-1)] == true).float().mean().item()
    return (loss + pointing * pointed) / len(true), [right, share]


def save(model: LlamaForCausalLM, folder: Path) -> None:
    tensors = {
        n: t.detach().to("cpu", torch.bfloat16).contiguous()
        for n, t in model.state_dict().items()
        if n != "lm_head.weight"  # tied
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.dtype = torch.bfloat16
    model.config.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_training(parser)
    parser.add_argument("--tokens", type=Path, help="further answers as .npz, without states")
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 1, 29])
    parser.add_argument("--start", type=Path, help="folder of a complete draft to go on from")
    parser.add_argument("--pointing", type=float, default=0.5, help="weight of its loss")
    parser.add_argument("--hot", type=int, default=2048, help="tokens in every softmax")
    args = parser.parse_args()
    device = pick_device(args)
    if args.start:
        model = LlamaForCausalLM.from_pretrained(args.start, dtype=torch.float32)
    else:
        model = fresh(args.target, args.layers)
    freeze(model.to(device))
    embed = model.model.embed_tokens.weight.detach().to(torch.bfloat16)
    items = read_items(args.data, 4 * embed.shape[1])
    items += known_tokens(args.tokens, args.target) if args.tokens else []
    hot = frequent(token_counts(items, embed.shape[0]), args.hot).to(device)

    last = LastAttention(model)

    def loss_of(batch: list[Item]) -> tuple[Tensor, list[float]]:
        return token_loss(model, batch, hot, embed, last, args.pointing)

    train(
        model,
        loss_of,
        endless(items, args.batch_tokens, random.Random(args.seed)),
        lambda: save(model, args.out),
        args,
    )


if __name__ == "__main__":
    main()
