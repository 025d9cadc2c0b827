"""Which round's first-token signal a decision sees: as told, with the overlap scheduler and without
it, in every mode of --speckv-signal-lag."""

from __future__ import annotations

from typing import Any

from examples.gpu.observe import as_told, signal_ages
from tests.engine.conftest import PROMPTS, Serving
from tests.engine.test_signals import records_of
from tests.gpu.conftest import REHEARSAL, WHOLE, Kind, on_gpu, on_kinds

KINDS = [
    Kind("standalone-self", backend, overlap, lag)
    for backend in ("flashinfer", "triton")
    for overlap in (True, False)
    for lag in ("late", "0", "auto")
]
if REHEARSAL:
    KINDS = []
if WHOLE:  # `auto` of one rank is served by test_serving
    KINDS = [
        *(Kind("standalone-self", "flashinfer", lag=lag, ranks=2) for lag in ("0", "late", "auto")),
        *(Kind("standalone-self", "fa3", lag=lag) for lag in ("late", "0")),
        *(Kind("standalone-self", "triton", lag=lag) for lag in ("late", "0", "auto")),
        Kind("standalone-self", "flashinfer", lag="0"),
        Kind("standalone-self", "flashinfer", lag="late"),  # the next module's too
    ]
pytestmark = [*on_gpu, on_kinds(*KINDS)]


def expected_rounds(kind: Kind, told: dict[str, Any]) -> int:
    """Age of the signal by the documented table; `auto` is free to choose under overlap."""
    if not kind.overlap or kind.lag == "0":
        return 0
    return 1 if kind.lag == "late" else told["rounds"]


def test_decisions_see_the_round_that_was_told(gpu_server: tuple[Kind, Serving]) -> None:
    kind, server = gpu_server
    server.select("static:3")
    server.generate(PROMPTS, max_new_tokens=96)
    told = server.speckv()["signal_lag"]
    assert told["mode"] == kind.lag
    assert told["rounds"] == expected_rounds(kind, told)
    assert told["host_waits"] == (kind.overlap and told["rounds"] == 0)
    header, records = records_of(server)
    assert header.overlap == kind.overlap
    ages = signal_ages(records)
    assert as_told(ages, told["rounds"])
    assert ages["before" if told["rounds"] else "coming"] > 20
