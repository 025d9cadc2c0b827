"""The draft's sleep on a worker of the engine's shape: who misses what, and what is read when."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from sglang_speckv.srt.fuse import Fuse
from sglang_speckv.srt.sleep import DraftSleep

WINDOW = 4
PROMPT = 5


class Req:
    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.tokens = [100 * slot + i for i in range(PROMPT + 1)]  # the last one is the newest

    @property
    def length(self) -> int:
        """Tokens that the target has in its cache."""
        return len(self.tokens) - 1


class Worker:
    """Calls what SGLang's worker calls. The draft's cache is a table: per slot and position the
    token that the draft read there, SGLang's input of a draft being shifted by one."""

    device = "cpu"

    def __init__(self) -> None:
        self.read = [[-1] * 64 for _ in range(4)]
        self.passes: list[list[int]] = []
        self.news: list[Any] = []
        self.speculative_num_steps = 3
        self.speckv = SimpleNamespace(awake=False, fuse=Fuse(lambda: None))
        self.speckv.fuse.armed = True
        self._draft_worker = SimpleNamespace(
            _draft_extend_for_decode=self.extend,
            _draft_extend_for_prefill=self.prefill,
            draft=lambda batch: "drafts",
        )
        self.sleep = DraftSleep(self, slots=4, window=WINDOW)
        self.req_to_token = torch.arange(4 * 64).view(4, 64)

    def admit(self, slot: int) -> Req:
        req = Req(slot)
        self.read[slot][: req.length] = req.tokens[1:]
        DraftSleep.prefilled([req])
        return req

    def batch(self, reqs: list[Req]) -> Any:
        lens = torch.tensor([r.length for r in reqs])
        newest = torch.tensor([r.tokens[-1] for r in reqs])
        return SimpleNamespace(
            reqs=reqs,
            seq_lens=lens,
            seq_lens_cpu=lens.clone(),
            req_pool_indices=torch.tensor([r.slot for r in reqs]),
            req_to_token_pool=SimpleNamespace(req_to_token=self.req_to_token),
            spec_info=SimpleNamespace(bonus_tokens=newest, topk_p=None, topk_index=None),
        )

    def round(self, reqs: list[Req], num_steps: int) -> None:
        """One token per request, whatever the depth."""
        self.speculative_num_steps = num_steps
        batch, draft = self.batch(reqs), self._draft_worker
        if num_steps:
            assert draft.draft(batch) == "drafts"
        else:
            self.sleep.before_depth_0(batch)
        for req in reqs:
            req.tokens.append(req.tokens[-1] + 1)
        newest = torch.tensor([r.tokens[-1] for r in reqs])
        result = SimpleNamespace(next_draft_input=SimpleNamespace(bonus_tokens=newest))
        draft._draft_extend_for_decode(batch, result, kv_loc_plan=None)

    def extend(self, batch: Any, result: Any, kv_loc_plan: Any) -> None:
        for req, length in zip(batch.reqs, batch.seq_lens.tolist(), strict=True):
            self.read[req.slot][length] = req.tokens[-1]

    def prefill(self, batch: Any, states: None, newest: torch.Tensor) -> Any:
        """SGLang's rotation of a prompt's ids, and where it writes."""
        self.passes.append(batch.extend_lens)
        at = 0
        for row, n in enumerate(batch.extend_lens):
            ids = [*batch.input_ids[at + 1 : at + n].tolist(), int(newest[row])]
            for loc, token in zip(batch.out_cache_loc[at : at + n].tolist(), ids, strict=True):
                self.read[loc // 64][loc % 64] = token
            at += n
        assert at == batch.extend_num_tokens
        return SimpleNamespace(topk_p="p", topk_index="i")

    def _stub_skipped_draft_extend(self, batch: Any, result: Any) -> None:
        pass

    def draft_caught_up(self, batch: Any) -> None:
        self.news.append(batch)

    def is_whole(self, req: Req) -> bool:
        return self.read[req.slot][: req.length] == req.tokens[1:]


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The few names of SGLang's that are imported on the way."""
    from contextlib import nullcontext

    modules = {
        "sglang.srt.model_executor.forward_batch_info": {"ForwardMode": SimpleNamespace(EXTEND=1)},
        "sglang.srt.layers.moe.utils": {
            "speculative_moe_a2a_backend_context": nullcontext,
            "speculative_moe_backend_context": nullcontext,
        },
        "sglang.srt.speculative.spec_utils": {"draft_tp_context": nullcontext},
    }
    for name, values in modules.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def worker() -> Worker:
    worker = Worker()
    worker._draft_worker.parallel_layout = None
    return worker


@pytest.mark.parametrize("asleep", [1, 2, 3, 4])
def test_what_was_missed_is_read_at_once(worker: Worker, asleep: int) -> None:
    reqs = [worker.admit(1), worker.admit(3)]
    worker.round(reqs, 3)
    for _ in range(asleep):
        worker.round(reqs, 0)
    assert not any(map(worker.is_whole, reqs))
    assert worker.passes == []
    worker.round(reqs, 1)
    assert all(map(worker.is_whole, reqs))
    assert worker.passes == [[asleep, asleep]]
    assert len(worker.news) == 1
    worker.round(reqs, 1)
    assert len(worker.passes) == 1


def test_a_request_that_came_later_misses_less(worker: Worker) -> None:
    old = worker.admit(0)
    worker.round([old], 0)
    worker.round([old], 0)
    new, newer = worker.admit(2), worker.admit(1)
    worker.round([new, old], 0)
    worker.round([newer, old, new], 2)
    assert worker.passes == [[1, 3, 1]]  # the newer one's last token is read again
    assert all(map(worker.is_whole, (old, new, newer)))


def test_a_request_that_sits_a_round_out_keeps_its_place(worker: Worker) -> None:
    here, away = worker.admit(0), worker.admit(1)
    worker.round([here, away], 0)
    worker.round([here], 2)
    assert worker.is_whole(here)
    worker.round([away, here], 2)
    assert worker.is_whole(away)


def test_a_full_window_is_read_without_drafting(worker: Worker) -> None:
    reqs = [worker.admit(0), worker.admit(1)]
    for _ in range(3 * WINDOW):
        worker.round(reqs, 0)
    assert worker.passes == [[WINDOW, WINDOW]] * 2
    worker.round(reqs, 2)
    assert all(map(worker.is_whole, reqs))


def test_a_policy_may_keep_it_awake(worker: Worker) -> None:
    req = worker.admit(0)
    worker.round([req], 0)
    assert worker.sleep.slept and not worker.is_whole(req)
    worker.speckv.awake = True
    worker.round([req], 0)
    assert not worker.sleep.slept and worker.is_whole(req)
    assert worker.passes == [[1]]
    worker.round([req], 3)
    assert worker.passes == [[1]]


def test_stays_awake_where_lengths_are_on_the_device_only(worker: Worker) -> None:
    req = worker.admit(0)
    original = worker.batch
    worker.batch = lambda reqs: SimpleNamespace(**vars(original(reqs)) | {"seq_lens_cpu": None})
    worker.round([req], 0)
    assert worker.is_whole(req)


def test_prefill_again_after_a_retraction(worker: Worker) -> None:
    req = worker.admit(0)
    worker.round([req], 0)
    worker.read[0][: req.length] = req.tokens[1:]
    DraftSleep.prefilled([req])
    worker.round([req], 2)
    assert worker.passes == []


def test_a_catch_up_that_fails_is_not_tried_again(worker: Worker) -> None:
    req = worker.admit(0)
    worker.round([req], 0)
    worker._draft_worker._draft_extend_for_prefill = lambda *_: 1 / 0
    for _ in range(2):
        worker.round([req], 2)
    assert list(worker.speckv.fuse.failures.values()) == [1]
    assert not worker.is_whole(req)


def test_a_draft_that_cannot_sleep_is_extended(worker: Worker) -> None:
    req = worker.admit(0)
    worker._stub_skipped_draft_extend = lambda *_: 1 / 0  # type: ignore[method-assign, assignment]
    worker.round([req], 0)
    assert worker.is_whole(req) and not worker.sleep.slept
    assert list(worker.speckv.fuse.failures.values()) == [1]
