"""A whole calibration on a server that answers like SGLang: what is run, resumed and refused."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sglang_speckv.ab import process
from sglang_speckv.ab.arms import Draft, arms_for, servers_for
from sglang_speckv.ab.client import ServerError
from sglang_speckv.ab.comparison import Comparison, Group, server_flags
from sglang_speckv.ab.options import Options, options_from
from sglang_speckv.ab.request import Prompt
from sglang_speckv.ab.runner import Runner
from sglang_speckv.ab.traffic import Workload
from sglang_speckv.calibrate import command, measure, report
from sglang_speckv.cli import app, main
from sglang_speckv.config import DEFAULT_CANDIDATE_STEPS as DEPTHS
from sglang_speckv.config import ConfigError
from sglang_speckv.progress import Screen
from tests.forked import Forked
from tests.unit.offline.synthetic import Traffic, write_trace

MODULE = "tests.unit.ab.fake_server"
PROMPTS = [Prompt(f"{kind}-{i}", kind, "x" * i) for i in range(4) for kind in ("code", "qa")]
ARMS = [measure.SURVEY, *(f"static:{depth}" for depth in DEPTHS)]


def comparison_of(options: Options, screen: Screen) -> Comparison:
    draft = Draft("eagle3", "/head", "EAGLE3")
    arms = arms_for(draft, options.arms)
    return Comparison(
        options=options,
        target="target",
        drafts=[draft],
        groups=[Group(arms, servers_for(draft, arms, overlap=False))],
        workload=Workload(PROMPTS, options.concurrency),
        tokenize=lambda prompt: [len(prompt.prompt), len(prompt.kind)],
        server_flags=server_flags(2, "float32", 4096),
        dtype="float32",
    )


@pytest.fixture(autouse=True)
def _fake_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def spawn(fake: process.Server) -> Forked:
        return Forked(fake.argv, fake.log, imports=(MODULE,))

    monkeypatch.setattr(process, "COMMAND", (sys.executable, "-m", MODULE))
    monkeypatch.setattr(process.Server, "_spawn", spawn)
    monkeypatch.setattr(process, "_POLL_S", 0.02)
    monkeypatch.setattr(measure, "comparison_of", comparison_of)


def options(out: Path, **asked: object) -> Options:
    small = {"concurrency": (1, 2), "blocks": 1, "minutes": None, "max_new_tokens": 8}
    return options_from(command.DEFAULTS | small | {"out": str(out)} | asked, "test")


def blocks_in(out: Path) -> list[dict[str, Any]]:
    _, *lines = (out / measure.JOURNAL).read_bytes().splitlines()
    return [json.loads(line) for line in lines]


def test_it_is_measured_resumed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    measure.check_out(out)
    outcome = measure.measured(measure.plan_of(options(out), Screen()), Screen())
    ran = [(line["arm"], line["concurrency"]) for line in blocks_in(out)]
    assert [arm for arm, _ in ran[:2]] == [measure.SURVEY] * 2, "the deepest depth comes first"
    assert sorted(ran) == sorted((arm, n) for arm in ARMS for n in (1, 2))
    first = {line["arm"]: line["index"] for line in blocks_in(out) if line["concurrency"] == 2}
    assert first[measure.SURVEY] == 2 and first["static:7"] == 0, "other prompts"

    (out / measure.TRACE).mkdir()
    write_trace(out / measure.TRACE / "1.jsonl.gz", Traffic(depths=DEPTHS, batch=2).records())
    assert command.run_calibrate(options(out, blocks=2, minutes=9.0)) == 0, "goes on"
    assert len(blocks_in(out)) == 2 * len(ran)
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    record = json.loads((out / report.RESULT).read_text())
    assert {key: record[key] for key in ("answer", "loads", "artifact")} == {
        key: line[key] for key in ("answer", "loads", "artifact")
    }
    assert [row["class"] for row in record["survival"]] == ["all", "code", "chat"]
    alone, two = record["loads"]
    assert {row["round_s"] for row in alone["depths"]} == {None}, "no batch of one in the trace"
    for row in two["depths"]:
        assert row["blocks"] == 2
        expected = next(t for t in record["tokens"] if t["num_steps"] == row["num_steps"])
        rate = 2 * expected["expected"] / row["round_s"]
        assert row["predicted_tok_per_s"] == pytest.approx(rate, rel=1e-3)
    assert outcome.provenance["code"] == record["provenance"]["code"]
    for file in (report.ARTIFACT, report.CHART):
        assert (out / file).stat().st_size > 500

    wanted = measure.plan_of(options(out, minutes=9.0), Screen())
    assert report.finished(wanted) == record
    more = replace(wanted, options=options(out, minutes=10.0))
    assert report.finished(more) is None
    for other, said in (({"max_new_tokens": 9}, "max_new_tokens 8, not 9"), ({"seed": 1}, "seed")):
        another = replace(wanted, options=options(out, minutes=9.0, **other))
        with pytest.raises(ConfigError, match=f"measured with {said}"):
            report.finished(another)
    for broken in (b"[", b"{}", b'{"answer": 1, "options": {"minutes": 1}}'):
        (out / report.RESULT).write_bytes(broken)
        with pytest.raises(ConfigError, match=r"result.json is no result"):
            report.finished(wanted)


def test_a_server_that_fails_leaves_the_folder_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FAKE_SERVER", "speckv=refuses")
    wanted = measure.plan_of(options(tmp_path), Screen())
    with pytest.raises(ServerError, match="this is not served here"):
        measure.measured(wanted, Screen())
    measure.check_out(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [measure.LOGS]


@pytest.mark.parametrize(("after", "kept"), [(3, 0), (8, 2)], ids=["warm-up", "measuring"])
def test_what_is_stopped_leaves_no_result(
    after: int, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run_block, ran = Runner.run_block, []

    async def stopped(self: Runner, arm: Any, *rest: Any) -> Any:
        ran.append(arm.name)
        if len(ran) > after:
            raise asyncio.CancelledError
        return await run_block(self, arm, *rest)

    monkeypatch.setattr(Runner, "run_block", stopped)
    assert command.run_calibrate(options(tmp_path, concurrency=(1,))) == 130
    left = {path.name for path in tmp_path.iterdir()}
    assert left == ({measure.LOGS, measure.JOURNAL} if kept else {measure.LOGS})
    measure.check_out(tmp_path)
    assert not kept or [line["arm"] for line in blocks_in(tmp_path)] == ran[len(DEPTHS) : after]


def test_a_folder_of_something_else_is_refused(tmp_path: Path):
    (tmp_path / "blocks.jsonl").touch()
    with pytest.raises(ConfigError, match=r"holds something else \(blocks.jsonl\)"):
        measure.check_out(tmp_path)
    with pytest.raises(ConfigError, match="cannot be written"):
        measure.check_out(tmp_path / "blocks.jsonl")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--concurrency", "1,x"], "are not numbers separated by commas"),
        (["--concurrency", "0"], ">= 1"),
        (["--concurrency", "4,4"], "concurrency names 4 twice"),
        (["--minutes", "0.1"], ">= 1"),
        (["--target", "t"], "--target 't' needs a draft; name one with --draft"),
        (["--prompts", "nowhere"], "nowhere holds no *.jsonl prompts"),
        (["--draft", "EAGLE3=./nowhere"], "nowhere holds no config.json"),
    ],
)
def test_bad_input_is_refused_before_a_server_is_started(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    from sglang_speckv.ab import comparison

    monkeypatch.setattr(measure, "comparison_of", comparison.comparison_of)
    monkeypatch.setattr(comparison, "resolve_target", lambda target: tmp_path)
    monkeypatch.setattr(process.Server, "start", lambda self: pytest.fail("started"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["speckv", "calibrate", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    error = capsys.readouterr().err.strip()
    assert ended.value.code == 2 and said in error and "\n" not in error


def test_flags_become_options(monkeypatch: pytest.MonkeyPatch):
    seen: list[Options] = []
    monkeypatch.setattr(command, "run_calibrate", lambda asked, json: seen.append(asked) or 0)
    for words in ([], ["--quick"], ["--quick", "--concurrency", "1,8", "--draft", "EAGLE3=h"]):
        assert CliRunner().invoke(app, ["calibrate", *words]).exit_code == 0
    usual, quick, mine = seen
    assert usual.drafts == ("eagle3",) and usual.concurrency == (1, 4, 16) and usual.minutes == 10
    assert quick.concurrency == (1, 4) and quick.minutes == 3
    assert mine.concurrency == (1, 8) and mine.drafts == ("EAGLE3=h",)


def test_the_chart_has_survival_and_every_load():
    rows = [
        {"num_steps": k, "tok_per_s": 50.0 + k, "predicted_tok_per_s": 55.0 + k if k else None}
        for k in DEPTHS
    ]
    record = {
        "target": "some/target",
        "draft": {"name": "head"},
        "survival": [{"class": "all", "rounds": 9, "survival": [0.9, 0.5]}],
        "loads": [{"concurrency": n, "depths": rows} for n in (1, 16)],
    }
    chart = report.figure(record)
    assert chart.get_suptitle() == "head drafting for target"
    survival, *loads = chart.axes
    (line,) = survival.lines
    assert line.get_xydata().tolist() == [[1, 0.9], [2, 0.5]]
    for axis in loads:
        measured, predicted = axis.lines
        assert measured.get_ydata().tolist() == [50.0 + k for k in DEPTHS]
        assert predicted.get_xdata().tolist() == [k for k in DEPTHS if k]
