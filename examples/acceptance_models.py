"""Would a richer acceptance model choose better depths than the table on the first probability?

    python examples/acceptance_models.py traces/eagle3 --out models-eagle3.json

Every model predicts the expected tokens of every depth for prompts that it has not seen (five
folds); the depth that the renewal-reward rule takes from them is then paid at the trace's own round
times. The figures are tokens per second over the best single depth, found with hindsight, resampled
by prompt. Needs scikit-learn (the extra `paper`); a minute or two.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sglang_speckv.files import write_atomically
from sglang_speckv.offline.columns import Columns, read_columns
from sglang_speckv.offline.fit_acceptance import constant, fit_acceptance, survival
from sglang_speckv.offline.round_cost import MeasuredCost, measure_cost
from sglang_speckv.policy.plan import long_run_rate
from sglang_speckv.provenance import provenance
from sglang_speckv.replay import score
from sglang_speckv.replay.play import Played, Table, always, tiers_for
from sglang_speckv.replay.rounds import Rounds, drafted_to, regroup

FOLDS = 5
LOADS = (1, 4, 16)
HISTORY = 0.7
"""Weight that what a request's earlier rounds accepted keeps from one to the next."""
MODELS = ("constant", "table", "logistic, first probability", "logistic", "boosted trees")


def main(
    traces: Annotated[list[Path], typer.Argument(help="Traces of one draft.")],
    out: Annotated[Path | None, typer.Option(help="Write all figures here.")] = None,
) -> None:
    """Tokens per second of each model's choices, held out by prompt."""
    every = read_columns(traces)
    tiers = tiers_for(None, every)
    cost = MeasuredCost(measure_cost(every), "the recorded round times")
    columns = drafted_to(every, tiers[-1])
    known = features(columns)
    lengths = {name: held_out(name, columns, known) for name in MODELS}
    judged = columns.num_correct_drafts[:, None] >= np.arange(1, tiers[-1] + 1)
    result: dict[str, Any] = {
        "records": len(columns),
        "prompts": len(columns.prompts),
        "brier": {
            name: round(float(((np.diff(length, axis=1) - judged) ** 2).mean()), 5)
            for name, length in lengths.items()
        },
        "tok_per_s_vs_best_static": {},
    }
    for load in LOADS:
        rounds = regroup(columns, load)
        rows = chosen(rounds, tiers, cost, lengths)
        result["tok_per_s_vs_best_static"][str(load)] = rows
        for name, row in rows.items():
            print(f"{load:>3} {name:<30} {row[0]:.4f} [{row[1]:.4f}, {row[2]:.4f}]")
    result["provenance"] = provenance()
    if out is not None:
        write_atomically(out, lambda path: path.write_text(json.dumps(result, indent=1) + "\n"))
    print(json.dumps(result))


def features(columns: Columns) -> np.ndarray:
    """[records, 7], all known before the round: the first draft's log-odds and entropy, the window
    before's means of both, what was accepted there and in all rounds before, the context."""
    odds, entropy = columns.signals[:, :, 0], columns.signals[:, :, 1]
    odds = np.log(np.clip(odds, 1e-4, 1 - 1e-4) / (1 - np.clip(odds, 1e-4, 1 - 1e-4)))
    last = np.full((len(columns), 4), np.nan)
    for rows in by_request(columns):
        accepted = columns.num_correct_drafts[rows].astype(float)
        smooth = accepted[0]
        for before, now, correct in zip(rows, rows[1:], accepted, strict=False):
            smooth += (1 - HISTORY) * (correct - smooth)
            last[now] = odds[before].mean(), entropy[before].mean(), correct, smooth
    means = np.nanmean(last, axis=0)
    last = np.where(np.isnan(last), means, last)
    return np.column_stack([odds[:, 0], entropy[:, 0], last, np.log(columns.context_len)])


def by_request(columns: Columns) -> list[np.ndarray]:
    order = np.lexsort((columns.round, columns.request))
    _, first = np.unique(columns.request[order], return_index=True)
    return np.split(order, first[1:])


def held_out(name: str, columns: Columns, known: np.ndarray) -> np.ndarray:
    """A(0)..A(K) for every record [records, K + 1], from a fit without its prompt."""
    lengths = np.ones((len(columns), int(columns.num_steps.max()) + 1))
    for train, test in GroupKFold(FOLDS).split(known, groups=columns.prompt):
        lengths[test, 1:] = survivals(name, columns, known, train, test)
    return np.cumsum(lengths, axis=1)


def survivals(
    name: str, columns: Columns, known: np.ndarray, train: np.ndarray, test: np.ndarray
) -> np.ndarray:
    """P(the first j drafts are all accepted) [test, K]."""
    depth, correct = int(columns.num_steps.max()), columns.num_correct_drafts
    if name in ("constant", "table"):
        prior = fit_acceptance(columns, train)
        if name == "constant":
            return np.tile(np.cumprod(constant(prior)), (len(test), 1))
        return survival(prior)[prior.row_of(columns.first_prob[test])]
    used = known[:, :1] if name.endswith("first probability") else known
    conditional = np.empty((len(test), depth))
    for i in range(depth):
        judged = train[correct[train] >= i]
        label = correct[judged] > i
        if label.all() or not label.any():
            conditional[:, i] = label.mean() if len(label) else conditional[:, i - 1]
            continue
        model = classifier(name).fit(used[judged], label)
        conditional[:, i] = model.predict_proba(used[test])[:, 1]
    return np.cumprod(conditional, axis=1)


def classifier(name: str) -> Any:
    if name == "boosted trees":
        return HistGradientBoostingClassifier(max_iter=60, learning_rate=0.05, max_leaf_nodes=8)
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1))


def chosen(
    rounds: Rounds, tiers: tuple[int, ...], cost: MeasuredCost, lengths: dict[str, np.ndarray]
) -> dict[str, tuple[float, float, float]]:
    """Each model's ratio to the best single depth and its interval."""
    tokens, known = rounds.outcomes(tiers)
    seconds = cost.times(rounds.size, tiers)
    table = Table(tiers, tokens, known, seconds, np.ones(len(rounds)))
    cells = score.cells_of(rounds)
    played = {f"static:{k}": always(i, rounds) for i, k in enumerate(tiers)}
    for name, length in lengths.items():
        expected = np.add.reduceat(length[rounds.row][:, tiers], rounds.start[:-1])
        rate = long_run_rate(expected, seconds[0], expected.sum() / seconds.sum())
        best = (expected - rate * seconds).argmax(axis=1)
        played[name] = Played(best, np.full(len(rounds), np.nan))
    earned = {name: score.earn(rounds, table, cells, of) for name, of in played.items()}
    static = [name for name in earned if name.startswith("static:")]
    best_static = max(static, key=lambda name: score.rate(earned[name], cells.work))
    ratios = score.compare(earned, best_static, cells.work)
    return {
        name: (round(r.value, 4), round(r.low or r.value, 4), round(r.high or r.value, 4))
        for name, r in ratios.items()
        if name in lengths
    }


if __name__ == "__main__":
    typer.run(main)
