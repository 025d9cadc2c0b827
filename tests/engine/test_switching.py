"""A switch of depth on SGLang's own worker class leaves nothing behind: SGLang's adds an entry to
a list that is never trimmed and a line to the log, SpecKV's adds neither."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from sglang_speckv.config import Shape, SpecKVConfig
from sglang_speckv.srt.counters import Counters
from sglang_speckv.srt.engine import prepare
from sglang_speckv.srt.fuse import Fuse

pytestmark = pytest.mark.engine

STEPS = (3, 0, 1)
ROUNDS = 20


@pytest.fixture
def worker() -> Iterator[Any]:
    """An EAGLE worker with SpecKV mixed in, everything around it stubbed."""
    prepare()
    from sglang.srt.runtime_context import get_context
    from sglang.srt.speculative.eagle_worker_v2 import EAGLEWorkerV2

    from sglang_speckv.srt.worker import SpecKVMixin

    class Worker(SpecKVMixin, EAGLEWorkerV2):
        def __init__(self) -> None:
            self.speculative_num_steps, self.speculative_num_draft_tokens = 1, 2
            self._draft_worker, self._target_worker = MagicMock(), MagicMock()
            self._config = SpecKVConfig(candidate_steps=STEPS)
            self.tier = 1
            self.speckv = SimpleNamespace(counters=Counters(self._config))
            self._fuse = Fuse(lambda: None)
            self._chain_buffers = {
                Shape(steps, steps + 1): (f"parents {steps}", "scores") for steps in STEPS
            }

    with get_context().override_server_args(tp_size=1):
        yield Worker()


def left_behind(
    worker: Any, apply: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, int]:
    """Entries of SGLang's override log and lines of its log after many switches."""
    from sglang.srt.runtime_context import get_context, get_spec
    from sglang.srt.speculative import eagle_worker_v2

    lines: list[str] = []
    monkeypatch.setattr(eagle_worker_v2, "log_info_on_rank0", lambda _, line: lines.append(line))
    before = len(get_context().overrides_log())
    for steps in STEPS * ROUNDS:
        tier = MagicMock(speculative_num_steps=steps, speculative_num_draft_tokens=steps + 1)
        apply(tier)
        draft, target = worker._draft_worker, worker._target_worker.model_runner
        assert get_spec().speculative_num_steps == worker.speculative_num_steps == steps
        assert get_spec().speculative_num_draft_tokens == draft.speculative_num_draft_tokens
        assert draft.speculative_num_draft_tokens == steps + 1
        assert draft.draft_attn_backend is tier.draft_attn_backend
        assert draft.cuda_graph_runner is tier.cuda_graph_runner
        assert target.attn_backend is tier.target_attn_backend
        assert target.decode_cuda_graph_runner is tier.target_graph_runner
    return len(get_context().overrides_log()) - before, len(lines)


def test_a_switch_of_speckv_leaves_nothing(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert left_behind(worker, worker.apply_runtime_state, monkeypatch) == (0, 0)
    assert worker.speckv.counters.switches == len(STEPS) * ROUNDS
    assert worker._draft_worker._topk1_parents_prealloc == f"parents {STEPS[-1]}"


def test_a_switch_of_sglang_leaves_an_entry_and_a_line(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the test above looks in the wrong places."""
    sglangs = super(type(worker).__mro__[1], worker).apply_runtime_state
    switches = len(STEPS) * ROUNDS
    assert left_behind(worker, sglangs, monkeypatch) == (switches, switches)


def test_a_switch_that_fails_leaves_the_tier_that_sglang_switched_to(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker._fuse.armed = True
    monkeypatch.setattr(worker, "_switch", MagicMock(side_effect=RuntimeError))
    worker.apply_runtime_state(MagicMock(speculative_num_steps=3, speculative_num_draft_tokens=4))
    assert worker.tier == worker.speculative_num_steps == 3
    assert worker._fuse.failures == {"switching the depth": 1}
