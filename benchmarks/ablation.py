"""What every part and every constant of the default policy earns: replays without it.

Each variant serves the same requests in the same orders as the whole policy does, and its tokens
per second are shown over the whole policy's. A part is taken out; a constant is halved and doubled.
Walked replays take the round times that were recorded; some machines are not what the start-up
profile says. Stresses are synthetic: they change what no recorded trace changes.

    python -m benchmarks.ablation --out examples/results/ablation.json

Two to three hours on two cores. What was replayed is written after each case, to
``ablation.part.json``, and the same command goes on from there. Parts come first, constants then;
``--only PATTERN`` takes the variants whose name matches.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import msgspec
import numpy as np
import typer
from scipy import stats

from sglang_speckv.files import write_json
from sglang_speckv.policy import acceptance, cost, kernels, logistic, stopping, throughput
from sglang_speckv.policy.base import Batch, Decision, Round
from sglang_speckv.progress import Screen
from sglang_speckv.provenance import code_digest, provenance
from sglang_speckv.replay.run import ReplayOptions, Setting, prepare, walk_of
from sglang_speckv.replay.score import Earned, earned, over_best
from sglang_speckv.replay.walk import Price, play
from tests.unit.policy.simulate import STRONG, USELESS, WEAK, Cost, Engine, Noise, Phase

ROOT = Path(__file__).parents[1]
TIERS = (0, 1, 2, 3, 5, 7)
STRESS_SEEDS = 8
SPELL = 150
"""Rounds of a machine that is half as fast, by turns with as many that are not; of one that wavers,
those after which it has forgotten how fast it was."""
WAVE = 0.15
"""Spread of its round times, in logs."""


@dataclass(frozen=True)
class Variant:
    """``changes``: of which module or class, which name, its value."""

    changes: Sequence[tuple[Any, str, Any]] = ()
    profiled: bool = True
    may_sleep: bool = True
    stops: bool = True
    widths: bool = True


def _nothing(*_: object) -> None:
    pass


def _without_signals(
    self: acceptance.Acceptance,
    x: np.ndarray,
    requests: Sequence[int] | None = None,
    least: float = 0.0,
    told: Callable[..., Any] = acceptance.Acceptance.tokens,
) -> Any:
    return told(self, np.full(len(x), np.nan), requests, least)


def _as_late_as_dear(self: throughput.Load, _: int, lost: float) -> None:
    self.to_probe = max(acceptance.RECENT, lost / throughput.PROBE_SHARE)


class _Never:
    """An attribute that stays infinite, whatever it is set to."""

    def __get__(self, *_: object) -> float:
        return np.inf

    def __set__(self, *_: object) -> None:
        pass


class _Zeros:
    """An attribute that stays 0 at every index."""

    def __get__(self, *_: object) -> np.ndarray:
        return np.zeros(64)

    def __set__(self, *_: object) -> None:
        pass


NOT_TUNED = ("MAX_SHARE", "MOST_REQUESTS")
"""What bounds memory or tells numbers from noise."""
SHARES = ("ALIKE", "REQUEST_MEMORY")
"""Constants that stay below 1."""
PARTS: dict[str, Variant] = {
    "probes": Variant(
        [(throughput.ThroughputPolicy, "_probe", lambda _, load, weighed, best: best)]
    ),
    "what a probe from depth 0 brought": Variant([(throughput.Load, "probe_cost", _Never())]),
    "own acceptance": Variant(
        [(logistic.OwnAcceptance, "of", lambda _, requests: [0.0] * len(requests))]
    ),
    "first-token signal": Variant(
        [
            (acceptance, "log_odds", lambda _, shape: np.full(shape, np.nan)),
            (acceptance.Acceptance, "tokens", _without_signals),
        ]
    ),
    "neighbours alike": Variant([(logistic, "ALIKE", 0.0)]),
    "drift": Variant([(logistic, "DRIFT", 0.0), (logistic, "SLOPE_DRIFT", 0.0)]),
    "drift of slopes": Variant([(logistic, "SLOPE_DRIFT", 0.0)]),
    "times while serving": Variant([(cost.CostModel, "update", _nothing)]),
    "what the load earns": Variant([(throughput.Load, "earn", _nothing)]),
    "sleep": Variant(may_sleep=False),
    "profile": Variant(profiled=False),
    "profile and first look": Variant([(throughput, "_first_look", lambda *_: [])], profiled=False),
    "stops": Variant(stops=False),
    "widths": Variant(widths=False),
    "stops and widths": Variant(stops=False, widths=False),
    "what a cut saves": Variant([(cost, "SAVING_PRIOR", 1e9)]),
    "round times that drift together": Variant([(cost, "TOGETHER", 0.0)]),
    "expected labels": Variant([(kernels, "imputed", lambda labels, *_: labels.copy())]),
    "surprises clipped": Variant([(cost, "CLIP", 1e9)]),
    "the same surprise twice": Variant([(cost.Times, "_beyond", _Zeros())]),
    "each depth's own drift": Variant([(cost, "APART", 0.0)]),
    "savings forgotten": Variant([(cost, "SAVING_MEMORY", 1e9)]),
    "dear probes later": Variant([(throughput, "PROBE_SHARE", 1e9)]),
    "first probes soon": Variant([(throughput.Load, "probe", _as_late_as_dear)]),
}


def constants() -> dict[str, Variant]:
    """Every number that a module of the policy names, halved and doubled wherever it is read."""
    changes: dict[str, list[tuple[Any, str, Any]]] = {}
    for module in (logistic, acceptance, stopping, cost, throughput):
        for name, value in vars(module).items():
            tuned = re.fullmatch("[A-Z_]+", name) and name not in NOT_TUNED
            if tuned and isinstance(value, int | float):
                for factor, word in ((0.5, "halved"), (2, "doubled")):
                    most = 0.99 if name in SHARES else np.inf
                    change = module, name, type(value)(min(value * factor, most))
                    changes.setdefault(f"{name} {word}", []).append(change)
    return {name: Variant(found) for name, found in changes.items()}


@dataclass(frozen=True)
class Case:
    """``machine``: how it differs from what the profile told."""

    prompts: str
    draft: str
    requests: int
    traffic: str = "mixed"
    machine: str = "as profiled"


DISTURBED = "a disturbed profile"
"""Other work made every round with the draft eight times as long in it."""
DEEP = "a profile of which the deep half was disturbed"
"""In the profile, rounds of more than two drafts took eight times as long."""
MACHINES = (
    "half as fast",
    "long contexts",
    "a dear draft",
    "cuts that save nothing",
    "slow by turns",
    "wavering",
    "pauses",
    DISTURBED,
    DEEP,
)
WALKS = [
    *(
        Case(prompts, draft, requests, traffic)
        for prompts in ("demo", "held-out")
        for draft in ("eagle3", "standalone")
        for requests, traffic in (
            *((n, "mixed") for n in (1, 2, 4, 16)),
            *((n, "phases") for n in (1, 16)),
        )
    ),
    *(
        Case("demo", draft, requests, machine=machine)
        for draft in ("eagle3", "standalone")
        for requests in (1, 16)
        for machine in MACHINES
    ),
]


NARROW = Cost(width=0.02)
TURNS = "signals that turn round"
"""Before it as many rounds are served in which they are true."""
STRESSES: dict[str, tuple[Sequence[Phase], Noise]] = {
    "abrupt changes": (
        [Phase(250, 4, draft, NARROW) for draft in (STRONG, USELESS, STRONG, WEAK)],
        Noise(lag=2),
    ),
    "a draft that becomes useless": (
        [Phase(150, 4, STRONG, NARROW), Phase(150, 4, USELESS, NARROW)],
        Noise(),
    ),
    "a useless draft that becomes strong": (
        [Phase(600, 1, USELESS), Phase(1500, 1, STRONG)],
        Noise(),
    ),
    "a draft that becomes 12 times dearer": (
        [Phase(n, 1, STRONG, Cost(width=0.01, draft=d)) for n, d in ((400, 0.0025), (600, 0.03))],
        Noise(),
    ),
    "a machine that wavers": (
        [Phase(1200, 2, (0.7, 0.7, 0.65, 0.6), Cost(width=0.03))],
        Noise(drift=0.3),
    ),
    "bursts": ([Phase(30, n, (0.7,), NARROW) for n in (1, 16, 2, 64, 4, 1, 32) * 4], Noise()),
    "a long run": ([Phase(10_000, 1, WEAK, Cost(width=0.02))], Noise(content=1.0, signal="true")),
    TURNS: ([Phase(2000, 1, WEAK, Cost(draft=0.008))], Noise(content=1.0, signal="inverted")),
}
LONG = ("a long run", TURNS)
"""Stresses without the constants."""


def price_on(machine: str, price: Price) -> Price:
    """Of a round on that machine."""
    own, warm = price.seconds, price.seconds[0]
    slower: Mapping[str, Callable[[int, float], float]] = {
        "half as fast": lambda _, t: 2.0 * t,
        "long contexts": lambda _, t: t + warm,
        "a dear draft": lambda k, t: t + 0.15 * warm * max(k - 1, 0),
    }
    change = slower.get(machine)
    if machine == "cuts that save nothing":
        return replace(price, token=0.0)
    if change is None:
        return price
    asleep = None if price.asleep is None else change(0, price.asleep)
    token = 2.0 * price.token if machine == "half as fast" else price.token
    return Price({k: change(k, t) for k, t in own.items()}, asleep, token)


def profile_on(machine: str, rows: Sequence[cost.TimedRound]) -> list[cost.TimedRound]:
    """What the start-up profile told there."""
    deeper_than = {DISTURBED: -1, DEEP: 2}.get(machine, np.inf)
    return [
        row if row.asleep or row.num_steps <= deeper_than else row._replace(seconds=8 * row.seconds)
        for row in rows
    ]


class Disturbed:
    """A policy that is told what its rounds took on a machine with other work on it."""

    def __init__(self, policy: Any, machine: str, rng: np.random.Generator) -> None:
        self.name, self.candidate_steps = policy.name, policy.candidate_steps
        self._policy, self._machine, self._rng = policy, machine, rng
        self._rounds = 0
        self._speed = 0.0

    def decide(self, batch: Batch) -> Decision:
        decision: Decision = self._policy.decide(batch)
        return decision

    def goes_on(self, probs: np.ndarray) -> bool:
        going: bool = self._policy.goes_on(probs)
        return going

    def widths(self, probs: np.ndarray) -> np.ndarray | None:
        widths: np.ndarray | None = self._policy.widths(probs)
        return widths

    def observe(self, outcome: Round) -> None:
        self._rounds += 1
        slow = {
            "slow by turns": self._rounds // SPELL % 2 == 1,
            "pauses": self._rng.random() < 0.03,
        }.get(self._machine, False)
        seconds = outcome.seconds
        if self._machine == "wavering":
            self._speed += -self._speed / SPELL + WAVE * (2 / SPELL) ** 0.5 * self._rng.normal()
        if seconds is not None:
            outcome = replace(outcome, seconds=(1 + slow) * seconds * float(np.exp(self._speed)))
        self._policy.observe(outcome)

    def snapshot(self) -> dict[str, object]:
        return {}


def run_case(case: Case, variants: Mapping[str, Variant], seeds: int, passes: int) -> list[Any]:
    """[variant, tokens per second over the whole policy's, its 95 % interval] each."""
    folder = ROOT / "examples" / "positions" / ("held-out" if case.prompts == "held-out" else "")
    options = ReplayOptions(
        (folder / f"{case.draft}.safetensors",),
        cost=ROOT / "examples" / "traces" / case.draft,
        requests=(case.requests,),
        traffic=case.traffic,
        seeds=seeds,
        passes=passes,
    )
    at = prepare(options)
    whole = _earned(Variant(), case, at, options)
    return [
        [name, *_over(_earned(variant, case, at, options), whole)]
        for name, variant in variants.items()
    ]


def run_stress(name: str, variants: Mapping[str, Variant], seeds: int) -> list[Any]:
    """As :func:`run_case`; the interval is Student's over the seeds."""
    whole = _stressed(Variant(), name, seeds)
    rows = []
    for variant, changed in variants.items():
        over = np.log(_stressed(changed, name, seeds) / whole)
        half = stats.t.ppf(0.975, seeds - 1) * over.std(ddof=1) / np.sqrt(seeds)
        told = np.exp([over.mean(), over.mean() - half, over.mean() + half])
        rows.append([variant, *told.round(5).tolist()])
    return rows


def _stressed(variant: Variant, name: str, seeds: int) -> np.ndarray:
    """Tokens per second by seed."""
    phases, noise = STRESSES[name]
    rates = []
    with _changed(variant):
        for seed in range(seeds):
            policy = _policy(variant, TIERS)
            if name == TURNS:
                Engine(phases, replace(noise, signal="true"), seed).run(policy)
            rates.append(Engine(phases, noise, seed).run(policy).rate)
    return np.array(rates)


def _policy(variant: Variant, tiers: Sequence[int]) -> throughput.ThroughputPolicy:
    policy = throughput.ThroughputPolicy(tiers, 3)
    policy.allow_sleep(variant.may_sleep)
    policy.watch(variant.stops, variant.widths)
    return policy


@contextmanager
def _changed(variant: Variant) -> Iterator[None]:
    with ExitStack() as changed:
        for where, name, value in variant.changes:
            created = isinstance(value, _Zeros)  # instances alone have it
            changed.enter_context(patch.object(where, name, value, create=created))
        yield


def _earned(variant: Variant, case: Case, at: Setting, options: ReplayOptions) -> Earned:
    size = case.requests
    price = price_on(case.machine, at.price(size))
    walks = []
    with _changed(variant):
        for seed in range(options.seeds):
            policy = _policy(variant, at.tiers)
            if variant.profiled:
                policy.profiled(profile_on(case.machine, at.profile(size)))
            noise = np.random.default_rng([seed, 1])
            told = Disturbed(policy, case.machine, np.random.default_rng([seed, 2]))
            walks.append(play(told, walk_of(at, options, size, seed), price, noise=noise))
    return earned(walks, len(at.positions.source.requests))


def _over(one: Earned, whole: Earned) -> list[float]:
    """The ratio of their rates and its interval."""
    ratio = over_best({"one": one, "whole": whole}, ["whole"])["one"]
    assert ratio.low is not None and ratio.high is not None  # of so many requests
    return [round(x, 5) for x in (ratio.value, ratio.low, ratio.high)]


def main(
    only: Annotated[str, typer.Option(help="Regular expression of variants.")] = "",
    seeds: Annotated[int, typer.Option(help="Orders of the requests.")] = 4,
    passes: Annotated[int, typer.Option(help="Times through all of them.")] = 1,
    jobs: Annotated[int, typer.Option(help="Processes.")] = 2,
    out: Annotated[Path | None, typer.Option(help="Write all figures here.")] = None,
) -> None:
    """tok/s of the default policy without a part, or with another constant, over the whole."""
    asked = [seeds, passes, only, inputs()]
    part = None if out is None else out.with_suffix(".part.json")
    result = earlier(part, asked) or {"provenance": provenance(), "asked": asked, "cases": []}
    cases, items = result["cases"], every_item(only)
    done = {identity(told) for told in cases}
    left = [item for item in items if identity(item.told) not in done]
    with Screen().status("replaying") as say, ProcessPoolExecutor(jobs) as pool:
        waiting = {pool.submit(run_item, item, seeds, passes): item for item in left}
        try:
            for number, future in enumerate(as_completed(waiting), start=1):
                cases.append({**waiting[future].told, "variants": future.result()})
                if part is not None:
                    write_json(part, result)
                say(f"{number} of {len(left)} cases")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    order = [identity(item.told) for item in items]
    cases.sort(key=lambda told: order.index(identity(told)))
    if out is not None and part is not None:
        write_json(out, result)
        part.unlink()
    print(table(result))


@dataclass(frozen=True)
class Item:
    """One case with some of the variants; ``told`` names both in the result."""

    case: Case | str
    kind: str
    names: tuple[str, ...]

    @property
    def told(self) -> dict[str, Any]:
        stress = isinstance(self.case, str)
        case = {"stress": self.case} if stress else msgspec.to_builtins(self.case)
        return {**case, "kind": self.kind}


def every_item(only: str) -> list[Item]:
    """Constants are tried at one and sixteen requests under mixed traffic, and on few machines and
    stresses."""
    items = []
    for kind, variants in (("parts", PARTS), ("constants", constants())):
        names = tuple(name for name in variants if re.search(only, name))
        cases: list[Case | str] = [*STRESSES, *WALKS]
        if kind == "constants":
            cases = [name for name in STRESSES if name not in LONG] + [
                case
                for case in WALKS
                if case.requests in (1, 16)
                and case.traffic == "mixed"
                and case.machine in ("as profiled", "pauses")
            ]
        items += [Item(case, kind, names) for case in cases if names]
    return items


def identity(told: Mapping[str, Any]) -> str:
    """Of a case in a result."""
    return msgspec.json.encode({k: v for k, v in told.items() if k != "variants"}).decode()


def inputs() -> str:
    """A digest of what figures follow from beside the options: code and records."""
    rooms = [code_digest(room) for room in ("policy", "replay", "offline")]
    files = [Path(__file__), ROOT / "tests" / "unit" / "policy" / "simulate.py"]
    for folder in ("positions", "traces"):
        files += sorted(path for path in (ROOT / "examples" / folder).rglob("*") if path.is_file())
    digest = sha256("".join(rooms).encode())
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def earlier(part: Path | None, asked: list[Any]) -> dict[str, Any] | None:
    """What an earlier run of the same command on the same records and code has written."""
    if part is None or not part.exists():
        return None
    found: dict[str, Any] = msgspec.json.decode(part.read_bytes())
    return found if found.get("asked") == asked else None


def run_item(item: Item, seeds: int, passes: int) -> list[Any]:
    every = PARTS | constants()
    variants = {name: every[name] for name in item.names}
    if isinstance(item.case, str):
        return run_stress(item.case, variants, STRESS_SEEDS)
    return run_case(item.case, variants, seeds, passes)


def table(result: Mapping[str, Any]) -> str:
    """In Markdown: of every variant what it changes in the mean over walks and over stresses, and
    the worst two of all whose interval lies below 0, in percent."""
    lines = ["| without, or with | walks | stresses | worst |", "|---|---|---|---|"]
    by_name: dict[str, list[tuple[float, ...]]] = {}
    for case in result["cases"]:
        for name, *told in case["variants"]:
            by_name.setdefault(name, []).append((*(100 * (x - 1) for x in told), case))
    for name, rows in by_name.items():
        stresses = [row[0] for row in rows if "stress" in row[3]]
        walks = [row[0] for row in rows if "stress" not in row[3]]
        worst = sorted((row for row in rows if row[2] < 0.0), key=lambda row: row[0])[:2]
        told = "; ".join(
            f"{gain:+.2f} [{low:+.2f}, {high:+.2f}] {_where(case)}"
            for gain, low, high, case in worst
        )
        lines.append(f"| {name} | {_mean(walks)} | {_mean(stresses)} | {told or '-'} |")
    return "\n".join(lines)


def _mean(gains: Sequence[float]) -> str:
    return f"{sum(gains) / len(gains):+.2f}" if gains else "-"


def _where(case: Mapping[str, Any]) -> str:
    if "stress" in case:
        return str(case["stress"])
    told = [case["draft"], str(case["requests"]), case["traffic"]]
    told += [
        case[key] for key in ("prompts", "machine") if case[key] not in ("demo", "as profiled")
    ]
    return ", ".join(told)


if __name__ == "__main__":
    typer.run(main)
