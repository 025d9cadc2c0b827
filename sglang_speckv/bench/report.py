"""Cells out of results: for people (a table), for machines (JSON)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from sglang_speckv.bench.counters import Counters
from sglang_speckv.bench.lossless import Verdict
from sglang_speckv.bench.plan import Arm
from sglang_speckv.bench.run import BlockResult
from sglang_speckv.bench.stats import Ratio, paired_ratio, tok_per_s

FOOTNOTE = (
    "tok/s: output tokens over wall time. ratio: tok/s over the best static arm of the same draft "
    "and concurrency,\nwith a 95 % interval (paired bootstrap over blocks). accept rate: correct / "
    "proposed drafts; SGLang's own\nfigure is wrong while steps change, so ema has none. lossless: "
    "greedy answers equal those without drafting\ntoken by token, ties of the target (top-2 gap "
    "under 1e-3) aside."
)


@dataclass(frozen=True)
class Cell:
    """One arm of one draft at one concurrency; None where a figure does not exist."""

    draft: str
    arm: str
    concurrency: int
    tok_per_s: float
    accept_length: float | None
    accept_rate: float | None
    active: bool | None
    lossless: bool | None
    steps: Mapping[str, float] | None
    ratio: Ratio | None
    verdict: Verdict | None
    blocks: Sequence[BlockResult]

    def to_json(self) -> dict[str, Any]:
        """What the last line of ``speckv demo`` holds of it."""
        return {
            "draft": self.draft,
            "arm": self.arm,
            "concurrency": self.concurrency,
            "tok_per_s": round(self.tok_per_s, 2),
            "accept_length": _rounded(self.accept_length),
            "accept_rate": _rounded(self.accept_rate),
            "active": self.active,
            "lossless": self.lossless,
            "steps": None if self.steps is None else rounded_shares(self.steps),
        }

    def to_detail(self) -> dict[str, Any]:
        """The same with what it was computed from."""
        ratio, verdict = self.ratio, self.verdict
        return {
            **self.to_json(),
            "ratio_to_best_static": ratio and _rounded(ratio.value),
            "ratio_interval": ratio and [_rounded(ratio.low), _rounded(ratio.high)],
            "answers": verdict and verdict.answers,
            "divergences": verdict and len(verdict.gaps),
            "ties": verdict and verdict.ties,
            "blocks": [
                {
                    "prompts": [prompt.id for prompt in result.block.prompts],
                    "tokens": result.tokens,
                    "seconds": round(result.seconds, 4),
                    "rounds": result.counters and result.counters.rounds,
                }
                for result in self.blocks
            ],
        }


def cells_for(
    draft: str,
    concurrency: int,
    blocks: Mapping[Arm, Sequence[BlockResult]],
    verdicts: Mapping[Arm, Verdict],
) -> list[Cell]:
    """One draft's cells at one concurrency, from paired blocks of its arms and ``none``."""
    pairs = {arm: _pairs(results) for arm, results in blocks.items()}
    static = [arm for arm in blocks if arm.name.startswith("static:")]
    best = max(static, key=lambda arm: tok_per_s(*zip(*pairs[arm], strict=True)), default=None)
    ratios = {arm: paired_ratio(pairs[arm], pairs[best]) if best else None for arm in blocks}
    return [
        _cell(draft, concurrency, arm, blocks[arm], ratios[arm], verdicts.get(arm))
        for arm in blocks
    ]


def _cell(
    draft: str,
    concurrency: int,
    arm: Arm,
    results: Sequence[BlockResult],
    ratio: Ratio | None,
    verdict: Verdict | None,
) -> Cell:
    counters = total_counters(results)
    return Cell(
        draft=draft,
        arm=arm.name,
        concurrency=concurrency,
        tok_per_s=tok_per_s(*zip(*_pairs(results), strict=True)),
        accept_length=counters.accept_length if counters else engine_accept_length(results),
        accept_rate=counters.accept_rate if counters else None,
        active=True if counters else None,
        lossless=verdict.lossless if verdict else None,
        steps=counters.shares() if counters else None,
        ratio=ratio,
        verdict=verdict,
        blocks=results,
    )


def total_counters(results: Sequence[BlockResult]) -> Counters | None:
    found = [result.counters for result in results if result.counters is not None]
    return sum(found[1:], found[0]) if found else None


def engine_accept_length(results: Sequence[BlockResult]) -> float | None:
    """From SGLang's per-request counts: tokens per verify round; None without drafting."""
    completions = [completion for result in results for completion in result.completions]
    verifies = sum(completion.verify_ct for completion in completions)
    correct = sum(completion.num_correct_drafts for completion in completions)
    return 1 + correct / verifies if verifies else None


def rounded_shares(shares: Mapping[str, float], digits: int = 4) -> dict[str, float]:
    """Rounded so that they still sum to 1: the largest takes up the difference."""
    rounded = {tier: round(share, digits) for tier, share in shares.items()}
    largest = max(rounded, key=lambda tier: rounded[tier])
    rounded[largest] = round(rounded[largest] + 1 - sum(rounded.values()), digits)
    return rounded


def print_tables(cells: Sequence[Cell], console: Console) -> None:
    for key in dict.fromkeys((cell.draft, cell.concurrency) for cell in cells):
        console.print(_table([cell for cell in cells if (cell.draft, cell.concurrency) == key]))
    console.print(FOOTNOTE, style="dim", highlight=False)


def _table(cells: Sequence[Cell]) -> Table:
    first = cells[0]
    table = Table(title=f"draft {first.draft}, concurrency {first.concurrency}", title_style="bold")
    table.add_column("arm")
    for heading in ("tok/s", "ratio to best static", "accept length", "accept rate"):
        table.add_column(heading, justify="right")
    table.add_column("share of rounds per step count")
    table.add_column("lossless")
    for cell in cells:
        style = "bold cyan" if cell.arm.startswith("speckv") else ""
        table.add_row(*_row(cell), style=style)
    return table


def _row(cell: Cell) -> list[str]:
    return [
        cell.arm,
        f"{cell.tok_per_s:.1f}",
        str(cell.ratio or "-"),
        _shown(cell.accept_length, ".2f"),
        _shown(cell.accept_rate, ".0%"),
        "  ".join(f"{tier}: {share:.0%}" for tier, share in (cell.steps or {}).items()) or "-",
        _lossless_text(cell.verdict),
    ]


def _lossless_text(verdict: Verdict | None) -> str:
    if verdict is None:
        return "-"
    lost = len(verdict.gaps) - verdict.ties
    ties = f" ({verdict.ties} ties)" if verdict.ties else ""
    return f"no: {lost} of {verdict.answers}{ties}" if lost else f"yes{ties}"


def _pairs(results: Sequence[BlockResult]) -> list[tuple[int, float]]:
    return [(result.tokens, result.seconds) for result in results]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
