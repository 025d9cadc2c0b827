"""The training pipeline's own arithmetic, on models small enough to check by hand."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from examples.train_drafts import eagle3
from examples.train_drafts.evaluate import rounds
from examples.train_drafts.export import split, trimmed
from examples.train_drafts.pointing import pointing_loss, right_copies
from examples.train_drafts.shards import Shard
from examples.train_drafts.target import Cache, Shape, Target, read_shape
from examples.train_drafts.train_eagle3 import Batch, unroll
from examples.train_drafts.train_standalone import LastAttention
from examples.train_drafts.training import Item, frequent, soft_cross_entropy
from sglang_speckv.ab.prompts import load_prompts

VOCAB, HIDDEN = 96, 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of eight layers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        rope_theta=1e4,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    out = tmp_path_factory.mktemp("target")
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    tensors = {n: t.contiguous() for n, t in model.state_dict().items() if n != "lm_head.weight"}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(out)
    return out


def shape_of(folder: Path) -> Shape:
    return read_shape(folder)


def test_target_states_are_those_of_transformers(folder: Path) -> None:
    target = Target(folder, torch.device("cpu"))
    tokens = torch.randint(VOCAB, (2, 7))
    states, _ = target.prefill(tokens)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    hidden = model.model(tokens, output_hidden_states=True).hidden_states
    expected = torch.cat([hidden[i] for i in (*target.shape.captured, 8)], -1)
    assert F.cosine_similarity(states.float(), expected.float(), dim=-1).min() > 0.999


@pytest.mark.parametrize("block", [1, 16])
def test_decoding_in_slots_continues_a_prefill(
    folder: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr("examples.train_drafts.target.BLOCK", block)
    target = Target(folder, torch.device("cpu"))
    tokens = torch.randint(VOCAB, (2, 9))
    whole, _ = target.prefill(tokens)
    _, kv = target.prefill(tokens[:, :8], keep_kv=True)
    cache, lengths = Cache(target.shape, 2, 12, target.device), torch.tensor([8, 5])
    cache.k[:, :, :, :8], cache.v[:, :, :, :8] = kv  # slot 1 is at position 5: the rest is stale
    step = target.decode(tokens[[0, 1], lengths], lengths, cache)
    expected = torch.stack([whole[0, 8], whole[1, 5]])
    assert F.cosine_similarity(step.float(), expected.float(), dim=-1).min() > 0.999


def test_chain_steps_equal_one_long_attention(folder: Path) -> None:
    """Steps of a chain = the layer over the target-fed rows with the chain's own rows behind."""
    shape = shape_of(folder)
    torch.manual_seed(1)
    head = eagle3.Eagle3(shape, 16)
    aux, embed = torch.randn(2, 6, 3 * HIDDEN), torch.randn(2, 8, HIDDEN)
    fed = head.first(aux, embed[:, :6])
    chain = eagle3.Chain(torch.tensor([0, 1, 1]), torch.tensor([3, 1, 2]))
    hidden, own = fed.hidden[chain.batch, chain.row], []
    for depth in range(2):
        hidden, _ = head.step(chain, hidden, embed[chain.batch, chain.row + depth + 1], fed, own)
    for i, (b, row) in enumerate(zip(*(t.tolist() for t in chain), strict=True)):
        rows = torch.cat([head.fc(aux[b : b + 1, : row + 1]), fed.hidden[b, row][None, None]], 1)
        first = _layer(head, rows, embed[b : b + 1, : row + 2])[:, -1:]
        second = _layer(head, torch.cat([rows, first], 1), embed[b : b + 1, : row + 3])[0, -1]
        assert torch.allclose(hidden[i], second, atol=1e-5)


def _layer(head: eagle3.Eagle3, hidden: torch.Tensor, embed: torch.Tensor) -> torch.Tensor:
    pos = torch.arange(hidden.shape[1])
    q, k, v = (t.transpose(1, 2) for t in head._qkv(embed, hidden, pos))
    a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return head._rest(hidden, a.transpose(1, 2).flatten(2))


def test_only_accepted_chains_go_on(folder: Path, tmp_path: Path) -> None:
    shape = shape_of(folder)
    shard = Shard(tmp_path, 4 * HIDDEN)
    shard.append("p", "code", 0.0, 3, list(range(12)), torch.randn(11, 4 * HIDDEN).bfloat16())
    embed = torch.randn(VOCAB, HIDDEN).bfloat16()
    batch = Batch([Item(shard.sequences[0], shard)], HIDDEN, embed)
    assert batch.chain.row.tolist() == list(range(2, 10))
    head = eagle3.Eagle3(shape, VOCAB).bfloat16()
    steps = unroll(head, batch, torch.arange(VOCAB), 4, extra=1.0)
    assert [len(s.alive) for s in steps] == [8, 7, 6, 5]
    for before, after in pairwise(steps):
        assert after.alive.sum() <= before.accepted.sum()
    assert len(unroll(head, batch, torch.arange(VOCAB), 4, extra=0.0)[0].alive) == 8


def test_rows_are_shown_where_the_coming_token_stands() -> None:
    tokens = torch.tensor([[7, 3, 5, 9, 3, 5, 3, 5, 3]])
    places = [row.nonzero()[:, 0].tolist() for row in right_copies(tokens)[0]]
    # Row 4 holds a 3, and a 5 comes, as it did at 2; row 6 may also take the one at 5.
    assert places == [[], [], [], [], [2], [], [2, 5], [6]]


def test_pointing_is_asked_of_the_heads_together() -> None:
    right = torch.tensor([[False, True, False], [False, False, False]])
    shares = torch.tensor([[[0.1, 0.9, 0.0], [0.5, 0.1, 0.4]]] * 2).requires_grad_()
    loss, share = pointing_loss(shares, right)
    loss.backward()
    assert share == pytest.approx(0.5) and loss.item() == pytest.approx(-math.log(0.5), rel=1e-3)
    assert shares.grad[0].tolist() == [[0, pytest.approx(-1, rel=1e-3), 0]] * 2
    assert not shares.grad[1].any()


def test_what_points_is_the_engine_models_own_attention(folder: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager").float()
    last, tokens = LastAttention(model), torch.randint(VOCAB, (2, 7))
    expected = model(tokens, output_attentions=True).attentions[-1]
    group = model.config.num_attention_heads // model.config.num_key_value_heads
    assert torch.allclose(last.shares(), expected[:, -group:], atol=1e-5)


def test_a_fresh_heads_further_group_adds_nothing_yet_and_is_loaded(
    folder: Path, tmp_path: Path
) -> None:
    ids, target = torch.arange(0, VOCAB, 6), load_file(folder / "model.safetensors")
    head = eagle3.fresh(shape_of(folder), {n: t.float() for n, t in target.items()}, ids)
    assert (head.shape.heads, head.shape.kv_heads) == (6, 3)
    aux, embed = torch.randn(1, 5, 3 * HIDDEN), torch.randn(1, 5, HIDDEN)
    before = head.first(aux, embed).hidden
    head.midlayer.self_attn.v_proj.weight.data[-8:] = 9.0
    assert torch.allclose(before, head.first(aux, embed).hidden, atol=1e-6)
    eagle3.save(head, ids, tmp_path, json.loads((folder / "config.json").read_text()))
    again, _ = eagle3.load(tmp_path, shape_of(folder), torch.zeros(VOCAB, HIDDEN))
    assert again.shape == head.shape


def test_loss_and_gradient_are_those_of_torch() -> None:
    x = torch.randn(5, 9, requires_grad=True)
    target = torch.randn(5, 9).softmax(-1)
    ours, theirs = soft_cross_entropy(x, target), F.cross_entropy(x, target, reduction="sum")
    (grad,), (expected,) = torch.autograd.grad(ours, x), torch.autograd.grad(theirs, x)
    assert torch.allclose(ours, theirs, atol=1e-5) and torch.allclose(grad, expected, atol=1e-6)


def test_shard_survives_a_stop_between_its_two_writes(tmp_path: Path) -> None:
    states = torch.randn(4, 8).bfloat16()
    shard = Shard(tmp_path, 8)
    shard.append("a", "qa", 0.0, 2, [1, 2, 3, 4, 5], states)
    with (tmp_path / "states.bf16").open("ab") as file:
        file.write(b"half a sequence")
    with (tmp_path / "index.jsonl").open("a") as file:
        file.write('{"prompt": "cut o')
    again = Shard(tmp_path, 8)
    again.append("b", "qa", 0.0, 2, [9, 8, 7], states[:2])
    assert [s.prompt for s in Shard(tmp_path, 8).sequences] == ["a", "b"]
    assert torch.equal(again.states(again.sequences[1]), states[:2])


def test_export_leaves_out_what_the_target_has(folder: Path) -> None:
    target = load_file(folder / "model.safetensors")
    embedding = target["model.embed_tokens.weight"]
    marked = torch.zeros(VOCAB, dtype=torch.bool)
    marked[[3, 7, 50]] = True
    draft = {
        "model.embed_tokens.weight": embedding.clone(),
        "lm_head.weight": embedding[marked],
        "fc.weight": torch.ones(2, 2),
        "t2d": marked,
    }
    stored, recipe = split(draft, target)
    assert sorted(stored) == ["fc.weight", "t2d"]
    assert recipe["lm_head.weight"] == {"from": "model.embed_tokens.weight", "rows": "t2d"}
    assert recipe["model.embed_tokens.weight"]["rows"] == "all"


def test_trimming_keeps_the_rows_of_the_most_frequent_ids() -> None:
    ids, known = torch.tensor([1, 4, 6]), torch.zeros(8, dtype=torch.bool)
    known[ids] = True
    rows = torch.arange(6.0).view(3, 2)
    head = {"lm_head.weight": rows, "d2t": ids - torch.arange(3), "t2d": known}
    small = trimmed(head, torch.tensor([9, 5, 0, 0, 1, 0, 7, 0]).numpy(), 2)
    assert (small["d2t"] + torch.arange(2)).tolist() == small["t2d"].nonzero()[:, 0].tolist()
    assert small["t2d"].nonzero()[:, 0].tolist() == [1, 6]
    assert torch.equal(small["lm_head.weight"], rows[[0, 2]])


def test_rounds_start_where_the_last_one_ended() -> None:
    assert rounds(torch.tensor([2, 0, 1, 0, 5]).numpy()).tolist() == [2, 0, 5]


def test_frequent_ids_ascend() -> None:
    assert frequent(torch.tensor([5, 0, 9, 7]).numpy(), 2).tolist() == [2, 3]


def test_subjects_are_not_prompts_of_the_comparison() -> None:
    """Held out by construction; this guards against pasting one into the other."""
    root = Path(__file__).resolve().parents[2] / "examples"
    subjects = (root / "train_drafts" / "subjects.json").read_text().lower()
    for prompt in load_prompts():
        assert json.dumps(prompt.prompt, ensure_ascii=False)[1:-1].lower() not in subjects
