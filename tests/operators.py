"""How many operators of torch a decode round dispatches on the host, and for whom.

An operator is SpecKV's where SpecKV's code asked for it, itself or by one of SGLang's helpers. A
reduction of logits counts as one reduction and no operators: on CUDA it is two Triton kernels over
one allocation, elsewhere a dozen operators of torch. What a graph replays is the device's; the
plugin's part of it is counted when the graph is captured.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

EVERY = 4
"""Rounds of which one is counted."""
ENOUGH = 20
"""Rounds of one depth and size that are counted: counting slows a round down."""
OURS = "sglang_speckv."
ENGINE = "sglang_speckv.srt.cpu."
"""The CPU engine, which serves without SpecKV too."""
HELPERS = ("sglang.srt.managers.utils", "sglang.srt.distributed.")
"""Of SGLang's: they copy and communicate for whoever calls them."""
COPIES = "tests.rehearsal.poison"
"""The stand-in for copies to the host, which is not counted at all."""
OURSELVES = ("tests.operators", "tests.rehearsal.")
"""These and the stand-ins for a device are between an operator and who asked for it."""
MOST = 17
"""SpecKV's in one round on the host, where drafting runs in a graph, without the copy to the host,
which is one more of those that SGLang makes. The first draft's signals are looked up and noted, all
are joined and packed, and where the draft slept its missed token is noted; views and memory are
most of them."""
MOST_PER_DRAFT = 2
"""Of each draft forward that runs in no graph: views of where its reduction goes."""
_LINE = (
    "of depth {} with {} requests: {} operators, {} of SpecKV, {} reductions; in graphs {}, {}, {}"
)
_COUNTED = "_speckv_counted"


@dataclass
class Counts:
    """Of one round. ``in_graphs`` and what follows: SpecKV's in what was replayed."""

    operators: int = 0
    ours: int = 0
    reductions: int = 0
    in_graphs: int = 0
    reductions_in_graphs: int = 0
    decisions_in_graphs: int = 0


class Operators(TorchDispatchMode):
    """Counts into :attr:`counts` while it is entered."""

    entered: Operators | None = None

    def __init__(self, counts: Counts | None = None) -> None:
        super().__init__()
        self.counts = counts or Counts()
        self.silent = 0
        """Above 0 inside of what counts as something else."""

    def __enter__(self) -> Operators:
        Operators.entered = self
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        Operators.entered = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.silent and (code := nearest_code()) != COPIES:
            self.counts.operators += 1
            self.counts.ours += code == OURS
        return func(*args, **(kwargs or {}))


def nearest_code() -> str | None:
    """Whose code asks for the operator that is dispatched: :data:`OURS`, :data:`COPIES` or
    another's."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name == COPIES or name.startswith(ENGINE):
            return name
        if name.startswith(OURS):
            return OURS
        if name.startswith(("sglang.", "tests.")) and not name.startswith((*HELPERS, *OURSELVES)):
            return name
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _apart(original: Callable[..., Any], note: Callable[[Counts], None]) -> Callable[..., Any]:
    """``original``, its operators not counted and ``note`` called instead."""

    def call(*args: Any, **kwargs: Any) -> Any:
        mode = Operators.entered
        if mode is None:
            return original(*args, **kwargs)
        if not mode.silent:
            note(mode.counts)
        mode.silent += 1
        try:
            return original(*args, **kwargs)
        finally:
            mode.silent -= 1

    return call


def _add_reduction(counts: Counts) -> None:
    counts.reductions += 1


def count_reductions() -> None:
    """Once in every process."""
    from sglang_speckv.srt import signals

    signals.reduce_logits = _apart(signals.reduce_logits, _add_reduction)


def count_rounds() -> None:
    """In every process that may be a scheduler's: a line of its log for a round now and then, from
    its launch to the next result."""
    from sglang.srt.managers.scheduler import Scheduler

    if getattr(Scheduler, _COUNTED, False):  # by another plugin
        return
    setattr(Scheduler, _COUNTED, True)
    count_reductions()
    launch, learn = Scheduler.run_batch, Scheduler.process_batch_result
    turn = itertools.count()
    counted: list[tuple[int, int, Counts]] = []
    times: Counter[tuple[int, int]] = Counter()

    def run_batch(self: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        if not batch.forward_mode.is_decode() or next(turn) % EVERY:
            return launch(self, batch, *args, **kwargs)
        size = batch.batch_size()
        if times[depth_of(self), size] >= ENOUGH:
            return launch(self, batch, *args, **kwargs)
        with Operators() as mode:
            result = launch(self, batch, *args, **kwargs)
        times[depth_of(self), size] += 1
        counted[:] = [(depth_of(self), size, mode.counts)]
        return result

    def depth_of(scheduler: Any) -> int:
        return getattr(scheduler.model_worker, "speculative_num_steps", -1)

    def process_batch_result(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not counted:
            return learn(self, *args, **kwargs)
        depth, size, counts = counted.pop()
        with Operators(counts):
            result = learn(self, *args, **kwargs)
        found = (getattr(counts, field.name) for field in fields(counts))
        print(_LINE.format(depth, size, *found), flush=True)
        return result

    Scheduler.run_batch, Scheduler.process_batch_result = run_batch, process_batch_result


def count_graphs() -> None:
    """Once in every process whose graphs are tapes."""
    from sglang_speckv.srt import graph_stop, signals
    from tests.rehearsal.tape import Tape

    add, replay = Tape.add, Tape.replay
    inside = []

    def one_kernel(original: Callable[..., None], name: str) -> Callable[..., None]:
        def call(*args: Any) -> None:
            if Tape.capturing is not None:
                counts = _of(Tape.capturing)
                setattr(counts, name, getattr(counts, name) + 1)
            inside.append(1)
            try:
                original(*args)
            finally:
                inside.pop()

        return call

    def add_step(self: Tape, step: Any, *memory: Any) -> None:
        _of(self).in_graphs += not inside and nearest_code() == OURS
        add(self, step, *memory)

    def note(tape: Tape, counts: Counts) -> None:
        for name in ("in_graphs", "reductions_in_graphs", "decisions_in_graphs"):
            setattr(counts, name, getattr(counts, name) + getattr(_of(tape), name))

    def replay_apart(self: Tape) -> None:
        _apart(replay, partial(note, self))(self)

    signals.reduce_logits = one_kernel(signals.reduce_logits, "reductions_in_graphs")
    graph_stop.decide_torch = one_kernel(graph_stop.decide_torch, "decisions_in_graphs")
    Tape.add, Tape.replay = add_step, replay_apart  # type: ignore[method-assign]


def most(num_steps: int, captured: bool) -> int:
    """SpecKV's operators on the host in one round of that depth."""
    return MOST + (0 if captured else MOST_PER_DRAFT * max(num_steps - 1, 0))


def _of(tape: Any) -> Counts:
    """SpecKV's part in it."""
    counts: Counts = vars(tape).setdefault("counts", Counts())
    return counts


def read(log: str, requests: int = 1) -> dict[int, Counts]:
    """By depth, of rounds with so many requests: the fewest of each kind. A round that wakes a
    draft or meets a new request has more."""
    pattern = _LINE.replace("{}", r"(-?\d+)")
    rounds: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    for match in re.finditer(pattern, log):
        depth, size, *found = map(int, match.groups())
        if size == requests:
            rounds[depth].append(tuple(found))
    return {depth: Counts(*map(min, zip(*found, strict=True))) for depth, found in rounds.items()}
