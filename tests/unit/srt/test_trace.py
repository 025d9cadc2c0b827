"""The trace: what is written can be read, also after a crash, and serving never waits for it."""

import gzip
import math
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sglang_speckv.config import ConfigError
from sglang_speckv.offline.columns import read_columns
from sglang_speckv.offline.records import SCHEMA_VERSION, Header, Record, read_trace, trace_files
from sglang_speckv.policy.base import Batch, Decision, Round
from sglang_speckv.srt import trace
from sglang_speckv.srt.rounds import DecodeLaunch, FinishedRound
from sglang_speckv.srt.trace import TraceWriter, bounded_id, check_directory

HEADER = Header(
    target="t", draft="d", algorithm="EAGLE3", draft_vocab_size=100, candidate_steps=(0, 2)
)


def request(rid: str, temperature: float = 0.0, top_k: int = 1) -> SimpleNamespace:
    return SimpleNamespace(
        rid=rid, sampling_params=SimpleNamespace(temperature=temperature, top_k=top_k)
    )


def finished(*correct: int, rids: tuple[str, ...] = ("code:7:a", "b")) -> FinishedRound:
    reqs = (request(rids[0]), request(rids[1], 0.7, -1))
    launch = DecodeLaunch(reqs, None, (), num_steps=2, decision=Decision(2, "best", 1.5))
    signals = np.array([[[0.5, 0.25], [math.nan, 0.5]], [[0.75, 0.125], [1.0, 0.0]]])
    firsts = np.array([0.4, math.nan])
    outcome = Round(2, 2, list(correct), 0.0123456789, firsts, signals)
    launch.batch = Batch(2, firsts)
    return FinishedRound(outcome, launch, [0, 1], [10, 20])


def test_round_trip(tmp_path: Path) -> None:
    writer = TraceWriter(str(tmp_path), HEADER)
    writer.write(finished(1, 2), "throughput", log_vocab=2.0)
    writer.close()
    header, records = read_trace(trace_files(tmp_path)[0])
    assert header == HEADER
    first, second = records
    assert first == Record(
        round=1,
        request="code:7:a",
        batch_size=2,
        context_len=10,
        num_steps=2,
        num_correct_drafts=1,
        top1_prob=(0.5, -1.0),
        entropy=(0.5, 1.0),
        first_prob=0.4,
        seconds=0.012346,
        policy="throughput",
        reason="best",
        expected_accept_length=1.5,
    )
    assert (first.label, first.prompt) == ("code", "code:7")
    assert (second.first_prob, second.sampled, second.label) == (None, True, "")
    assert writer.snapshot()["records"] == 2


def test_what_changed_a_round_is_on_record(tmp_path: Path) -> None:
    done = finished(1, 0)
    changed = replace(done.outcome, stopped=True, widths=np.array([2, 0]))
    writer = TraceWriter(str(tmp_path), HEADER)
    writer.write(replace(done, outcome=changed), "throughput", log_vocab=2.0)
    writer.close()
    _, records = read_trace(trace_files(tmp_path)[0])
    assert [(r.stopped, r.num_verified) for r in records] == [(True, 2), (True, 0)]


def test_where_the_device_stopped_a_round_is_on_record(tmp_path: Path) -> None:
    done = finished(1, 0)
    writer = TraceWriter(str(tmp_path), HEADER)
    changed = replace(done.outcome, stopped=True, made=1)
    writer.write(replace(done, outcome=changed), "throughput", log_vocab=2.0)
    writer.close()
    _, records = read_trace(trace_files(tmp_path)[0])
    assert [(r.num_steps, r.num_verified) for r in records] == [(2, 1), (2, 1)]


def test_readings_that_cannot_be_leave_the_trace_readable(tmp_path: Path) -> None:
    """As after a clock that was set back, or of a draft whose logits overflowed."""
    done = finished(1, 2)
    writer = TraceWriter(str(tmp_path), HEADER)
    for seconds in (0.0, -3600.0, math.nan, math.inf, 2e-7):
        wrong = np.array([[[math.inf, 0.5], [2.0, math.inf]], [[-1.0, math.nan], [1.0005, 0.5]]])
        odd = replace(
            done.outcome, seconds=seconds, signals=wrong, first_probs=np.array([math.inf, 2.0])
        )
        writer.write(replace(done, outcome=odd), "throughput", log_vocab=2.0)
    writer.close()
    columns = read_columns([tmp_path])
    assert len(columns) == 10 and np.isnan(columns.seconds).all()
    assert np.isnan(columns.first_prob).all()
    np.testing.assert_array_equal(columns.signals[:2, :, 0], [[np.nan, np.nan], [np.nan, 1.0]])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_a_full_disk_is_told_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "open", lambda self, mode: open("/dev/full", "wb"))  # noqa: SIM115
    monkeypatch.setattr(trace, "FLUSH_SECONDS", 0.0)
    writer = TraceWriter(str(tmp_path), HEADER)
    writer._thread.join(timeout=10)
    assert "No space left on device" in writer.snapshot()["failed"]
    writer.write(finished(1, 2), "throughput", 2.0)
    assert writer.dropped == 1
    writer.close()


def test_what_was_flushed_survives_a_kill(tmp_path: Path) -> None:
    code = f"""
    import os, signal, sys, time
    sys.path.insert(0, {str(Path(__file__).parents[3])!r})
    from tests.unit.srt.test_trace import HEADER, TraceWriter, finished
    writer = TraceWriter({str(tmp_path)!r}, HEADER)
    for _ in range(500):
        writer.write(finished(1, 2), "throughput", 2.0)
    time.sleep(2.5)
    writer.write(finished(0, 0), "throughput", 2.0)  # not flushed yet
    os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], timeout=60)
    _, records = read_trace(trace_files(tmp_path)[0])
    assert len(list(records)) >= 1000


def test_a_full_queue_drops_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TraceWriter, "_run", lambda self: None)
    writer = TraceWriter(str(tmp_path), HEADER, capacity=3)
    for _ in range(10):
        writer.write(finished(1, 2), "throughput", 2.0)
    assert writer.dropped == 7


def test_a_full_file_is_followed_by_another_and_the_oldest_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "FILE_BYTES", 2_000)
    monkeypatch.setattr(trace, "FILES", 3)
    monkeypatch.setattr(trace, "FLUSH_SECONDS", 0.0)
    writer = TraceWriter(str(tmp_path), HEADER)
    for _ in range(400):
        writer.write(finished(1, 2), "throughput", 2.0)
    writer.close()
    files = trace_files(tmp_path)
    assert len(files) == 3 and len(writer._files) == 3
    assert not files[0].name.endswith("-0001.jsonl.gz")
    rounds = []
    for file in files:
        header, records = read_trace(file)
        assert header == HEADER
        rounds += [record.round for record in records]
    assert rounds == [n for n in range(rounds[0], 401) for _ in range(2)]
    assert (writer.dropped, writer.failed) == (0, "")


@pytest.mark.parametrize(
    "rid", ["\udcff", "x" * (1 << 20), "\udc80" * 500, "ü" * 128, None, "code:7:" + "y" * 999]
)
def test_any_id_is_written_in_bounded_length(tmp_path: Path, rid: str | None) -> None:
    writer = TraceWriter(str(tmp_path), HEADER)
    writer.write(finished(1, 2, rids=(rid, "b")), "throughput", 2.0)  # type: ignore[arg-type]
    writer.close()
    first, second = read_trace(trace_files(tmp_path)[0])[1]
    assert 1 <= len(first.request) <= 128 and second.request == "b"
    assert (writer.dropped, writer.failed) == (0, "")


def test_long_ids_stay_apart_and_keep_their_label() -> None:
    one, two = (bounded_id("code:7:" + "x" * 200 + end) for end in "ab")
    assert one != two
    assert one.startswith("code:7:x") and len(one) == 128
    assert bounded_id("code:7:a") == "code:7:a"


def test_a_round_that_cannot_be_told_is_dropped_and_the_trace_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = TraceWriter(str(tmp_path), HEADER)
    for _ in range(3):
        writer.write(finished(1), "throughput", 2.0)  # a count is missing
    writer.write(finished(1, 2), "throughput", 2.0)
    writer.close()
    (_, records) = read_trace(trace_files(tmp_path)[0])
    assert [record.round for record in records] == [4, 4]
    assert (writer.written, writer.dropped) == (2, 3)
    assert len(caplog.records) == 1


def test_closing_a_trace_that_has_failed_does_not_wait(tmp_path: Path) -> None:
    writer = TraceWriter(str(tmp_path / "gone"), HEADER, capacity=1)
    writer._thread.join(timeout=10)
    writer._queue.put_nowait((0, "", 1.0, finished(1, 2)))  # full, and nobody takes from it
    writer.close()


def test_anything_that_ends_the_thread_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TraceWriter, "_write_rounds", lambda *_: 1 / 0)
    writer = TraceWriter(str(tmp_path), HEADER)
    writer._thread.join(timeout=10)
    assert "division" in writer.snapshot()["failed"]


def test_nodes_may_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("node-a", "node/b"):
        monkeypatch.setattr("socket.gethostname", lambda host=host: host)
        TraceWriter(str(tmp_path), HEADER).close()
    assert len(trace_files(tmp_path)) == 2


def test_a_broken_disk_ends_the_trace_and_not_the_server(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    writer = TraceWriter(str(gone), HEADER)
    writer._thread.join(timeout=10)
    assert writer.failed
    writer.write(finished(1, 2), "throughput", 2.0)
    assert writer.dropped == 1
    assert writer.snapshot()["failed"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="cannot be written"):
        check_directory(str(tmp_path / "trace"))


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--speckv-trace"):
        check_directory(str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no complete line"),
        (b"not gzip at all", "no complete line"),
        (gzip.compress(b"{}\n", mtime=0), "header"),
        (gzip.compress(b'{"target": 3}\n', mtime=0), "header"),
        (gzip.compress(b"\xff\xfe\n", mtime=0), "header"),
    ],
)
def test_what_is_no_trace_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_trace(path)


def test_another_schema_is_refused(tmp_path: Path) -> None:
    import msgspec

    path = tmp_path / "x.jsonl.gz"
    newer = msgspec.structs.replace(HEADER, schema=SCHEMA_VERSION + 1)
    path.write_bytes(gzip.compress(msgspec.json.encode(newer) + b"\n"))
    with pytest.raises(ConfigError, match=f"schema {SCHEMA_VERSION + 1}"):
        read_trace(path)


def test_a_bad_record_names_its_line(tmp_path: Path) -> None:
    import msgspec

    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(msgspec.json.encode(HEADER) + b'\n{"round": "one"}\n'))
    with pytest.raises(ConfigError, match="line 2"):
        list(read_trace(path)[1])


def test_an_endless_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b"x" * (3 << 20)))
    with pytest.raises(ConfigError, match="bytes"):
        read_trace(path)


def test_an_empty_folder_is_no_trace(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--speckv-trace"):
        trace_files(tmp_path)
