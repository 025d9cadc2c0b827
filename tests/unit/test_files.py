"""Reads are bounded and named, writes whole or not at all."""

from pathlib import Path

import pytest

from sglang_speckv.config import ConfigError
from sglang_speckv.files import read_bounded, write_atomically


def test_reads_up_to_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10)
    assert read_bounded(path, 10) == b"x" * 10
    with pytest.raises(ConfigError, match=r"file' is over 0 MiB; split it"):
        read_bounded(path, 9, "split it")


@pytest.mark.parametrize("name", ["missing", "."])
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*; check the path"):
        read_bounded(tmp_path / name, 10)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    write_atomically(path, lambda scratch: scratch.write_text("old"))

    def half(scratch: Path) -> None:
        scratch.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, half)
    assert path.read_text() == "old"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]
