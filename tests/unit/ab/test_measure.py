"""A whole comparison on servers that answer like SGLang, and on servers that do not."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from sglang_speckv.ab import measure, process
from sglang_speckv.ab.arms import Draft, arms_for, servers_for
from sglang_speckv.ab.client import ServerError
from sglang_speckv.ab.comparison import Comparison, Group, server_flags
from sglang_speckv.ab.measure import NOT_CHECKED, measure_and_report, measured
from sglang_speckv.ab.options import options_from
from sglang_speckv.ab.outcome import Outcome
from sglang_speckv.ab.request import Prompt
from sglang_speckv.ab.results import RESULTS, describe
from sglang_speckv.ab.sampled import LEAST_P
from sglang_speckv.ab.traffic import Workload
from sglang_speckv.config import ConfigError
from sglang_speckv.progress import Screen
from tests.forked import Forked

MODULE = "tests.unit.ab.fake_server"
FAKE = (sys.executable, "-m", MODULE)
ARMS = ("none", "static:1", "static:3", "speckv", "speckv#2")
PROMPTS = [Prompt(f"{kind}-{i}", kind, "x" * i) for i in range(4) for kind in ("code", "qa")]


@pytest.fixture(autouse=True)
def _fake_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forked, so that none imports aiohttp, and looked at often: they are ready at once."""

    def spawn(fake: process.Server) -> Forked:
        return Forked(fake.argv, fake.log, imports=(MODULE,))

    monkeypatch.setattr(process, "COMMAND", FAKE)
    monkeypatch.setattr(process.Server, "_spawn", spawn)
    monkeypatch.setattr(process, "_POLL_S", 0.02)


def wanted(out: Path, **asked: object) -> Comparison:
    values = {
        "arms": ARMS,
        "concurrency": (1, 2),
        "blocks": 3,
        "max_new_tokens": 24,
        "timeout_s": 60.0,
        "out": str(out),
    }
    options = options_from(values | asked, "test")
    drafts = [Draft("eagle3", "/head", "EAGLE3")]
    return Comparison(
        options=options,
        target="target",
        drafts=drafts,
        groups=[group_of(drafts[0], options.arms)],
        workload=Workload(PROMPTS, options.concurrency, open_loop_requests=4),
        tokenize=lambda prompt: [len(prompt.prompt), len(prompt.kind)],
        server_flags=server_flags(2, "float32", 4096),
        dtype="float32",
    )


def group_of(draft: Draft, names: Sequence[str]) -> Group:
    arms = arms_for(draft, names)
    return Group(arms, servers_for(draft, arms, overlap=False))


def one_by_one(asked: Comparison) -> Comparison:
    (group,) = asked.groups
    apart = [
        Group([arm for arm in group.arms if arm.server == spec.name], [spec])
        for spec in group.servers[::-1]
    ]
    return replace(asked, groups=apart)


@dataclass
class Done:
    """A comparison that was run, and what is concluded from it."""

    outcome: Outcome
    results: dict[str, Any]


def done(asked: Comparison, resume: bool = False) -> Done:
    outcome = measured(asked, Screen(), resume)
    results = describe(asked, outcome, 1.0)
    return Done(outcome, json.loads(msgspec.json.encode(results)))


def run(tmp_path: Path, **asked: object) -> Done:
    return done(wanted(tmp_path / "out", **asked))


def drafting(results: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in results["cells"] if cell["arm"] != "none"]


def test_everything_that_was_promised_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arms = (*ARMS, "fresh:3", "none:overlap", "none#2")
    asked = wanted(tmp_path, traffic=("mixed", "sweep"), rate=(50.0,), arms=arms)
    assert measure_and_report(asked, Screen()) == 0
    out = capsys.readouterr().out
    line = json.loads(out.splitlines()[-1])
    assert out.splitlines()[-2].startswith("eagle3, sweep: SpecKV was")
    loads = {(cell["traffic"], cell["concurrency"], cell["rate"]) for cell in line["cells"]}
    assert loads == {
        *((traffic, n, None) for traffic in ("mixed", "sweep") for n in (1, 2)),
        ("mixed", None, 50.0),
    }
    by_arm = {
        c["arm"]: c for c in line["cells"] if (c["traffic"], c["concurrency"]) == ("mixed", 2)
    }
    assert set(by_arm) == set(arms)
    assert by_arm["static:3"]["steps"] == {"3": 1.0} and by_arm["none"]["steps"] is None
    assert all(cell["blocks"] >= 3 for cell in line["cells"])
    assert by_arm["speckv"]["interval"][0] <= by_arm["speckv"]["vs_best_fixed"]
    assert all(cell["lossless"] for cell in line["cells"] if cell["arm"] != "none")
    sweep = line["sweep"]["eagle3"]["mixed"]
    assert sweep["best_fixed"] in arms and sweep["loads"] == 2
    assert {
        "tok_per_s",
        "vs_best_fixed",
        "lower_bound",
        "not_inferior",
    } <= set(sweep["arms"]["speckv"])
    assert {(check["kind"], check["arm"]) for check in line["checks"]} == {
        ("the same arm twice", "speckv#2"),
        ("the same arm twice", "none#2"),
        ("a server of its own", "fresh:3"),
    }
    assert (
        line["none_scheduling"] == "eagle3-none: without overlap; eagle3-none-overlap: with overlap"
    )
    results = json.loads(Path(line["results"]).read_text())
    assert list(results["settings_that_differ"]) == ["disable_overlap_schedule"]
    for facts in results["servers"].values():
        assert facts["ready_s"] > 0 and facts["memory_gb"] is not None
    places = [b["place"] for c in results["cells"] for b in c["block_results"]]
    assert set(places) == set(range(len(arms)))
    assert Path(line["report"]).is_file() and Path(line["chart"]).read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("speckv=refuses", "this is not served here"),
        ("speckv=crashes", "no such device"),
        ("speckv=dies", "out of memory"),
        ("speckv=hangs", "no answer from /generate within 2 s"),
        ("speckv=garbage", "/generate"),
        ("speckv=inactive", "SpecKV is not active"),
        ("speckv=unequal", "effective_max_running_requests_per_dp is 48"),
    ],
)
def test_a_bad_server_is_shown_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, reason: str
):
    monkeypatch.setenv("FAKE_SERVER", fault)
    asked = {"arms": ("none", "ema", "static:1", "speckv"), "concurrency": (2,)}
    if "hangs" in fault:
        asked["timeout_s"] = 1.5
    found = run(tmp_path, **asked)
    assert list(found.outcome.failures) == ["eagle3-speckv"]
    assert reason in found.outcome.failures["eagle3-speckv"]
    ran = {cell["arm"]: cell["blocks"] for cell in found.results["cells"]}
    assert ran["none"] == ran["ema"] == 3


def test_answers_that_are_not_the_targets_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The server without drafting reads them back and calls the last token two too unlikely."""
    monkeypatch.setenv("FAKE_SERVER", "speckv=lossy")
    found = run(tmp_path, concurrency=(1,), arms=("none", "static:1"))
    assert found.outcome.lossy == [
        "eagle3 static:1 (mixed, 1 request): 3 of 3 answers hold a token that the target would not "
        "choose (gap 2, a tie has up to 0.001)"
    ]


def test_sixteen_bits_are_gated_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FAKE_SERVER", "speckv=lossy")
    asked = wanted(tmp_path / "out", concurrency=(1,), arms=("none", "static:1"))
    assert "a tie has up to 0.25" in done(replace(asked, dtype="bfloat16")).outcome.lossy[0]


@pytest.mark.parametrize("fault", ["", "speckv=biased"])
def test_sampled_answers_are_judged_by_their_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
):
    monkeypatch.setenv("FAKE_SERVER", fault)
    arms = ("none", "speckv", "ema")
    found = run(tmp_path, concurrency=(2,), blocks=1, arms=arms, temperature=1.0)
    assert all(cell["lossless"] is None for cell in found.results["cells"])
    sampled = found.results["sampled"]
    assert set(sampled) == {"eagle3 speckv", "eagle3 ema"}
    assert LEAST_P < sampled["eagle3 ema"]["p_value"] < 1, "drawn anew, so never quite alike"
    assert (sampled["eagle3 speckv"]["p_value"] < LEAST_P) == bool(fault)
    assert 0.05 < sampled["eagle3 ema"]["detectable_shift"] < 0.5
    said = [line.partition(" (p")[0] for line in found.outcome.lossy]
    assert said == ["eagle3 speckv: sampled answers are not the target's distribution"] * bool(
        fault
    )


@pytest.mark.parametrize(
    ("arms", "fault", "code"),
    [
        (("static:1", "speckv"), "", NOT_CHECKED),
        (("none", "speckv"), "plain=dies", 1),
        (("none", "speckv"), "", 0),
    ],
)
def test_where_nothing_could_be_compared_that_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arms: tuple[str, ...],
    fault: str,
    code: int,
):
    """Without a `none`, or where it vanished."""
    monkeypatch.setenv("FAKE_SERVER", fault)
    asked = wanted(tmp_path, concurrency=(2,), arms=arms, blocks=8)
    assert measure_and_report(asked, Screen()) == code
    captured = capsys.readouterr()
    assert ("NOT CHECKED: no answer could be compared" in captured.err) == bool(code)
    (answer,) = json.loads(captured.out.splitlines()[-1])["answers"]
    assert answer.endswith("text NOT CHECKED.") == bool(code)


def test_nothing_that_works_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FAKE_SERVER", "plain=crashes,speckv=crashes")
    with pytest.raises(ServerError, match="no such device"):
        run(tmp_path)


def test_a_run_goes_on_where_it_stopped(tmp_path: Path):
    first = run(tmp_path, blocks=2)
    journal = tmp_path / "out" / "blocks.jsonl"
    before = journal.read_bytes()
    journal.write_bytes(before + b'{"draft": "eag')  # killed while it wrote
    again = done(wanted(tmp_path / "out", blocks=3), resume=True)
    assert journal.read_bytes().startswith(before)
    assert {cell["blocks"] for cell in again.results["cells"]} == {3}
    kept = {(c["arm"], c["concurrency"]): c["block_results"][:2] for c in again.results["cells"]}
    for cell in first.results["cells"]:
        assert kept[cell["arm"], cell["concurrency"]] == cell["block_results"]
    assert all(cell["lossless"] for cell in drafting(again.results))


def test_a_run_that_fails_leaves_an_older_journal_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run(tmp_path, blocks=1)
    before = (tmp_path / "out" / "blocks.jsonl").read_bytes()
    monkeypatch.setenv("FAKE_SERVER", "plain=crashes,speckv=crashes")
    with pytest.raises(ServerError):
        run(tmp_path, blocks=1)
    assert (tmp_path / "out" / "blocks.jsonl").read_bytes() == before


def test_resuming_something_else_is_refused(tmp_path: Path):
    run(tmp_path, blocks=1, concurrency=(1,))
    with pytest.raises(ConfigError, match=r"measured with concurrency \[1\], not \[2\]"):
        done(wanted(tmp_path / "out", concurrency=(2,)), resume=True)
    with pytest.raises(ConfigError, match="cannot read"):
        done(wanted(tmp_path / "other"), resume=True)
    (tmp_path / "out" / "blocks.jsonl").write_text("not a journal\n")
    with pytest.raises(ConfigError, match="not a readable journal"):
        done(wanted(tmp_path / "out"), resume=True)


@pytest.mark.parametrize(
    ("what", "said"), [("prompts", "set of prompts"), ("policy", "code of policy/"), ("cpu", "CPU")]
)
def test_a_run_goes_on_with_the_same_prompts_code_and_machine_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, said: str
):
    run(tmp_path, blocks=1, concurrency=(1,))
    again = wanted(tmp_path / "out", concurrency=(1,))
    if what == "prompts":
        edited = [replace_text(prompt, "another text") for prompt in PROMPTS]
        again = replace(again, workload=replace(again.workload, prompts=edited))
    changed = {"cpu": {"cpu": "x"}, "policy": {"code": {"policy": "x", "srt": "y"}}}.get(what, {})
    real = measure.origin
    monkeypatch.setattr(measure, "origin", lambda asked, told: real(asked, told | changed))
    with pytest.raises(ConfigError, match=f"measured with another {said}"):
        done(again, resume=True)


def replace_text(prompt: Prompt, text: str) -> Prompt:
    return msgspec.structs.replace(prompt, prompt=text)


def test_a_block_that_was_broken_off_is_not_filled_in(tmp_path: Path):
    """Some of its arms would have run it at another time than those they are compared with: the
    next block is one that none has run, however often it is resumed."""
    run(tmp_path, blocks=2, concurrency=(1,))
    journal = tmp_path / "out" / "blocks.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    for blocks in (2, 3):
        journal.write_bytes(b"".join(lines[:-2]))
        found = done(wanted(tmp_path / "out", blocks=blocks, concurrency=(1,)), resume=True)
        again = journal.read_bytes().splitlines(keepends=True)
        keys = [(json.loads(line)["arm"], json.loads(line)["index"]) for line in again[1:]]
        assert len(set(keys)) == len(keys), "no block twice"
        ran = {arm: {index for name, index in keys if name == arm} for arm in ARMS}
        assert len(set.intersection(*ran.values())) == blocks
        (cell,) = (cell for cell in found.results["cells"] if cell["arm"] == "speckv")
        assert cell["vs_best_fixed"] is not None  # a fixed arm's is None where it is the best
        lines = again


def test_the_time_of_earlier_sessions_counts(tmp_path: Path):
    asked = {"concurrency": (1,), "blocks": None, "minutes": 1.0}
    run(tmp_path, concurrency=(1,), blocks=2)
    journal = tmp_path / "out" / "blocks.jsonl"
    head, *lines = journal.read_bytes().splitlines()
    slow = [json.dumps(json.loads(line) | {"seconds": 30.0}).encode() for line in lines]
    journal.write_bytes(b"\n".join([head, *slow]) + b"\n")
    found = done(wanted(tmp_path / "out", **asked), resume=True)
    assert {cell["blocks"] for cell in found.results["cells"]} == {2}


SCRIPT = """
import signal, sys
from pathlib import Path
from typing import Any
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite run under nohup ignores it
sys.path.insert(0, sys.argv[1])
from tests.unit.ab import test_measure as t
t.process.COMMAND = t.FAKE
sys.exit(t.measure_and_report(t.wanted(Path(sys.argv[2]), blocks=5000), t.Screen(), only_json=True))
"""


@contextmanager
def running_script(*args: str) -> Iterator[subprocess.Popen[str]]:
    """:data:`SCRIPT` in a process group of its own, of which nothing outlives the block."""
    command = [sys.executable, "-c", SCRIPT, *args]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as run:
        try:
            yield run
        finally:
            with suppress(psutil.NoSuchProcess):
                for child in psutil.Process(run.pid).children(recursive=True):
                    child.kill()
            run.kill()


def test_ctrl_c_leaves_no_process_and_keeps_what_was_measured(tmp_path: Path):
    root = Path(__file__).parents[3]
    out = tmp_path / "out"
    journal = out / "blocks.jsonl"
    deadline = time.monotonic() + 60
    with running_script(str(root), str(out)) as run:
        while not (journal.exists() and journal.read_bytes().count(b"\n") > 20):
            assert time.monotonic() < deadline and run.poll() is None
            time.sleep(0.05)
        children = psutil.Process(run.pid).children(recursive=True)
        assert len(children) >= 2
        os.kill(run.pid, signal.SIGINT)
        said, _ = run.communicate(timeout=60)
    assert run.returncode == 130
    assert len(json.loads(said)["cells"]) == 2 * len(ARMS)
    assert not any(child.is_running() for child in children)
    results = json.loads((out / RESULTS).read_text())
    assert results["interrupted"] is True


def test_a_journal_is_whole_lines(tmp_path: Path):
    run(tmp_path, blocks=1, concurrency=(1,))
    lines = (tmp_path / "out" / "blocks.jsonl").read_bytes().splitlines()
    assert len(lines) == 1 + len(ARMS)
    assert all(msgspec.json.decode(line) for line in lines)
    assert not list((tmp_path / "out").glob(".*"))


def test_limits_must_be_equal_between_servers_that_are_not_up_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FAKE_SERVER", "plain=unequal")
    asked = wanted(tmp_path / "out", arms=("none", "static:1"), blocks=1, concurrency=(1,))
    found = done(one_by_one(asked))
    assert "effective_max_running_requests_per_dp is 48" in found.outcome.failures["eagle3-none"]


def test_drafts_one_after_the_other(tmp_path: Path):
    both = wanted(tmp_path / "out", arms=("none", "static:1", "speckv"), blocks=1)
    drafts = [Draft("a", "/a", "EAGLE3"), Draft("b", "/b", "STANDALONE")]
    groups = [group_of(draft, both.options.arms) for draft in drafts]
    found = done(replace(both, drafts=drafts, groups=groups))
    assert not found.outcome.failures
    assert {(cell["draft"], cell["arm"]) for cell in found.results["cells"]} == {
        (draft, arm) for draft in "ab" for arm in ("none", "static:1", "speckv")
    }
    assert all(cell["lossless"] for cell in drafting(found.results))


def test_servers_one_after_another_give_the_same_cells(tmp_path: Path):
    found = done(one_by_one(wanted(tmp_path / "out")))
    assert {cell["blocks"] for cell in found.results["cells"]} == {3}
    assert all(cell["lossless"] for cell in drafting(found.results))


@pytest.mark.parametrize(("fault", "code"), [("ema=crashes", 1), ("speckv=lossy", 1)])
def test_what_is_wrong_is_the_exit_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: str,
    code: int,
):
    monkeypatch.setenv("FAKE_SERVER", fault)
    asked = wanted(tmp_path, arms=("none", "static:1", "ema", "speckv"), concurrency=(1,))
    assert measure_and_report(asked, Screen(), only_json=True) == code
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["failures"] == (["eagle3-ema"] if "ema" in fault else [])
