"""The paper's records as arrays: one step of speculative decoding each, and the runs they are of.

From https://github.com/Amorfati123/SpecKV (MIT), file `phase2_step_results.csv` for the steps and
`phase2_experiment_results.csv` for the runs. Steps carry no prompt, but both files are in order,
and every run starts with step 0.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

STEPS, RUNS = "phase2_step_results.csv", "phase2_experiment_results.csv"
SOURCE = "https://github.com/Amorfati123/SpecKV"
COMPRESSIONS = ("fp16", "int8", "nf4")
GAMMAS = (2, 4, 6, 8)


class DataError(ValueError):
    """The files are not what they should be: one sentence with the remedy."""


@dataclass(frozen=True)
class Records:
    """Arrays [steps] unless said otherwise. Entropies are in bits, over a window of ``gamma``
    draft tokens; ``accepted`` counts without the bonus token. ``rate`` is accepted over drafted,
    which is fewer than ``gamma`` in the last step of many runs. ``run`` indexes the runs."""

    compression: np.ndarray
    task: np.ndarray
    gamma: np.ndarray
    accepted: np.ndarray
    rate: np.ndarray
    tokens: np.ndarray
    mean_entropy: np.ndarray
    mean_confidence: np.ndarray
    max_entropy: np.ndarray
    min_confidence: np.ndarray
    run: np.ndarray
    prompt: np.ndarray
    run_compression: np.ndarray
    """[runs], as are all that follow."""
    run_gamma: np.ndarray
    run_tokens: np.ndarray
    run_seconds: np.ndarray


def load(folder: Path) -> Records:
    steps, runs = _rows(folder / STEPS), _rows(folder / RUNS)
    try:
        return _records(steps, runs)
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{folder} does not hold the paper's records ({error})") from error


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise DataError(
            f"cannot read {path} ({error.strerror}); download {STEPS} and {RUNS} from {SOURCE} "
            f"and name their folder with --data"
        ) from error


def _records(steps: list[dict[str, str]], runs: list[dict[str, str]]) -> Records:
    run = np.cumsum([int(step["step"]) == 0 for step in steps]) - 1
    if not steps or run[0] != 0 or run[-1] != len(runs) - 1:
        raise ValueError(f"{run[-1] + 1 if steps else 0} runs of steps, {len(runs)} runs")
    for key in ("compression", "gamma", "task"):
        if any(step[key] != runs[r][key] for step, r in zip(steps, run, strict=True)):
            raise ValueError(f"steps and runs differ in {key}")

    def column(key: str, kind: type = float) -> np.ndarray:
        return np.array([kind(step[key]) for step in steps])

    def of_runs(key: str, kind: type = float) -> np.ndarray:
        return np.array([kind(row[key]) for row in runs])

    return Records(
        compression=column("compression", str),
        task=column("task", str),
        gamma=column("gamma", int),
        accepted=column("accepted", int),
        rate=column("acceptance_rate"),
        tokens=column("tokens_produced", int),
        mean_entropy=column("mean_draft_entropy"),
        mean_confidence=column("mean_draft_confidence"),
        max_entropy=column("max_draft_entropy"),
        min_confidence=column("min_draft_confidence"),
        run=run,
        prompt=of_runs("prompt", str)[run],
        run_compression=of_runs("compression", str),
        run_gamma=of_runs("gamma", int),
        run_tokens=of_runs("num_tokens"),
        run_seconds=of_runs("elapsed_sec"),
    )
