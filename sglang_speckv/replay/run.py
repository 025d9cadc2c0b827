"""A whole replay: traces in, every arm's figures out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sglang_speckv.ab.intervals import Ratio
from sglang_speckv.config import ConfigError
from sglang_speckv.offline.artifact import check_identity, load_artifact
from sglang_speckv.offline.columns import Columns, identity_of, read_columns
from sglang_speckv.offline.records import trace_hashes
from sglang_speckv.offline.round_cost import MeasuredCost, RoundCost
from sglang_speckv.policy.prior import OFF, Prior
from sglang_speckv.replay import score
from sglang_speckv.replay.arms import NONE, Setting, arm_names, run_arm
from sglang_speckv.replay.cost import read_cost
from sglang_speckv.replay.play import Played, Table, always, tiers_for
from sglang_speckv.replay.rounds import Rounds, drafted_to, recorded_rounds, regroup

_SANE_NOISE = 5.0
"""A round beyond this many times its modelled time was no clean round."""


@dataclass(frozen=True)
class ReplayOptions:
    traces: tuple[Path, ...]
    policies: tuple[str, ...] = ()
    candidate_steps: tuple[int, ...] | None = None
    cost: Path | None = None
    draft_cost: float | None = None
    verify_width: float = 0.0
    regroup: int | None = None
    traffic: str = "mixed"
    lag: int | None = None
    complete: bool = False
    artifact: Path | None = None
    profiled: bool = True


@dataclass(frozen=True, eq=False)
class Arm:
    """``cpu``: seconds of one core that the replay took."""

    name: str
    played: Played
    earned: score.Earned
    rate: float
    cpu: float


@dataclass(frozen=True, eq=False)
class Replay:
    """``ratios``: tokens per second over the best static arm's, per arm. ``groups``: the same
    over each load's and each label's own best static arm: name -> (best arm, ratios)."""

    options: ReplayOptions
    setting: Setting
    arms: dict[str, Arm]
    best_static: str
    ratios: dict[str, Ratio]
    groups: dict[str, tuple[str, dict[str, Ratio]]]

    def regret(self, name: str) -> float:
        """Share of the oracle's tokens per second that the arm leaves."""
        return 1.0 - self.arms[name].rate / self.arms["oracle"].rate


def prepare(options: ReplayOptions) -> Setting:
    """Read, group and price the rounds. Raises :class:`ConfigError`."""
    columns = read_columns(options.traces)
    tiers = tiers_for(options.candidate_steps, columns)
    cost = read_cost(options.cost, options.draft_cost, options.verify_width, columns)
    if options.complete:
        columns = drafted_to(columns, tiers[-1])
    rounds = (
        recorded_rounds(columns)
        if options.regroup is None
        else regroup(columns, options.regroup, options.traffic)
    )
    lag = int(columns.header.overlap) if options.lag is None else options.lag
    if not 0 <= lag <= 8:
        raise ConfigError(f"--lag {lag} is not a number of rounds in 0..8")
    tokens, known = rounds.outcomes(tiers)
    seconds = cost.times(rounds.size, tiers)
    table = Table(tiers, tokens, known, seconds, _noise(rounds, cost))
    prior, in_sample = _prior(options, columns)
    cells = score.cells_of(rounds)
    return Setting(rounds, table, cells, cost, lag, prior, options.profiled, in_sample)


def _prior(options: ReplayOptions, columns: Columns) -> tuple[Prior, bool]:
    """What an artifact of this very pair knows, its cost table aside (times are the replay's), and
    whether it was learned from these traces."""
    if options.artifact is None:
        return Prior(), False
    loaded = load_artifact(options.artifact)
    check_identity(loaded, identity_of(columns.header))
    learned = {trace.get("sha256") for trace in loaded.provenance.get("traces", ())}
    here = {trace["sha256"] for trace in trace_hashes(options.traces)}
    return replace(loaded.prior, cost=None), bool(learned & here)


def run_replay(options: ReplayOptions, say: Callable[[str], None] = lambda _: None) -> Replay:
    """Replay every arm. Raises :class:`ConfigError`."""
    at = prepare(options)
    arms: dict[str, Arm] = {}
    for name in arm_names(
        at.tiers, options.policies, at.cost.knows_off, weights=at.prior.mlp is not None
    ):
        say(f"replaying {name}")
        arms[name] = _arm(name, at)
    static = [name for name in arms if name.startswith("static:")]
    earned = {name: arm.earned for name, arm in arms.items()}
    work = at.cells.work
    best = max(static, key=lambda name: arms[name].rate)
    groups = {}
    for group, cells in _groups(at.cells).items():
        own = max(static, key=lambda name: score.rate(earned[name], work, cells))
        groups[group] = own, score.compare(earned, own, work, cells)
    return Replay(options, at, arms, best, score.compare(earned, best, work), groups)


def _arm(name: str, at: Setting) -> Arm:
    started = time.process_time()
    if name == NONE:
        played, table = always(0, at.rounds), off_table(at)
    else:
        played, table = run_arm(name, at), at.table
    cpu = time.process_time() - started
    earned = score.earn(at.rounds, table, at.cells, played)
    return Arm(name, played, earned, score.rate(earned, at.cells.work), cpu)


def off_table(at: Setting) -> Table:
    """One tier that drafts nothing on a server that never drafts."""
    n = len(at.rounds)
    return replace(
        at.table,
        tiers=(0,),
        tokens=at.rounds.live[:, None],
        known=np.ones((n, 1), dtype=bool),
        seconds=at.cost.times(at.rounds.size, [OFF]),
    )


def _groups(cells: score.Cells) -> dict[str, list[int]]:
    """Cells by load and by label, where there is more than one of them."""
    groups: dict[str, list[int]] = {}
    for kind, names in (("load", cells.loads), ("label", cells.labels)):
        for name in dict.fromkeys(names):
            if len(set(names)) > 1:
                groups[f"{kind} {name or '(none)'}"] = [
                    i for i, other in enumerate(names) if other == name
                ]
    return groups


def _noise(rounds: Rounds, cost: RoundCost) -> np.ndarray:
    """Measured over modelled time of each round; 1 where times are assumed or regrouped."""
    if rounds.regrouped or not isinstance(cost, MeasuredCost) or np.isnan(rounds.seconds).all():
        return np.ones(len(rounds))
    depths = sorted(set(rounds.drafted.tolist()))
    at = np.searchsorted(depths, rounds.drafted)
    modelled = cost.times(rounds.size, depths)[np.arange(len(rounds)), at]
    noise = rounds.seconds / modelled
    return np.where((noise > 1 / _SANE_NOISE) & (noise < _SANE_NOISE), noise, np.nan)
