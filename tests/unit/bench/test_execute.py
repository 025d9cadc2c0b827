"""A whole comparison on servers that answer like SGLang, and on servers that do not."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import msgspec
import psutil
import pytest

from sglang_speckv.bench import execute as execute_module
from sglang_speckv.bench import prepare, server
from sglang_speckv.bench.ab import last_line, lossy, run_ab
from sglang_speckv.bench.arms import Draft, arms_for
from sglang_speckv.bench.compare import Comparison
from sglang_speckv.bench.connection import ServerError
from sglang_speckv.bench.demo import run_demo
from sglang_speckv.bench.execute import Execution, execute
from sglang_speckv.bench.options import options_from
from sglang_speckv.bench.page import write_report
from sglang_speckv.bench.prepare import server_flags
from sglang_speckv.bench.progress import Screen
from sglang_speckv.bench.prompts import Prompt
from sglang_speckv.bench.sampling import LEAST_P
from sglang_speckv.bench.traffic import Workload
from sglang_speckv.config import ConfigError
from tests.forked import Forked

MODULE = "tests.unit.bench.fake_server"
FAKE = (sys.executable, "-m", MODULE)
ARMS = ("none", "static:1", "static:3", "static:3#2", "speckv")
PROMPTS = [Prompt(f"{kind}-{i}", kind, "x" * i) for i in range(4) for kind in ("code", "qa")]


@pytest.fixture(autouse=True)
def _fake_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forked, so that none imports aiohttp, and looked at often: they are ready at once."""

    def spawn(fake: server.Server) -> Forked:
        return Forked(fake.argv, fake.log, imports=(MODULE,))

    monkeypatch.setattr(server, "COMMAND", FAKE)
    monkeypatch.setattr(server.Server, "_spawn", spawn)
    monkeypatch.setattr(server, "_POLL_S", 0.02)


def wanted(out: Path, **asked: object) -> Comparison:
    values = {
        "arms": ARMS,
        "concurrency": (1, 2),
        "rounds": 3,
        "max_new_tokens": 6,
        "timeout_s": 60.0,
        "requests_per_slot": 1,
        "out": str(out),
    }
    options = options_from(values | asked, "test")
    drafts = [Draft("eagle3", "/head", "EAGLE3")]
    return Comparison(
        options=options,
        target="target",
        drafts=drafts,
        arms=arms_for(drafts, options.all_arms),
        workload=Workload(PROMPTS, options.concurrency, open_loop_requests=4),
        tokenize=lambda prompt: [len(prompt.prompt), len(prompt.kind)],
        server_flags=server_flags(2, "float32"),
        dtype="float32",
        server_bytes=1,
        planned_rounds=3,
    )


def run(tmp_path: Path, **asked: object) -> Execution:
    return execute(wanted(tmp_path / "out", **asked), Screen())


def test_everything_that_was_promised_is_there(tmp_path: Path):
    done = run(tmp_path, traffic=("phases", "mixed"), check_static=3, rate=(50.0,))
    assert not done.outcome.failures
    report = write_report(done, tmp_path / "out" / "report.html")
    line = json.loads(last_line(done.results, done.path, report))
    loads = {(cell["workload"], cell["concurrency"], cell["rate"]) for cell in line["cells"]}
    assert loads == {
        (traffic, concurrency, rate)
        for traffic in ("phases", "mixed")
        for concurrency, rate in ((1, None), (2, None), (None, 50.0))
    }
    by_arm = {
        c["arm"]: c for c in line["cells"] if (c["workload"], c["concurrency"]) == ("mixed", 2)
    }
    assert set(by_arm) == {*ARMS, "fresh:3"}
    assert by_arm["static:3"]["steps"] == {"3": 1.0} and by_arm["none"]["steps"] is None
    assert all(cell["blocks"] == 3 for cell in line["cells"])
    assert by_arm["speckv"]["interval"][0] <= by_arm["speckv"]["vs_best_static"]
    assert all(cell["lossless"] for cell in line["cells"] if cell["arm"] != "none")
    sweep = line["sweep"]["eagle3"]["mixed"]
    assert sweep["headroom"] >= 1 and sweep["best_single_static"] in ARMS
    assert {"tok_per_s", "vs_best_single_static", "vs_ema", "worst_cell_interval"} <= set(
        sweep["speckv"]
    )
    kinds = {(check["kind"], check["arm"]) for check in line["checks"]}
    assert kinds == {("same arm twice", "static:3#2"), ("own server", "fresh:3")}
    page = report.read_text()
    assert "http" not in page.replace("http://www.w3.org", "")
    check_pictures(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    for server_facts in done.results["servers"].values():
        assert server_facts["ready_s"] > 0 and server_facts["memory_gb"] is not None


def check_pictures(pictures: list[str]) -> None:
    """Rates of both kinds of traffic, steps over time, accept length by class, calibration."""
    shown = [set(re.findall(r"<text[^>]*>([^<]+)</text>", picture)) for picture in pictures]
    phases, mixed, steps, classes, calibration = shown
    for rates in (phases, mixed):
        assert {*ARMS, "fresh:3", "1 at a time", "2 at a time", "50 requests/s"} <= rates
    assert {"eagle3: mixed, concurrency 2", "eagle3: phases, concurrency 1"} <= steps
    assert {"code", "qa", "static:1", "speckv"} <= classes
    assert "eagle3 speckv" in calibration


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("speckv=refuses", "this is not served here"),
        ("speckv=crashes", "no such device"),
        ("speckv=dies", "out of memory"),
        ("speckv=hangs", "no answer from /generate within 3 s"),
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
        asked["timeout_s"] = 3.0
    done = run(tmp_path, **asked)
    assert list(done.outcome.failures) == ["eagle3-speckv"]
    assert reason in done.outcome.failures["eagle3-speckv"]
    ran = {cell["arm"]: len(cell["blocks"]) for cell in done.results["cells"]}
    assert ran["none"] == ran["ema"] == 3
    assert write_report(done, tmp_path / "report.html").read_text().count("out of the comparison")


def test_answers_that_are_not_the_targets_fail_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FAKE_SERVER", "speckv=lossy")
    done = run(tmp_path, concurrency=(1,), arms=("none", "static:1"))
    assert lossy(done.results) == [
        "eagle3 static:1 (mixed, 1): 3 of 3 answers are not the target's"
    ]
    assert not lossy(done.results | {"dtype": "bfloat16"})


@pytest.mark.parametrize("fault", ["", "speckv=biased"])
def test_sampled_answers_are_judged_by_their_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
):
    monkeypatch.setenv("FAKE_SERVER", fault)
    arms = ("none", "speckv", "ema")
    done = run(tmp_path, concurrency=(2,), rounds=1, arms=arms, temperature=1.0)
    assert all(cell["lossless"] is None for cell in done.results["cells"])
    found = done.results["sampling_p_values"]
    assert set(found) == {"eagle3 speckv", "eagle3 ema"}
    assert LEAST_P < found["eagle3 ema"] < 1, "drawn anew, so never quite alike"
    assert (found["eagle3 speckv"] < LEAST_P) == bool(fault)
    said = [line.partition(" (p")[0] for line in lossy(done.results)]
    assert said == ["eagle3 speckv: sampled answers are not the target's distribution"] * bool(
        fault
    )


def test_nothing_that_works_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FAKE_SERVER", "plain=crashes,speckv=crashes")
    with pytest.raises(ServerError, match="no such device"):
        run(tmp_path)


def test_a_run_goes_on_where_it_stopped(tmp_path: Path):
    first = run(tmp_path, rounds=2)
    journal = tmp_path / "out" / "blocks.jsonl"
    before = journal.read_bytes()
    journal.write_bytes(before + b'{"draft": "eag')  # killed while it wrote
    again = execute(wanted(tmp_path / "out", rounds=3), Screen(), resume=True)
    assert journal.read_bytes().startswith(before)
    assert {len(cell["blocks"]) for cell in again.results["cells"]} == {3}
    kept = {(c["arm"], c["concurrency"]): c["blocks"][:2] for c in again.results["cells"]}
    for cell in first.results["cells"]:
        assert kept[cell["arm"], cell["concurrency"]] == cell["blocks"]
    assert all(cell["lossless"] for cell in again.results["cells"] if cell["arm"] != "none")


def test_resuming_something_else_is_refused(tmp_path: Path):
    run(tmp_path, rounds=1, concurrency=(1,))
    with pytest.raises(ConfigError, match=r"measured with concurrency \[1\], not \[2\]"):
        execute(wanted(tmp_path / "out", concurrency=(2,)), Screen(), resume=True)
    with pytest.raises(ConfigError, match="cannot read"):
        execute(wanted(tmp_path / "other"), Screen(), resume=True)
    (tmp_path / "out" / "blocks.jsonl").write_text("not a journal\n")
    with pytest.raises(ConfigError, match="not a readable journal"):
        execute(wanted(tmp_path / "out"), Screen(), resume=True)


SCRIPT = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite run under nohup ignores it
sys.path.insert(0, sys.argv[1])
from tests.unit.bench import test_execute as t
t.server.COMMAND = t.FAKE
done = t.execute(t.wanted(Path(sys.argv[2]), rounds=5000), t.Screen())
assert done.outcome.interrupted
print(len(done.results["cells"]))
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
    assert run.returncode == 0 and int(said) == 2 * len(ARMS)
    assert not any(child.is_running() for child in children)
    results = json.loads((out / execute_module.RESULTS).read_text())
    assert results["interrupted"] is True


def test_a_journal_is_whole_lines(tmp_path: Path):
    run(tmp_path, rounds=1, concurrency=(1,))
    lines = (tmp_path / "out" / "blocks.jsonl").read_bytes().splitlines()
    assert len(lines) == 1 + len(ARMS)
    assert all(msgspec.json.decode(line) for line in lines)
    assert not list((tmp_path / "out").glob(".*"))


def test_limits_must_be_equal_between_servers_that_are_not_up_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FAKE_SERVER", "plain=unequal")
    asked = wanted(tmp_path / "out", arms=("none", "static:1"), rounds=1, concurrency=(1,))
    done = execute(replace(asked, server_bytes=10**15), Screen())
    assert "effective_max_running_requests_per_dp is 48" in done.outcome.failures["none"]


def test_drafts_one_after_the_other(tmp_path: Path):
    both = wanted(tmp_path / "out", arms=("none", "static:1", "speckv"), rounds=1)
    drafts = [Draft("a", "/a", "EAGLE3"), Draft("b", "/b", "STANDALONE")]
    arms = arms_for(drafts, both.options.arms, shared=False)
    done = execute(replace(both, drafts=drafts, arms=arms), Screen())
    assert not done.outcome.failures
    assert {(cell["draft"], cell["arm"]) for cell in done.results["cells"]} == {
        (draft, arm) for draft in "ab" for arm in ("none", "static:1", "speckv")
    }
    assert all(cell["lossless"] for cell in done.results["cells"] if cell["arm"] != "none")


def test_servers_one_after_another_give_the_same_cells(tmp_path: Path):
    asked = replace(wanted(tmp_path / "out"), server_bytes=10**15)
    done = execute(asked, Screen())
    assert {len(cell["blocks"]) for cell in done.results["cells"]} == {3}
    assert all(cell["lossless"] for cell in done.results["cells"] if cell["arm"] != "none")


@pytest.mark.parametrize(("fault", "code"), [("", 0), ("ema=crashes", 1), ("speckv=lossy", 1)])
def test_ab_prints_tables_and_one_last_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: str,
    code: int,
):
    monkeypatch.setenv("FAKE_SERVER", fault)
    asked = wanted(tmp_path, arms=("none", "static:1", "ema", "speckv"), concurrency=(1,))
    monkeypatch.setattr(prepare, "prepare", lambda *args: asked)
    assert run_ab(asked.options) == code
    out = capsys.readouterr().out
    line = json.loads(out.splitlines()[-1])
    assert out.lstrip().startswith("eagle3, mixed: headroom")
    assert line["failures"] == (["eagle3-ema"] if "ema" in fault else [])
    assert Path(line["report"]).is_file() and Path(line["results"]).is_file()


@pytest.mark.parametrize("fault", ["", "speckv=crashes"])
def test_the_demo_is_a_small_ab(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: str,
):
    monkeypatch.setenv("FAKE_SERVER", fault)
    asked = wanted(tmp_path, arms=("none", "static:1", "speckv"), rounds=2)
    monkeypatch.setattr(prepare, "prepare", lambda *args: asked)
    assert run_demo(asked.options, 4) == (1 if fault else 0)
    captured = capsys.readouterr()
    if fault:
        assert "no draft had an active SpecKV server" in captured.err and not captured.out
        return
    line = json.loads(captured.out.splitlines()[-1])
    assert list(line) == ["cells", "results", "picture", "seconds"]
    assert {cell["arm"] for cell in line["cells"]} == {"none", "static:1", "speckv"}
    assert Path(line["picture"]).read_bytes().startswith(b"\x89PNG")
