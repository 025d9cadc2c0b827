"""A whole replay: positions in, every arm's figures out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from sglang_speckv.ab.intervals import Ratio
from sglang_speckv.config import DEFAULT_CANDIDATE_STEPS, ConfigError
from sglang_speckv.offline.artifact import check_identity, load_artifact
from sglang_speckv.offline.columns import Columns, identity_of, read_columns
from sglang_speckv.offline.round_cost import RoundCost
from sglang_speckv.policy import Prior
from sglang_speckv.policy.cost import TimedRound
from sglang_speckv.policy.prior import OFF
from sglang_speckv.replay.arms import NONE, ORACLE, Oracle, names_of, policy_of
from sglang_speckv.replay.cost import read_cost
from sglang_speckv.replay.positions import SUFFIX, Positions, from_trace, read_positions
from sglang_speckv.replay.score import Earned, earned, over_best
from sglang_speckv.replay.walk import Played, Price, Walk, order_of, play

TRAFFIC = ("mixed", "phases")
PROFILED_SIZES = (1, 4, 16, 64)
_ORACLE_TURNS = 2
_shared: tuple[Setting, ReplayOptions]


@dataclass(frozen=True)
class ReplayOptions:
    """``requests`` are served at a time; each arm goes through all requests ``passes`` times in
    each of ``seeds`` orders, on ``jobs`` processes, 0 for one per core."""

    paths: tuple[Path, ...]
    policies: tuple[str, ...] = ()
    candidate_steps: tuple[int, ...] | None = None
    cost: Path | None = None
    draft_cost: float | None = None
    verify_width: float = 0.0
    requests: tuple[int, ...] = (1,)
    traffic: str = "mixed"
    seeds: int = 4
    passes: int = 4
    lag: int = 0
    artifact: Path | None = None
    profiled: bool = True
    captured: bool = False
    jobs: int = 1


@dataclass(frozen=True, eq=False)
class Setting:
    """What the arms of one replay have in common."""

    positions: Positions
    tiers: tuple[int, ...]
    cost: RoundCost
    prior: Prior

    def price(self, size: int) -> Price:
        """Of a round of ``size`` requests."""
        times = self.cost.times(np.array([size]), self.tiers)[0].tolist()
        asleep = self.off(size) if self.sleeps else None
        seconds = dict(zip(self.tiers, times, strict=True))
        return Price(seconds, asleep, self.cost.token, self.cost.draft)

    @property
    def sleeps(self) -> bool:
        """A separate draft can sleep through a round at depth 0."""
        return self.cost.knows_off and self.positions.source.algorithm == "STANDALONE"

    def off(self, size: int) -> float | None:
        if not self.cost.knows_off:
            return None
        return float(self.cost.times(np.array([size]), [OFF])[0, 0])

    def profile(self, size: int) -> list[TimedRound]:
        """At the sizes that a server would time."""
        sizes = [n for n in PROFILED_SIZES if n < 4 * size]
        tiers = (OFF, *self.tiers) if self.sleeps and 0 in self.tiers else self.tiers
        times = self.cost.times(np.array(sizes), tiers).tolist()
        return [
            TimedRound(n, max(steps, 0), seconds, steps == OFF)
            for n, row in zip(sizes, times, strict=True)
            for steps, seconds in zip(tiers, row, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class Arm:
    """``cpu``: seconds of one core that it took."""

    walks: Sequence[Played]
    earned: Earned
    cpu: float


@dataclass(frozen=True, eq=False)
class Cell:
    """So many requests at a time. ``ratios`` are over the best fixed depth, per arm."""

    requests: int
    arms: dict[str, Arm]
    best_static: str
    ratios: dict[str, Ratio]


@dataclass(frozen=True, eq=False)
class Replay:
    options: ReplayOptions
    setting: Setting
    cells: Sequence[Cell]


def prepare(options: ReplayOptions) -> Setting:
    """Raises :class:`ConfigError`."""
    if options.traffic not in TRAFFIC:
        raise ConfigError(
            f"--traffic {options.traffic!r} is not one of {', '.join(TRAFFIC)}; choose one of them"
        )
    walked = [path for path in options.paths if path.suffix == SUFFIX]
    if walked and len(options.paths) > 1:
        raise ConfigError(f"{walked[0]} is a file of positions; replay it alone")
    columns = None if walked else read_columns(options.paths)
    positions = read_positions(walked[0]) if walked else None
    tiers = _tiers(options.candidate_steps, columns, positions)
    if positions is None:
        assert columns is not None
        positions = from_trace(columns, tiers[-1])
    check_enough(options.requests, len(positions.source.requests))
    cost = read_cost(options.cost, options.draft_cost, options.verify_width, columns)
    return Setting(positions, tiers, cost, _prior(options.artifact, columns))


def check_enough(sizes: Sequence[int], there: int) -> None:
    """Raise :class:`ConfigError` where more requests are to be served at a time than there are."""
    if max(sizes) > there:
        raise ConfigError(
            f"--requests {max(sizes)}: there are {there} requests in all, too few to serve so many "
            "at a time; ask for fewer"
        )


def run_replay(options: ReplayOptions, say: Callable[[str], None] = lambda _: None) -> Replay:
    """Raises :class:`ConfigError`."""
    at = prepare(options)
    names = names_of(options.policies, at.tiers, at.cost.knows_off, at.prior.mlp is not None)
    cells = []
    with _everywhere(at, options) as each:
        for size in options.requests:
            arms: dict[str, Arm] = {}
            for name in names:
                say(f"{size} at a time: {name}")
                arms[name] = _arm(name, each, at, options, size, arms)
            static = [name for name in names if name.startswith("static:")]
            best = max(static, key=lambda name: arms[name].earned.rate)
            ratios = over_best({name: arm.earned for name, arm in arms.items()}, static)
            cells.append(Cell(size, arms, best, ratios))
    return Replay(options, at, cells)


def walk_of(at: Setting, options: ReplayOptions, size: int, seed: int) -> Walk:
    rng = np.random.default_rng([seed, size])
    order = order_of(at.positions, options.traffic, options.passes, rng)
    return Walk(at.positions, order, size, options.lag)


@contextmanager
def _everywhere(at: Setting, options: ReplayOptions) -> Iterator[Callable[..., Iterable[Any]]]:
    """A ``map`` over the processes that were asked for."""
    jobs = options.jobs or os.cpu_count() or 1
    if jobs == 1:
        _share(at, options)
        yield map
        return
    context = get_context("spawn")  # a fork of a process with threads may hang
    with ProcessPoolExecutor(jobs, context, _share, (at, options)) as workers:
        yield workers.map


def _share(at: Setting, options: ReplayOptions) -> None:
    """What the walks of a process have in common: too large to be sent with each."""
    global _shared
    _shared = at, options


def _arm(
    name: str,
    each: Callable[..., Iterable[Any]],
    at: Setting,
    options: ReplayOptions,
    size: int,
    before: dict[str, Arm],
) -> Arm:
    """An oracle prices time by what it earns itself, turn by turn, at first by the best rate."""
    count = len(at.positions.source.requests)
    rate = max((arm.earned.rate for arm in before.values()), default=0.0)
    walks: Sequence[Played] = ()
    cpu = 0.0
    for _ in range(_ORACLE_TURNS if name == ORACLE else 1):
        serve = partial(_timed, name, size, rate)
        walks, seconds = zip(*each(serve, range(options.seeds)), strict=True)
        cpu += sum(seconds)
        rate = earned(walks, count).rate
    return Arm(walks, earned(walks, count), cpu)


def _timed(name: str, size: int, rate: float, seed: int) -> tuple[Played, float]:
    """One walk, and the seconds of one core that it took."""
    started = time.process_time()
    at, options = _shared
    if name == ORACLE:
        walk = _foreseen(at, options, size, rate, seed)
    else:
        walk = _walk_once(name, at, options, size, seed)
    return walk, time.process_time() - started


def _walk_once(name: str, at: Setting, options: ReplayOptions, size: int, seed: int) -> Played:
    """One policy through all requests in one order."""
    price = at.price(size)
    if name == NONE:
        price = Price({0: at.off(size) or 0.0})
    profile = at.profile(size) if options.profiled else ()
    policy = policy_of(name, at.tiers, at.prior, profile, options.captured)
    noise, walk = np.random.default_rng([seed, 1]), walk_of(at, options, size, seed)
    return play(policy, walk, price, options.lag, noise, captured=options.captured)


def _foreseen(at: Setting, options: ReplayOptions, size: int, rate: float, seed: int) -> Played:
    """Its draft wakes for free, or an oracle of one round would be behind a server that always
    sleeps."""
    price = at.price(size)
    if price.asleep is not None:
        price = Price(price.seconds | {0: price.asleep})
    walk = walk_of(at, options, size, seed)
    return play(Oracle(walk, at.tiers, price, rate), walk, price)


def _prior(artifact: Path | None, columns: Columns | None) -> Prior:
    """What an artifact knows, its cost table aside: times are the replay's. One of another pair
    than a trace's is refused; positions do not say enough of theirs to tell."""
    if artifact is None:
        return Prior()
    loaded = load_artifact(artifact)
    if columns is not None:
        check_identity(loaded, identity_of(columns.header))
    return replace(loaded.prior, cost=None)


def _tiers(
    wanted: Sequence[int] | None, columns: Columns | None, positions: Positions | None
) -> tuple[int, ...]:
    """The candidates asked for, else those of the trace's servers, else the default ones."""
    if positions is not None:
        deepest, named = positions.depth, set(DEFAULT_CANDIDATE_STEPS)
    else:
        assert columns is not None
        deepest = int(columns.num_steps.max(initial=0))
        named = {k for header in columns.headers for k in header.candidate_steps}
    if wanted is None:
        return tuple(sorted({0, *(k for k in named if 0 <= k <= deepest), deepest}))
    if max(wanted) > deepest:
        raise ConfigError(
            f"--candidate-steps {max(wanted)} is deeper than the {deepest} that were drafted; give "
            "fewer depths"
        )
    return tuple(sorted(set(wanted)))
