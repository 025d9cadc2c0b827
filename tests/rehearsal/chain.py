"""A draft worker that is SGLang's as far as its loop goes, and rules that stop it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sglang_speckv.policy.stopping import StopRule
from sglang_speckv.srt.fuse import Fuse
from sglang_speckv.srt.graph_stop import NEVER, GraphStop
from sglang_speckv.srt.signals import SignalTap

STEPS, BATCH, VOCAB = 5, 8, 23


class Draft:
    """SGLang's draft worker as far as its loop goes: a draft is the argmax of the logits that the
    token before it has in a table."""

    def __init__(self, steps: int = STEPS, rows: int = BATCH, device: str = "cpu") -> None:
        self.device, self.speculative_num_steps = device, steps
        self.draft_runner = SimpleNamespace(forward=self.forward)
        self.cuda_graph_runner_for_draft_extend = None
        self._draft_extend_for_prefill = self._draft_extend_for_decode = None
        table = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(3)) * 2
        whole = {"dtype": torch.long, "device": device}
        self.table = table.to(device)
        self.first, self.positions = torch.zeros(rows, 1, **whole), torch.zeros(rows, **whole)
        self.forwards = torch.zeros((), **whole)
        self.run: Any = lambda: self.draft_forward(SimpleNamespace(batch_size=rows))

    def forward(self, batch: Any) -> Any:
        self.forwards.add_(1)
        logits = self.table[batch.input_ids] + 0
        return SimpleNamespace(logits_output=SimpleNamespace(next_token_logits=logits))

    def draft_forward(self, batch: Any) -> Tensor:
        tokens = [self.first]
        for _ in range(self.speculative_num_steps - 1):
            batch.input_ids = tokens[-1][:, 0]
            logits = self.draft_runner.forward(batch).logits_output.next_token_logits
            tokens.append(torch.argmax(logits, dim=-1, keepdim=True))
            self.positions.add_(1)
        self.positions.sub_(self.speculative_num_steps - 1)
        return torch.cat(tokens, dim=1)

    def draft(self, live: int) -> Any:
        links = torch.arange(1, self.speculative_num_steps + 2, device=self.device)
        links = links.repeat(live, 1)
        links[:, -1] = -1
        return SimpleNamespace(draft_token=self.run()[:live], retrieve_next_token=links)


def tap_of(draft: Any) -> SignalTap:
    draft._draft_extend_for_prefill = draft._draft_extend_for_decode = lambda batch: None
    return SignalTap(draft, STEPS, BATCH, BATCH, Fuse(lambda: None))


def stop_of(draft: Any) -> GraphStop:
    return GraphStop(draft, tap_of(draft), STEPS, BATCH)


def random_rule(rng: np.random.Generator, size: int) -> StopRule:
    own, coming = rng.normal([[0.4], [0.6]], 0.4, (2, 2, STEPS))
    return StopRule(own, coming, rng.normal(0, 0.4, size), size * rng.uniform(0, 0.5, STEPS))


def stop_after(made: int, size: int) -> StopRule:
    price = np.where(np.arange(STEPS) < made, NEVER, size + 1.0)
    return random_rule(np.random.default_rng(0), size)._replace(price=price)


def captured(steps: int, rows: int, device: str = "cpu") -> tuple[Draft, GraphStop]:
    draft = Draft(steps, rows, device)
    stop = stop_of(draft)
    with torch.inference_mode():
        draft.draft_forward(SimpleNamespace(batch_size=rows))
        graph = torch.cuda.CUDAGraph()
        with torch.get_device_module(device).graph(graph):
            tokens = draft.draft_forward(SimpleNamespace(batch_size=rows))
    draft.run = lambda: (graph.replay(), tokens)[1]
    return draft, stop


def drafted(draft: Draft, stop: GraphStop, rule: StopRule | None, size: int) -> tuple[Any, Tensor]:
    """One round of ``size`` requests: what is verified, and its signals."""
    tap = stop._tap
    tap._round_first = torch.full((size, 2), 0.6, device=draft.device)
    stop.begin(rule)
    draft.first.copy_((torch.arange(len(draft.first))[:, None] * 7 + size) % VOCAB)
    draft.forwards.zero_()
    verify = draft.draft(size)
    tap._next_first = torch.zeros(size, 2, device=draft.device)
    slots = torch.arange(size, device=draft.device)
    return verify, tap.finish_round(slots, draft.speculative_num_steps)


def check_stops(draft: Draft, stop: GraphStop, size: int) -> None:
    """Rounds of ``size`` requests that stop after each number of drafts, beside whole ones."""
    steps = draft.speculative_num_steps
    whole, said = drafted(draft, stop, None, size)
    tokens = whole.draft_token.clone()
    assert stop.decided() is None and int(draft.forwards) == steps - 1
    chain = torch.arange(1, steps + 1, device=draft.device)
    for made in (*range(1, steps + 1), 1):
        verify, signals = drafted(draft, stop, stop_after(made, size), size)
        assert int(draft.forwards) == made - 1
        assert stop.decided() is not None and int(stop.made) == made
        assert torch.equal(verify.draft_token[:, :made], tokens[:, :made])
        assert ((verify.draft_token >= 0) & (verify.draft_token < VOCAB)).all()
        links = torch.where(chain <= made, chain, -1)
        assert (verify.retrieve_next_token[:, :-1] == links).all()
        assert torch.equal(signals[:, :made], said[:, :made])
        assert signals[:, made:steps].isnan().all()
        assert not draft.positions.any()
    again, _ = drafted(draft, stop, None, size)
    assert torch.equal(again.draft_token, tokens)
    assert (again.retrieve_next_token == whole.retrieve_next_token).all()
