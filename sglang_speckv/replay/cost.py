"""Where the round times of a replay come from: the trace, a file, another trace, assumptions."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from sglang_speckv.config import ConfigError
from sglang_speckv.files import BAD_JSON, read_bounded
from sglang_speckv.offline.columns import Columns, read_columns
from sglang_speckv.offline.round_cost import (
    EXACT,
    AssumedCost,
    MeasuredCost,
    RoundCost,
    measure_cost,
)
from sglang_speckv.policy.prior import CostPrior

_MAX_BYTES = 1 << 20


class _Row(msgspec.Struct, forbid_unknown_fields=True):
    batch_size: int
    num_steps: int
    seconds: float


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """``{"rows": [{"batch_size": 1, "num_steps": 3, "seconds": 0.051}, ...]}``; ``num_steps`` -1
    is a round without speculation."""

    rows: list[_Row]


def read_cost(
    path: Path | None, draft_cost: float | None, verify_width: float, columns: Columns | None
) -> RoundCost:
    """What a round costs, where nothing else is said as recorded in ``columns``. Raises
    :class:`ConfigError`."""
    if path is not None and draft_cost is not None:
        raise ConfigError("--cost and --draft-cost are two answers to one question; give one")
    if draft_cost is not None:
        return AssumedCost(draft_cost, verify_width)
    if path is None:
        if columns is None:
            raise ConfigError(
                "positions have no round times; give --draft-cost, or --cost with a trace, an "
                "artifact or a JSON file"
            )
        return MeasuredCost(measure_cost(columns), "the recorded round times")
    return MeasuredCost(_prior_from(path), str(path))


def _prior_from(path: Path) -> CostPrior:
    if not path.exists():
        raise ConfigError(f"--cost {path} does not exist")
    # A folder with policy.json is an artifact of an older version, which is refused by that name.
    if path.suffix == ".safetensors" or (path / "policy.json").is_file():
        from sglang_speckv.offline.artifact import load_artifact

        cost = load_artifact(path).cost
        if cost is None:
            raise ConfigError(f"the artifact {path} has no cost table")
        return cost
    if path.is_dir() or path.name.endswith(".jsonl.gz"):
        return measure_cost(read_columns([path]))
    return _from_json(path)


def _from_json(path: Path) -> CostPrior:
    content = read_bounded(path, _MAX_BYTES, "check --cost")
    try:
        rows = msgspec.json.decode(content, type=_File).rows
    except BAD_JSON as error:
        raise ConfigError(
            f'--cost {path} is not {{"rows": [{{"batch_size", "num_steps", "seconds"}}]}} ({error})'
        ) from error
    return CostPrior(
        batch_size=np.array([row.batch_size for row in rows]),
        num_steps=np.array([row.num_steps for row in rows]),
        seconds=np.array([row.seconds for row in rows], dtype=float),
        rounds=np.full(len(rows), EXACT),
    )
