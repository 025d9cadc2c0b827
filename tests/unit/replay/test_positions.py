"""Files of positions say what they hold, or are refused in a sentence; traces become positions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from sglang_speckv.config import ConfigError
from sglang_speckv.offline.columns import read_columns
from sglang_speckv.replay.positions import from_trace, read_positions, write_positions
from tests.unit.offline.synthetic import Traffic, write_trace
from tests.unit.replay.answers import positions

ABOUT = "speckv"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.safetensors"
    made = positions(requests=3, length=10)
    lengths = [20, 30, 40]
    write_positions(path, made.source, lengths, made.start, made.correct, made.signals)
    return path


def test_what_was_written_is_read(file: Path) -> None:
    found, made = read_positions(file), positions(requests=3, length=10)
    assert found.source == made.source and found.walked and found.depth == 7
    assert (found.start == made.start).all() and (found.correct == made.correct).all()
    assert found.signals == pytest.approx(made.signals, abs=1e-3)
    # the first token is out when the first round begins
    assert found.context[:2].tolist() == [21, 22] and found.context[10] == 31
    assert found.labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("start", lambda a: a[:-1], "its requests are not those"),
        ("start", lambda a: a * 0, "a request without a position"),
        ("prompt_len", lambda a: a[:2], "its requests are not those"),
        ("prompt_len", lambda a: -a, "a prompt of no length"),
        ("correct", lambda a: a + 7, "more correct drafts than were made"),
        ("correct", lambda a: a[:-1], "positions of no request"),
        ("signals", lambda a: a[:, :, :1].copy(), "its chains are not"),
        ("signals", lambda a: a * 2, "a probability that is none"),
        ("signals", lambda a: a * np.nan, "a probability that is none"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(file: Path, name, change, said) -> None:
    content = file.read_bytes()
    arrays = load(content)
    arrays[name] = np.ascontiguousarray(change(arrays[name]))
    size = int.from_bytes(content[:8], "little")
    import json

    about = json.loads(content[8 : 8 + size])["__metadata__"]
    file.write_bytes(save(arrays, about))
    with pytest.raises(ConfigError, match=f"{said}.*examples/record_positions.py"):
        read_positions(file)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\xff" * 8 + b"{}"])
def test_what_is_no_such_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="holds no positions"):
        read_positions(path)
    path.write_bytes(save({"other": np.zeros(3)}, {ABOUT: "{}"}))
    with pytest.raises(ConfigError, match="holds no positions"):
        read_positions(path)


def test_a_trace_becomes_its_deep_rounds(tmp_path: Path) -> None:
    traffic = Traffic(requests=6, rounds=30, batch=2, depths=(1, 7))
    write_trace(tmp_path / "a.jsonl.gz", traffic.records())
    columns = read_columns([tmp_path])
    found = from_trace(columns, 7)
    assert not found.walked and len(found) == int((columns.num_steps == 7).sum())
    assert found.start[-1] == len(found) and (np.diff(found.start) > 0).all()
    with pytest.raises(ConfigError, match="no recorded round was drafted to depth 9"):
        from_trace(columns, 9)
