"""Traces in, artifact out, with figures on prompts that were held out."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from sglang_speckv import __version__
from sglang_speckv.config import ConfigError
from sglang_speckv.offline import fit_acceptance, fit_mlp
from sglang_speckv.offline.artifact import Artifact
from sglang_speckv.offline.columns import Columns, identity_of, read_columns
from sglang_speckv.offline.records import trace_hashes
from sglang_speckv.offline.round_cost import measure_cost
from sglang_speckv.policy import Prior
from sglang_speckv.policy.mlp import compression_code
from sglang_speckv.policy.prior import CostPrior

HELD_OUT = 0.2
_PACKAGES = ("sglang", "numpy", "scipy")


@dataclass(frozen=True)
class Split:
    """Record numbers of the prompts to learn from and of those held out."""

    train: np.ndarray
    held_out: np.ndarray


def split_by_prompt(columns: Columns) -> Split:
    """Every fifth prompt by the hash of its name is held out: the same prompts in any trace.

    Raises:
        ConfigError: fewer than two prompts, so nothing can be held out.
    """
    count = len(columns.prompts)
    if count < 2:
        raise ConfigError(
            "the trace has one prompt, so none can be held out; record more, with request ids of "
            "the form LABEL:PROMPT:ANYTHING"
        )
    digests = [hashlib.sha256(prompt.encode()).digest() for prompt in columns.prompts]
    order = sorted(range(count), key=digests.__getitem__)
    out = np.zeros(count, dtype=bool)
    out[order[: max(1, round(HELD_OUT * count))]] = True
    held = out[columns.prompt]
    return Split(np.flatnonzero(~held), np.flatnonzero(held))


def train(traces: Sequence[Path], say: Callable[[str], None] = lambda _: None) -> Artifact:
    """Fit all that the traces can teach.

    Figures are of a fit without the held-out prompts; the artifact's arrays are of the same fit
    on all prompts. Same traces, same artifact. Raises :class:`ConfigError`.
    """
    say("reading the trace")
    columns = read_columns(traces)
    split = split_by_prompt(columns)
    every = np.arange(len(columns))
    say("learning acceptance")
    figures: dict[str, Any] = {
        "prompts": len(np.unique(columns.prompt[split.held_out])),
        "records": len(split.held_out),
        "acceptance": fit_acceptance.evaluate(
            fit_acceptance.fit_acceptance(columns, split.train),
            fit_acceptance.constant(columns, split.train),
            columns,
            split.held_out,
        ),
        "mlp": None,
    }
    say("fitting the paper's predictor")
    learned = fit_mlp.fit_mlp(fit_mlp.windows(columns, split.train))
    unseen = fit_mlp.windows(columns, split.held_out)
    if learned is not None and len(unseen.rates):
        figures["mlp"] = fit_mlp.evaluate(learned, unseen)
    prior = Prior(
        acceptance=fit_acceptance.fit_acceptance(columns, every).learned(),
        cost=_cost(columns),
        mlp=fit_mlp.fit_mlp(fit_mlp.windows(columns, every)),
        compression=compression_code(columns.header.quantization),
    )
    return Artifact(identity_of(columns.header), _provenance(traces, columns, figures), prior)


def _cost(columns: Columns) -> CostPrior | None:
    return None if np.isnan(columns.seconds).all() else measure_cost(columns)


def _provenance(
    traces: Sequence[Path], columns: Columns, held_out: dict[str, Any]
) -> dict[str, Any]:
    """No dates and no folders: the same traces make the same bytes anywhere."""
    rounds = columns.file.astype(np.int64) << 40 | columns.round
    return {
        "command": "speckv train",
        "traces": [
            {**hashed, "policy": header.policy}
            for hashed, header in zip(trace_hashes(traces), columns.headers, strict=True)
        ],
        "records": len(columns),
        "rounds": len(np.unique(rounds)),
        "prompts": len(columns.prompts),
        "labels": list(columns.labels),
        "held_out": held_out,
        "versions": {
            "sglang-speckv": __version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
        },
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
