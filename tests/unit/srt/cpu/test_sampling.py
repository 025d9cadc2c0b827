"""Sampled verification follows the target's distribution; top-k, top-p and the hash are exact."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from sglang_speckv.srt.cpu.kernels import sampling

DRAWS = 20_000
VOCAB = 6
SIGNIFICANCE = 1e-4


def verify(candidates: Tensor, child: Tensor, sibling: Tensor, probs: Tensor, depth: int):
    """Predictions along the accepted path and their number, for each request."""
    requests, tokens = candidates.shape
    predicts = torch.zeros(requests * tokens, dtype=torch.int32)
    accepted = torch.full((requests, depth + 1), -1, dtype=torch.int32)
    counts = torch.empty(requests, dtype=torch.int32)
    sampling.tree_speculative_sampling_target_only(
        predicts=predicts,
        accept_index=accepted,
        accept_token_num=counts,
        candidates=candidates,
        retrive_index=torch.arange(requests * tokens).view(requests, tokens),
        retrive_next_token=child,
        retrive_next_sibling=sibling,
        uniform_samples=torch.rand(requests, tokens),
        uniform_samples_for_final_sampling=torch.rand(requests),
        target_probs=probs,
        draft_probs=torch.zeros_like(probs),
    )
    return predicts, accepted, counts


def chain(requests: int, tokens: int) -> tuple[Tensor, Tensor]:
    child = torch.tensor([*range(1, tokens), -1]).expand(requests, -1)
    return child, torch.full((requests, tokens), -1)


def text_of(predicts: Tensor, accepted: Tensor, counts: Tensor) -> list[list[int]]:
    rows = zip(accepted.tolist(), counts.tolist(), strict=True)
    return [[int(predicts[i]) for i in row[: count + 1]] for row, count in rows]


def fits(observed: Tensor, wanted: Tensor) -> bool:
    return bool(stats.chisquare(observed.numpy(), wanted.numpy()).pvalue > SIGNIFICANCE)


@pytest.mark.parametrize("shape", ["chain", "tree"])
def test_the_first_two_tokens_follow_the_target(shape):
    """Whatever was drafted, the joint distribution of two tokens is that of a Markov target."""
    torch.manual_seed(0)
    step = torch.distributions.Dirichlet(torch.ones(VOCAB)).sample((VOCAB,))
    if shape == "chain":
        drafted = torch.tensor([0, 3, 1])
        child, sibling = chain(DRAWS, 3)
    else:  # the root has children 3, 5 and 1; 3 has children 1 and 4
        drafted = torch.tensor([0, 3, 5, 1, 1, 4])
        child = torch.tensor([1, 4, -1, -1, -1, -1]).expand(DRAWS, -1)
        sibling = torch.tensor([-1, 2, 3, -1, 5, -1]).expand(DRAWS, -1)
    candidates = drafted.expand(DRAWS, -1)
    texts = text_of(*verify(candidates, child, sibling, step[candidates], depth=2))
    pairs = torch.zeros(VOCAB, VOCAB, dtype=torch.float64)
    for text in texts:
        second = text[1] if len(text) > 1 else int(torch.multinomial(step[text[0]], 1))
        pairs[text[0], second] += 1
    wanted = (step[0][:, None] * step).double()
    assert fits(pairs.flatten(), wanted.flatten() / wanted.sum() * DRAWS)
    assert not fits(pairs.T.flatten(), wanted.flatten() / wanted.sum() * DRAWS)


def reject(candidates: Tensor, probs: Tensor, draft_probs: Tensor, widths: Tensor | None = None):
    """``widths`` [requests]: how many drafts of each are verified."""
    requests, tokens = candidates.shape
    child, sibling = chain(requests, tokens)
    if widths is not None:
        child = torch.where(torch.arange(tokens) >= widths[:, None], -1, child)
    predicts = torch.zeros(requests * tokens, dtype=torch.int32)
    accepted = torch.full((requests, tokens), -1, dtype=torch.int32)
    counts = torch.empty(requests, dtype=torch.int32)
    sampling.chain_speculative_sampling(
        predicts,
        accepted,
        counts,
        candidates,
        torch.arange(requests * tokens).view(requests, tokens),
        child,
        sibling,
        torch.rand(requests, tokens),
        torch.rand(requests),
        probs,
        draft_probs,
    )
    return text_of(predicts, accepted, counts)


def test_drawn_drafts_leave_the_target_s_distribution():
    """Two tokens of a Markov target, with drafts drawn from another Markov chain."""
    torch.manual_seed(3)
    step, other = torch.distributions.Dirichlet(torch.ones(VOCAB)).sample((2, VOCAB))
    first = torch.multinomial(other[0].expand(DRAWS, -1), 1)
    second = torch.multinomial(other[first.squeeze(1)], 1)
    candidates = torch.cat([torch.zeros_like(first), first, second], 1)
    texts = reject(candidates, step[candidates], other[candidates[:, :2]])
    pairs = torch.zeros(VOCAB, VOCAB, dtype=torch.float64)
    for text in texts:
        follow = text[1] if len(text) > 1 else int(torch.multinomial(step[text[0]], 1))
        pairs[text[0], follow] += 1
    wanted = (step[0][:, None] * step).double()
    assert fits(pairs.flatten(), wanted.flatten() / wanted.sum() * DRAWS)
    overlap = float(torch.minimum(step[0], other[0]).sum())
    kept = sum(len(text) > 1 for text in texts)
    assert stats.binomtest(kept, DRAWS, overlap).pvalue > SIGNIFICANCE


@pytest.mark.parametrize(
    ("rule", "honest"), [("distribution", True), ("token", False), ("outcome", False)]
)
def test_a_width_may_follow_the_drafts_distributions_and_nothing_later(rule, honest):
    """One that looks at the token that was drawn, or at what the target makes of it, bends the
    output. The second draft's distribution is that of the first draft's token."""
    torch.manual_seed(6)
    step, other = torch.distributions.Dirichlet(torch.ones(VOCAB)).sample((2, VOCAB))
    first = torch.multinomial(other[0].expand(DRAWS, -1), 1)
    second = torch.multinomial(other[first.squeeze(1)], 1)
    candidates = torch.cat([torch.zeros_like(first), first, second], 1)
    told = {
        "distribution": other[first.squeeze(1)].amax(1),
        "token": (second.squeeze(1) % 2).float(),
        "outcome": step[first.squeeze(1)].gather(1, second).squeeze(1),
    }[rule]
    widths = 1 + (told > told.mean()).long()
    texts = reject(candidates, step[candidates], other[candidates[:, :2]], widths)
    assert {len(text) for text in texts} == {1, 2, 3}
    pairs = torch.zeros(VOCAB, VOCAB, dtype=torch.float64)
    for text in texts:
        follow = text[1] if len(text) > 1 else int(torch.multinomial(step[text[0]], 1))
        pairs[text[0], follow] += 1
    wanted = (step[0][:, None] * step).double()
    assert fits(pairs.flatten(), wanted.flatten() / wanted.sum() * DRAWS) == honest


def test_a_chain_without_drafts_is_plain_sampling():
    torch.manual_seed(4)
    probs = torch.distributions.Dirichlet(torch.ones(VOCAB)).sample().expand(DRAWS, 1, -1)
    texts = reject(torch.zeros(DRAWS, 1, dtype=torch.long), probs, torch.empty(DRAWS, 0, VOCAB))
    assert {len(text) for text in texts} == {1}
    drawn = torch.bincount(torch.tensor(texts).flatten(), minlength=VOCAB)
    assert fits(drawn.double(), probs[0, 0].double() * DRAWS)


def test_equal_distributions_keep_every_draft():
    torch.manual_seed(5)
    probs = torch.distributions.Dirichlet(torch.ones(VOCAB)).sample((200, 3))
    candidates = torch.randint(0, VOCAB, (200, 3))
    assert {len(text) for text in reject(candidates, probs, probs[:, :2])} == {3}


def test_a_request_sees_only_its_own_rows():
    torch.manual_seed(1)
    probs = torch.distributions.Dirichlet(torch.ones(VOCAB)).sample((3, 4))
    candidates = torch.randint(0, VOCAB, (3, 4))
    coins, last = torch.rand(3, 4), torch.rand(3)
    child, sibling = chain(3, 4)

    def run(rows: slice) -> list[list[int]]:
        count = len(coins[rows])
        predicts = torch.zeros(count * 4, dtype=torch.int32)
        accepted = torch.full((count, 4), -1, dtype=torch.int32)
        counts = torch.empty(count, dtype=torch.int32)
        sampling.tree_speculative_sampling_target_only(
            predicts,
            accepted,
            counts,
            candidates[rows],
            torch.arange(count * 4).view(count, 4),
            child[rows],
            sibling[rows],
            coins[rows],
            last[rows],
            probs[rows],
            torch.zeros_like(probs[rows]),
        )
        return text_of(predicts, accepted, counts)

    assert run(slice(0, 3)) == [run(slice(r, r + 1))[0] for r in range(3)]


@pytest.mark.parametrize("drafted", [2, 4])
def test_a_certain_target_is_copied(drafted):
    probs = torch.zeros(50, 2, VOCAB)
    probs[:, 0, 2] = probs[:, 1, 5] = 1.0
    candidates = torch.tensor([0, drafted]).expand(50, -1)
    texts = text_of(*verify(candidates, *chain(50, 2), probs, depth=1))
    assert texts == [[2, 5] if drafted == 2 else [2]] * 50


def test_rounding_never_yields_an_impossible_token(monkeypatch):
    """Both possible tokens are refused by a coin above their rounded sum."""
    probs = torch.zeros(1, 3, VOCAB)
    probs[0, :, 2], probs[0, :, 4] = 0.3, 0.69999
    child, sibling = torch.tensor([[1, -1, -1]]), torch.tensor([[-1, 2, -1]])
    monkeypatch.setattr(torch, "rand", lambda *shape: torch.full(shape, 1 - 2**-24))
    texts = text_of(*verify(torch.tensor([[0, 2, 4]]), child, sibling, probs, depth=1))
    assert texts == [[4]]


@settings(max_examples=60)
@given(seed=st.integers(0, 999), rows=st.integers(1, 5), vocab=st.sampled_from([5, 40, 3000]))
@example(seed=351, rows=3, vocab=3000)  # a head whose mass is top_p up to rounding
def test_top_k_and_top_p(seed, rows, vocab):
    torch.manual_seed(seed)
    probs = torch.softmax(torch.randn(rows, vocab) * 2, -1)
    top_k = torch.randint(1, vocab + 3, (rows,), dtype=torch.int32)
    top_k[0] = 1 << 30
    top_p = torch.rand(rows) * 0.999 + 0.001
    by_k, by_p = sampling.top_k_renorm_prob(probs, top_k), sampling.top_p_renorm_prob(probs, top_p)
    for row in range(rows):
        order = sorted(range(vocab), key=lambda token: -float(probs[row, token]))
        assert_kept(by_k[row], probs[row], order[: int(top_k[row])])
        assert_nucleus(by_p[row], probs[row], order, float(top_p[row]))


def assert_nucleus(actual: Tensor, probs: Tensor, order: list[int], top_p: float) -> None:
    """`actual` keeps the shortest head of `order` whose mass reaches `top_p`.

    Where the mass of a head is `top_p` up to rounding, either length is right.
    """
    count = int((actual > 0).sum())
    assert_kept(actual, probs, order[:count])
    mass = probs.double()[order].cumsum(0)
    assert mass[count - 1] > top_p - 1e-6
    assert count == 1 or mass[count - 2] < top_p + 1e-6


def assert_kept(actual: Tensor, probs: Tensor, tokens: list[int]) -> None:
    wanted = torch.zeros_like(probs)
    wanted[tokens] = probs[tokens] / probs[tokens].sum()
    torch.testing.assert_close(actual, wanted, atol=2e-5, rtol=1e-4)


def test_top_p_of_a_flat_distribution_needs_the_whole_vocabulary():
    probs = torch.full((2, 4000), 1 / 4000)
    kept = sampling.top_p_renorm_prob(probs, torch.tensor([0.9, 1.0]))
    torch.testing.assert_close(kept.sum(-1), torch.ones(2))
    assert torch.equal(sampling.top_k_renorm_prob(probs, 1 << 30), probs)


def murmur3_32(data: bytes) -> int:
    """MurmurHash3_x86_32 with seed 0, for whole blocks of four bytes."""
    state = 0
    for start in range(0, len(data), 4):
        block = int.from_bytes(data[start : start + 4], "little") * 0xCC9E2D51 % 2**32
        block = (block << 15 | block >> 17) % 2**32 * 0x1B873593 % 2**32
        state ^= block
        state = ((state << 13 | state >> 19) % 2**32 * 5 + 0xE6546B64) % 2**32
    state ^= len(data)
    state = (state ^ state >> 16) * 0x85EBCA6B % 2**32
    state = (state ^ state >> 13) * 0xC2B2AE35 % 2**32
    return state ^ state >> 16


def test_murmur_hash():
    seeds = [0, 42, 2**63 + 12345, 2**64 - 1]
    positions, columns = [0, 7, 1000, 2**31], [0, 1, 49151]
    actual = sampling.murmur_hash32_cpu(
        torch.tensor(seeds, dtype=torch.uint64),
        torch.tensor(positions, dtype=torch.uint64),
        torch.tensor(columns),
    )
    assert actual.dtype == torch.uint32
    assert actual.tolist() == [
        [
            murmur3_32(s.to_bytes(8, "little") + p.to_bytes(4, "little") + c.to_bytes(4, "little"))
            for c in columns
        ]
        for s, p in zip(seeds, positions, strict=True)
    ]
