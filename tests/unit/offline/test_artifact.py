"""Artifacts: what is written is read back, and nothing else is."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from sglang_speckv.config import ConfigError
from sglang_speckv.offline import artifact as artifact_module
from sglang_speckv.offline.artifact import (
    MAX_BYTES,
    MOST_FILES,
    Artifact,
    artifacts_in,
    check_identity,
    fitting,
    load_artifact,
    save_artifact,
)
from sglang_speckv.policy import Prior
from sglang_speckv.policy.mlp import MlpWeights
from sglang_speckv.policy.prior import SIGNAL_BINS, AcceptancePrior, CostPrior

IDENTITY = {"target": "big", "draft": "small", "quantization": None, "draft_vocab_size": 1000}
OFTEN = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def artifact(depth: int = 3) -> Artifact:
    mean = np.arange(2.0 * depth).reshape(depth, 2).T  # not contiguous
    seen = np.full(SIGNAL_BINS, 1 / SIGNAL_BINS)
    acceptance = AcceptancePrior(mean, np.eye(2 * depth), seen, np.ones(depth))
    cost = CostPrior(np.array([1, 1]), np.array([-1, 3]), np.array([0.1, 0.2]), np.ones(2))
    mlp = MlpWeights(np.ones((6, 16)), np.zeros(16), np.ones(16), np.asarray(0.5))
    return Artifact(IDENTITY, {"command": "speckv train"}, Prior(acceptance, cost, mlp))


def saved(folder: Path, value: Artifact | None = None) -> Path:
    path = folder / "artifact.safetensors"
    save_artifact(value or artifact(), path)
    return path


def problem(path: Path) -> str:
    """Why it is refused: one sentence that names the file and what to do."""
    with pytest.raises(ConfigError) as caught:
        load_artifact(path)
    message = str(caught.value)
    assert str(path) in message and "train it again" in message and "\n" not in message
    return message


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    loaded, original = load_artifact(saved(tmp_path)), artifact()
    assert loaded.identity == IDENTITY and loaded.provenance == original.provenance
    assert loaded.acceptance is not None and loaded.cost is not None and loaded.mlp is not None
    assert original.acceptance is not None
    assert (loaded.acceptance.mean == original.acceptance.mean).all()
    assert loaded.cost.num_steps.tolist() == [-1, 3]
    assert loaded.mlp.output_bias == 0.5


def test_parts_may_be_missing(tmp_path: Path) -> None:
    loaded = load_artifact(saved(tmp_path, Artifact({}, {}, Prior())))
    assert loaded.acceptance is None and loaded.cost is None and loaded.mlp is None


def test_the_same_content_makes_the_same_bytes(tmp_path: Path) -> None:
    first, second = saved(tmp_path / "a"), saved(tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()


def test_an_older_artifact_is_replaced_whole(tmp_path: Path) -> None:
    path = saved(tmp_path)
    describe(path, {"schema": 1})
    save_artifact(artifact(depth=5), path)
    acceptance = load_artifact(path).acceptance
    assert acceptance is not None and acceptance.depth == 5
    assert list(tmp_path.iterdir()) == [path], "no scratch left"


def test_what_cannot_be_written_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        path.open("wb").close()
        raise OSError(28, "No space left on device")

    path = saved(tmp_path)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ConfigError, match=r"cannot write .*artifact\.safetensors.*No space left"):
        save_artifact(artifact(depth=5), path)
    acceptance = load_artifact(path).acceptance
    assert acceptance is not None and acceptance.depth == 3
    assert list(tmp_path.iterdir()) == [path], "no scratch left"


def test_what_is_no_artifact_is_not_overwritten(tmp_path: Path) -> None:
    text, model, link, folder = (tmp_path / f"{name}.safetensors" for name in "abcd")
    text.write_text("mine")
    save_file({"weight": np.ones(2)}, model)
    link.symlink_to(tmp_path / "nowhere")
    folder.mkdir()
    before = model.read_bytes()
    for path in (text, model, link, folder):
        with pytest.raises(ConfigError, match="exists and is no artifact; name another file"):
            save_artifact(artifact(), path)
    assert text.read_text() == "mine" and model.read_bytes() == before
    assert link.is_symlink() and folder.is_dir()


def test_its_name_says_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a file named \*\.safetensors; rename '.*thesis'"):
        save_artifact(artifact(), tmp_path / "thesis")
    assert not list(tmp_path.iterdir())


def test_what_could_not_be_read_back_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact_module, "MAX_BYTES", 100)
    with pytest.raises(ConfigError, match="too large to be read back"):
        saved(tmp_path)
    assert not list(tmp_path.iterdir())


def several(folder: Path) -> None:
    for name in (None, "int8", "nf4"):
        value = replace(artifact(), identity={**IDENTITY, "quantization": name})
        save_artifact(value, folder / f"{name}.safetensors")


def test_of_several_artifacts_the_one_that_fits_is_taken(tmp_path: Path) -> None:
    several(tmp_path)
    for name in (None, "int8", "nf4"):
        wanted = tmp_path / f"{name}.safetensors"
        assert fitting(tmp_path, {**IDENTITY, "quantization": name}) == wanted
        assert fitting(wanted, {**IDENTITY, "quantization": name}) == wanted


def test_where_none_fits_the_nearest_is_named(tmp_path: Path) -> None:
    several(tmp_path)
    with pytest.raises(ConfigError) as caught:
        fitting(tmp_path, {**IDENTITY, "quantization": "int8", "draft": "other"})
    message = str(caught.value)
    assert "none of the 3 artifacts" in message and "\n" not in message
    assert "the nearest, int8.safetensors, is for draft 'small' (here 'other');" in message


def test_one_broken_artifact_of_several_is_told(tmp_path: Path) -> None:
    several(tmp_path)
    (tmp_path / "int8.safetensors").write_bytes(b"{")
    with pytest.raises(ConfigError, match=r"int8\.safetensors' is no artifact"):
        artifacts_in(tmp_path)


def test_a_folder_of_very_many(tmp_path: Path) -> None:
    for number in range(MOST_FILES + 1):
        (tmp_path / f"{number}.safetensors").touch()
    with pytest.raises(ConfigError, match="more than 64 artifacts; name one of them"):
        artifacts_in(tmp_path)


def test_a_mismatch_is_refused_with_what_differs(tmp_path: Path) -> None:
    loaded = load_artifact(saved(tmp_path))
    check_identity(loaded, IDENTITY)
    check_identity(loaded, {**IDENTITY, "more": "than it knows"})
    with pytest.raises(ConfigError) as caught:
        check_identity(loaded, {**IDENTITY, "draft": "other", "quantization": "int8"})
    message = str(caught.value)
    assert (
        "draft 'small' (here 'other')" in message and "quantization None (here 'int8')" in message
    )
    assert "target" not in message and "draft_vocab_size" not in message


def rewrite(path: Path, **arrays: np.ndarray) -> None:
    """Replace or add arrays; the description stays."""
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    save_file({**load_file(path), **arrays}, path, metadata)


def describe(path: Path, document: object) -> None:
    """Replace the description; the arrays stay."""
    text = document if isinstance(document, str) else json.dumps(document)
    save_file(load_file(path), path, {"speckv": text})


WRONG_ARRAYS = {
    "not finite": (
        "mlp.output",
        np.full(16, np.nan),
        "'mlp.output' has a value that is not finite",
    ),
    "another shape": ("mlp.output", np.ones(15), "shapes"),
    "another type": ("mlp.output", np.ones(16, "f4"), "is of type float32, not float64 or int64"),
    "an unknown name": ("mlp.extra", np.ones(1), "the array 'mlp.extra' is unknown"),
    "no covariance": ("acceptance.covariance", -np.eye(6), "covariance"),
    "signals of no share": ("acceptance.seen", np.zeros(SIGNAL_BINS), "sum to 1"),
    "a time of zero": ("cost.seconds", np.zeros(2), "not positive"),
    "too large": ("mlp.output", np.ones(MAX_BYTES // 8), "is over 5 MiB"),
}


@pytest.mark.parametrize(("name", "array", "reason"), WRONG_ARRAYS.values(), ids=WRONG_ARRAYS)
def test_a_wrong_array_is_named(tmp_path: Path, name: str, array: np.ndarray, reason: str) -> None:
    path = saved(tmp_path)
    rewrite(path, **{name: array})
    assert reason in problem(path)


def test_a_missing_array_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path, Artifact({}, {}, Prior()))
    rewrite(path, **{"mlp.hidden": np.ones((6, 16))})
    assert "the array 'mlp.hidden_bias' is missing" in problem(path)


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ("{", "truncated"),
        ({"schema": 2}, "it has schema 2, not 3"),
        ({"schema": 3, "identity": {}}, "provenance"),
        ({"schema": 3, "identity": {"a": []}, "provenance": {}}, "identity"),
        ({"schema": 3, "identity": {}, "provenance": {}, "x": 1}, "`x`"),
    ],
)
def test_a_wrong_description_is_named(tmp_path: Path, document: object, reason: str) -> None:
    path = saved(tmp_path)
    describe(path, document)
    assert reason in problem(path)


def directory(path: Path) -> None:
    """An artifact as older versions wrote it."""
    path.mkdir()
    (path / "policy.json").write_text('{"schema": 1, "identity": {}, "provenance": {}}')
    archive(path / "arrays.npz")


def archive(path: Path) -> None:
    with path.open("wb") as file:  # np.savez would change the name
        np.savez(file, **{"mlp.output": np.ones(16)})
    assert zipfile.is_zipfile(path)


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)


NO_ARTIFACTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: None, "No such file"),
    "huge": (huge, "is over 5 MiB"),
    "empty": (Path.touch, "truncated"),
    "older directory": (directory, "is a directory, as artifacts of older versions were"),
    "older arrays": (archive, "JSON"),
    "a model": (lambda path: save_file({"w": np.ones(2)}, path), "`__metadata__`"),
    "another's model": (lambda path: save_file({}, path, {"format": "pt"}), "`speckv`"),
}


@pytest.mark.parametrize(("make", "reason"), NO_ARTIFACTS.values(), ids=NO_ARTIFACTS)
def test_what_is_no_artifact_is_named(
    tmp_path: Path, make: Callable[[Path], Any], reason: str
) -> None:
    path = tmp_path / "artifact.safetensors"
    make(path)
    assert reason in problem(path)


@given(place=st.integers(0, 1 << 20), value=st.integers(0, 255), cut=st.booleans())
@OFTEN
def test_damage_is_refused_or_harmless(tmp_path: Path, place: int, value: int, cut: bool) -> None:
    path = tmp_path / "damaged.safetensors"
    path.unlink(missing_ok=True)
    save_artifact(artifact(), path)
    content = bytearray(path.read_bytes())
    place %= len(content)
    if cut:
        del content[place:]
    else:
        content[place] = value
    path.write_bytes(content)
    try:
        loaded = load_artifact(path)
    except ConfigError:
        problem(path)
    else:
        assert not cut
        load_artifact(saved(tmp_path, loaded))


DTYPES = ("F64", "I64", "F32", "U8", "BOOL", "BF16", "F8_E4M3", "F4", "C64", "X")


@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(-1, 1 << 64) | st.integers(0, 2), max_size=70),
    offsets=st.lists(st.integers(0, 16), min_size=2, max_size=2),
    size=st.integers(0, 16),
)
@example(dtype="F64", shape=[0, 1 << 63], offsets=[0, 0], size=0)
@example(dtype="F64", shape=[1] * 70, offsets=[0, 8], size=8)
@example(dtype="BF16", shape=[1], offsets=[0, 2], size=2)
@OFTEN
def test_no_promise_of_a_header_is_trusted(
    tmp_path: Path, dtype: str, shape: list[int], offsets: list[int], size: int
) -> None:
    text = json.dumps({"schema": 3, "identity": {}, "provenance": {}})
    tensor = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
    header = json.dumps({"__metadata__": {"speckv": text}, "mlp.output": tensor}).encode()
    path = tmp_path / "promise.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    problem(path)
