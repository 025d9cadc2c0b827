"""Stage 2b: give a head the means to copy what followed the same two tokens earlier in the text.

    python -m examples.train_drafts.copying --target DIR --data DATA/own --start HEAD --out HEAD2

In a summary half of the tokens are what followed the same two tokens before, yet a head trained
from the target's last layer never looks there: a million tokens do not teach it. This adds one KV
group whose weights are fitted directly; `train_eagle3 --start HEAD2` then trains everything.

- `fc` adds codes of the row's own token and of the one before, in directions of its output to which
  the loss is least sensitive;
- two query heads match (x_t, x_t+1) with the codes of earlier rows, or rest on the first row;
- what they find raises the logit of that row's next token;
- the third attends to its own row and moves the code one token on, for the next draft step.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from examples.train_drafts import eagle3
from examples.train_drafts.common import add_common, pick_device
from examples.train_drafts.target import read_shape, rotate
from examples.train_drafts.train_eagle3 import Batch
from examples.train_drafts.training import endless, read_items

CODE = 16  # dimensions of one token's code
HEAD_DIM = 64  # what the places below are for
COPIED = HEAD_DIM - CODE  # value dimensions for the copied token; the others hold the moved code
SLOW = [31 - i // 2 + 32 * (i % 2) for i in range(2 * CODE)]  # turn little from row to row
FAST = [0, 1, 2, 3]  # turn most: they tell the own row from its neighbours
REST = 15  # the slowest place that codes leave free
REST_GAIN = 1.3  # it still turns by 0.0045 a row and so loses some of its score on the way
OWN_ROW = 6.0  # score by which the third head prefers its own row


class Fit(NamedTuple):
    """What the closed forms need besides the head."""

    directions: Tensor  # [2 * CODE, H], of fc's output
    size: float  # typical root mean square of a row of it
    scale: Tensor  # [2H], brings the low and the middle states to one size
    code: Tensor  # [CODE, H], embedding -> code
    weight: Tensor  # [vocabulary], share of each token, square roots taken


def ridge(x: Tensor, y: Tensor, strength: float = 1e-3) -> Tensor:
    """W of y = x W, least squares."""
    gram = x.T @ x
    damp = strength * gram.diagonal().mean() * torch.eye(len(gram))
    return torch.linalg.solve(gram + damp, x.T @ y)


def least_sensitive(head: eagle3.Eagle3, ids: Tensor, batches: list[Batch]) -> tuple[Tensor, float]:
    """Directions of fc's output with the smallest gradients, and a row's typical size."""
    grams, sizes = torch.zeros(head.shape.hidden, head.shape.hidden), []
    for b in batches:
        fed = head.fc(b.aux.float()).detach().requires_grad_()
        pos = torch.arange(fed.shape[1])
        q, k, v = (t.transpose(1, 2) for t in head._qkv(b.embed.float(), fed, pos))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        hidden = head._rest(fed, a.transpose(1, 2).flatten(2))[b.chain.batch, b.chain.row]
        true = b.tokens[b.chain.batch, b.chain.row + 2]
        known = torch.isin(true, ids)
        labels = torch.searchsorted(ids, true[known])
        F.cross_entropy(head.logits(hidden[known]), labels, reduction="sum").backward()
        grad = fed.grad.flatten(0, 1)
        grams += grad.T @ grad
        sizes.append(fed.detach()[:, 2:].pow(2).mean(-1).sqrt().flatten())
    directions = torch.linalg.eigh(grams)[1][:, : 2 * CODE].T
    return directions, torch.cat(sizes).median().item()


def token_code(embed: Tensor, weight: Tensor) -> Tensor:
    """[CODE, H]: random mixes of the embedding's main directions, of unit spread."""
    seen = weight > 0
    mean = weight @ embed
    centred = embed[seen] - mean
    centred = centred - (centred @ mean)[:, None] * mean / mean.dot(mean)
    _, s, v = torch.linalg.svd(centred * weight[seen].sqrt()[:, None], full_matrices=False)
    kept = min(160, len(s))
    mix = torch.linalg.qr(torch.randn(kept, CODE))[0].T
    code = mix @ (v[:kept] / s[:kept, None].sqrt())
    return code / (centred @ code.T).std()


class Pointer(nn.Module):
    """The two pointing heads on their own. `write`: states -> codes of own and previous token."""

    def __init__(self, code: Tensor, write: Tensor) -> None:
        super().__init__()
        places, hidden = 2 * CODE, code.shape[1]
        self.write = nn.Parameter(write)
        self.q_embed = nn.Parameter(torch.zeros(2, places, hidden))
        self.q_code = nn.Parameter(torch.zeros(2, places, places))
        self.k_code = nn.Parameter(torch.zeros(places, places))
        self.rest = nn.Parameter(torch.full((2,), 6.0))  # score of the first row
        with torch.no_grad():
            for i in range(CODE):  # own codes in even places, previous ones in odd ones
                self.k_code[2 * i, i] = self.k_code[2 * i + 1, CODE + i] = 1.0
                self.q_embed[:, 2 * i] = 4 * code[i]
                self.q_code[0, 2 * i + 1, i], self.q_code[1, 2 * i + 1, i] = 4.0, 1.0

    def forward(self, embed: Tensor, codes: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Scores [2, B, T, T] from next tokens' embed [B, T, H] and codes [B, T, 2 * CODE]."""
        q = [embed @ e.T + codes @ c.T for e, c in zip(self.q_embed, self.q_code, strict=True)]
        q, k = _turn(torch.stack(q), cos, sin), _turn(codes @ self.k_code.T, cos, sin)
        scores = q @ k.transpose(-1, -2) * HEAD_DIM**-0.5
        first = self.rest[:, None, None].expand(scores.shape[:3])
        return torch.cat([first[..., None], scores[..., 1:]], -1)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    full = x.new_zeros(*x.shape[:-1], HEAD_DIM)
    full[..., SLOW] = x
    return rotate(full, cos, sin)


def pointing_loss(scores: Tensor, b: Batch) -> Tensor:
    """-log of the mass on rows that the token to come follows; without one, on the first row."""
    rows = torch.arange(scores.shape[-1])
    later = rows > b.chain.row[:, None]
    true = b.tokens[b.chain.batch, b.chain.row + 2]
    right = (b.tokens[:, 1 : len(rows) + 1][b.chain.batch] == true[:, None]) & ~later
    right[:, 0] = ~right[:, 1:].any(1)
    share = scores[:, b.chain.batch, b.chain.row].masked_fill(later, float("-inf")).softmax(-1)
    return -((share * right).sum(-1) + 1e-4).log().mean()


def fit_pointer(
    pointer: Pointer, head: eagle3.Eagle3, batches: list[Batch], fit: Fit, steps: int
) -> None:
    matching = [pointer.q_embed, pointer.q_code, pointer.k_code]
    groups = [([pointer.write], 3e-4), (matching, 3e-2), ([pointer.rest], 5e-2)]
    optimiser = torch.optim.Adam([{"params": p, "lr": lr} for p, lr in groups])
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.0965 ** (1 / steps))
    for step in range(steps):
        b = batches[step % len(batches)]
        with torch.no_grad():
            size = head.fc(b.aux.float()).pow(2).mean(-1, keepdim=True).sqrt().clamp(min=1.0)
            embed = head.midlayer.input_layernorm(b.embed.float())
        states = b.aux[..., : len(fit.scale)].float() * fit.scale
        codes = states @ pointer.write * (fit.size / size)  # as `hidden_norm` will leave them
        n = embed.shape[1]
        loss = pointing_loss(pointer(embed, codes, head.cos[:n], head.sin[:n]), b)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 50 == 49:
            print(f"copying: {step + 1}/{steps}, loss {loss.item():.3f}", flush=True)


def widened(old: eagle3.Eagle3) -> eagle3.Eagle3:
    """One KV group more, of zeros."""
    s = old.shape
    shape = s._replace(heads=s.heads + s.heads // s.kv_heads, kv_heads=s.kv_heads + 1)
    head = eagle3.Eagle3(shape, len(old.lm_head.weight))
    for name, value in head.state_dict().items():
        given = old.state_dict()[name]
        value.zero_()[tuple(slice(n) for n in given.shape)] = given
    return head


@torch.no_grad()
def install(
    head: eagle3.Eagle3, ids: Tensor, pointer: Pointer, fit: Fit, embed: Tensor, args
) -> None:
    """Write the fitted circuit into the last KV group. `embed` is normed."""
    layer, h, at = head.midlayer, head.shape.hidden, fit.directions
    fc = head.fc.weight
    fc -= at.T @ (at @ fc)
    fc[:, : 2 * h] += args.amplitude * at.T @ (pointer.write * fit.scale[:, None]).T
    read = at / layer.hidden_norm.weight * (fit.size / args.amplitude)  # normed row -> codes
    constant, opening = _constant(embed, fit.weight), _opening(embed, fit.weight, args.second)
    q, k, v = torch.zeros(3, HEAD_DIM, 2 * h), *torch.zeros(2, HEAD_DIM, 2 * h)
    k[SLOW, h:] = pointer.k_code @ read
    k[REST, :h] = HEAD_DIM**0.5 * opening
    for i in range(2):
        q[i, SLOW, :h], q[i, SLOW, h:] = pointer.q_embed[i], pointer.q_code[i] @ read
        q[i, REST, :h] = REST_GAIN * pointer.rest[i] * constant
    k[FAST, :h] += OWN_ROW**0.5 * constant
    q[2, FAST, :h] = OWN_ROW**0.5 * HEAD_DIM**0.5 * constant
    to_logit, out = _raised(head, ids, embed, fit)
    v[:COPIED, :h] = to_logit - (to_logit @ embed[args.second])[:, None] * opening
    v[COPIED:, :h], v[COPIED:, h:] = fit.code, -read[:CODE]
    o = torch.zeros(h, 3, HEAD_DIM)
    o[:, :2, :COPIED] = out[:, None] * args.strength / 2
    o[:, 2, COPIED:] = args.amplitude * at[:CODE].T
    usual = layer.self_attn.v_proj.weight[:-HEAD_DIM].pow(2).mean().sqrt()
    for part in (slice(COPIED), slice(COPIED, HEAD_DIM)):  # sizes that one learning rate suits
        ratio = v[part].pow(2).mean().sqrt() / usual
        v[part] /= ratio
        o[:, :, part] *= ratio
    layer.self_attn.q_proj.weight[-3 * HEAD_DIM :] = q.flatten(0, 1)
    layer.self_attn.k_proj.weight[-HEAD_DIM:] = k
    layer.self_attn.v_proj.weight[-HEAD_DIM:] = v
    layer.self_attn.o_proj.weight[:, -3 * HEAD_DIM :] = o.flatten(1)


def _constant(embed: Tensor, weight: Tensor) -> Tensor:
    """The direction in which all embeddings are about 1."""
    seen = weight > 0
    w = weight[seen].sqrt()[:, None]
    return ridge(embed[seen] * w, w)[:, 0]


def _opening(embed: Tensor, weight: Tensor, second: int) -> Tensor:
    """1 for the second token of every chat, which the first row sees; about 0 for others."""
    seen = weight > 0
    x = torch.cat([embed[seen] * weight[seen].sqrt()[:, None], embed[second][None]])
    y = torch.zeros(len(x), 1)
    y[-1] = 1.0
    direction = ridge(x, y, 1e-5)[:, 0]
    return direction / (direction @ embed[second])


def _raised(head: eagle3.Eagle3, ids: Tensor, embed: Tensor, fit: Fit) -> tuple[Tensor, Tensor]:
    """(embedding -> value, value -> output): raises a token's logit by about 1, at low rank."""
    rows = head.lm_head.weight * head.norm.weight
    weight = fit.weight[ids] + 1e-6
    weight = weight / weight.sum()
    rows = rows - weight @ rows
    wanted = rows / rows.pow(2).sum(-1, keepdim=True) * fit.size
    wanted = wanted - wanted @ fit.directions.T @ fit.directions
    root = weight.sqrt()[:, None]
    x = embed[ids] * root
    through = ridge(x, wanted * root, 1e-2)
    out = torch.linalg.svd(x @ through, full_matrices=False)[2][:COPIED].T
    return (through @ out).T, out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_common(parser)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="shards")
    parser.add_argument("--start", type=Path, required=True, help="folder of a head")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--amplitude", type=float, default=15.0, help="of the codes in fc's output")
    parser.add_argument("--strength", type=float, default=12.0, help="of the copied token's logit")
    args = parser.parse_args()
    pick_device(args)
    shape, h = read_shape(args.target), read_shape(args.target).hidden
    table = load_file(args.target / "model.safetensors")["model.embed_tokens.weight"]
    old, ids = eagle3.load(args.start, shape, table.float())
    items = read_items(args.data, 4 * h)
    args.second = items[0].seq.tokens[1]
    random.Random(args.seed).shuffle(items)
    single = [Batch([i], h, table) for i in items[:80]]
    directions, size = least_sensitive(old, ids, single[:40])
    aux = torch.cat([b.aux[0, 1:, : 2 * h].float() for b in single])
    own = torch.cat([b.tokens[0, 1 : b.aux.shape[1]] for b in single])
    before = torch.cat([b.tokens[0, : b.aux.shape[1] - 1] for b in single])
    with torch.no_grad():
        embed = old.midlayer.input_layernorm(table.float())
        weight = torch.bincount(own, minlength=shape.vocab).float().sqrt()
        weight = weight / weight.sum()
        fit = Fit(directions, size, 1 / aux.std(0), token_code(embed, weight), weight)
        code = embed @ fit.code.T
        write = torch.cat([ridge(aux * fit.scale, code[t]) for t in (own, before)], 1)
    pointer = Pointer(fit.code, write)
    stream = endless(items[80:], 3000, random.Random(args.seed + 1))
    batches = [Batch(next(stream), h, table) for _ in range(100)]
    fit_pointer(pointer, old, batches, fit, args.steps)
    head = widened(old)
    install(head, ids, pointer, fit, embed, args)
    eagle3.save(head, ids, args.out, json.loads((args.target / "config.json").read_text()))


if __name__ == "__main__":
    main()
