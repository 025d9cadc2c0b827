"""Artifacts: what is written is read back, and nothing else is."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang_speckv.config import ConfigError
from sglang_speckv.offline import artifact as artifact_module
from sglang_speckv.offline.artifact import (
    ARRAYS,
    JSON,
    MAX_ARRAY_BYTES,
    MAX_JSON_BYTES,
    Artifact,
    check_identity,
    load_artifact,
    save_artifact,
)
from sglang_speckv.policy.prior import AcceptancePrior, CostPrior, MlpWeights, Prior

IDENTITY = {"target": "big", "draft": "small", "quantization": None, "draft_vocab_size": 1000}


def artifact(depth: int = 3) -> Artifact:
    tried = np.arange(4.0 * depth).reshape(4, depth)
    acceptance = AcceptancePrior(np.array([0.3, 0.6]), tried, tried / 2)
    cost = CostPrior(
        np.array([1, 1]), np.array([-1, 3]), np.array([0.1, 0.2]), np.ones(2), np.zeros(2)
    )
    mlp = MlpWeights(np.ones((6, 16)), np.zeros(16), np.ones(16), np.asarray(0.5))
    return Artifact(IDENTITY, {"command": "speckv train"}, Prior(acceptance, cost, mlp))


def saved(tmp_path: Path, value: Artifact | None = None) -> Path:
    path = tmp_path / "artifact"
    save_artifact(value or artifact(), path)
    return path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    loaded, original = load_artifact(saved(tmp_path)), artifact()
    assert loaded.identity == IDENTITY and loaded.provenance == original.provenance
    assert loaded.acceptance is not None and loaded.cost is not None and loaded.mlp is not None
    assert original.acceptance is not None
    assert (loaded.acceptance.tried == original.acceptance.tried).all()
    assert loaded.cost.num_steps.tolist() == [-1, 3]
    assert loaded.mlp.output_bias == 0.5


def test_parts_may_be_missing(tmp_path: Path) -> None:
    loaded = load_artifact(saved(tmp_path, Artifact({}, {}, Prior())))
    assert loaded.acceptance is None and loaded.cost is None and loaded.mlp is None


def test_the_same_content_makes_the_same_bytes(tmp_path: Path) -> None:
    first, second = saved(tmp_path / "a"), saved(tmp_path / "b")
    for name in (JSON, ARRAYS):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_an_older_artifact_is_replaced_whole(tmp_path: Path) -> None:
    path = saved(tmp_path)
    save_artifact(artifact(depth=5), path)
    acceptance = load_artifact(path).acceptance
    assert acceptance is not None and acceptance.depth == 5
    assert [entry.name for entry in tmp_path.iterdir()] == ["artifact"], "no scratch left"


@pytest.mark.parametrize("content", ["file", "foreign", "more"])
def test_what_is_no_artifact_is_not_overwritten(tmp_path: Path, content: str) -> None:
    path = tmp_path / "artifact"
    if content == "file":
        path.write_text("mine")
    else:
        path.mkdir()
        (path / "thesis.txt").write_text("mine")
        if content == "more":
            for name in (JSON, ARRAYS):
                (path / name).touch()
    with pytest.raises(ConfigError, match="no artifact"):
        save_artifact(artifact(), path)
    assert path.read_text() == "mine" if content == "file" else (path / "thesis.txt").exists()


@pytest.mark.parametrize("bound", ["MAX_JSON_BYTES", "MAX_ARRAY_BYTES"])
def test_what_could_not_be_read_back_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(artifact_module, bound, 100)
    with pytest.raises(ConfigError, match="too large to be read back"):
        save_artifact(artifact(), tmp_path / "artifact")
    assert not list(tmp_path.iterdir())


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


def rewrite(path: Path, name: str, array: bytes) -> None:
    """Replace or add one member of the archive."""
    with zipfile.ZipFile(path / ARRAYS) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    members[name] = array
    with zipfile.ZipFile(path / ARRAYS, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)


def npy(array: np.ndarray, shape: tuple[int, ...] | None = None) -> bytes:
    """An array's bytes, its header claiming ``shape``."""
    buffer = io.BytesIO()
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": shape or array.shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + array.tobytes()


WRONG_ARRAYS = {
    "not finite": ("mlp.output.npy", npy(np.full(16, np.nan)), "not finite"),
    "another shape": ("mlp.output.npy", npy(np.ones(15)), "shapes"),
    "a huge promise": ("mlp.output.npy", npy(np.ones(2), (1 << 40,)), "does not fit"),
    "an overflowing promise": ("mlp.output.npy", npy(np.ones(2), (1 << 62, 1 << 62)), "not fit"),
    "a negative promise": ("mlp.output.npy", npy(np.ones(1), (-1, -1)), "array"),
    "objects": ("mlp.output.npy", npy(np.array([b"x"] * 16)), "type"),
    "no array": ("mlp.output.npy", b"hello", "archive of arrays"),
    "an unknown name": ("mlp.extra.npy", npy(np.ones(1)), "unknown array 'mlp.extra'"),
    "counts that lie": ("acceptance.accepted.npy", npy(np.full((4, 3), 99.0)), "more than"),
    "edges that fall": ("acceptance.edges.npy", npy(np.array([0.6, 0.3])), "ascend"),
    "a time of zero": ("cost.seconds.npy", npy(np.zeros(2)), "not positive"),
    "too large": ("mlp.output.npy", npy(np.ones(MAX_ARRAY_BYTES // 8)), "is over"),
}


@pytest.mark.parametrize(("name", "content", "problem"), WRONG_ARRAYS.values(), ids=WRONG_ARRAYS)
def test_a_wrong_array_is_named(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    path = saved(tmp_path)
    rewrite(path, name, content)
    with pytest.raises(ConfigError, match=problem):
        load_artifact(path)


def test_a_missing_array_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path, Artifact({}, {}, Prior()))
    rewrite(path, "mlp.hidden.npy", npy(np.ones((6, 16))))
    with pytest.raises(ConfigError, match=r"'mlp\.hidden_bias' is missing"):
        load_artifact(path)


def test_a_bomb_is_not_inflated(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with zipfile.ZipFile(path / ARRAYS, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mlp.output.npy", bytes(MAX_ARRAY_BYTES + 1))
    assert (path / ARRAYS).stat().st_size < 50_000
    with pytest.raises(ConfigError, match="too large"):
        load_artifact(path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not an artifact's description"),
        (json.dumps({"schema": 2}), "schema 2, this version reads 1"),
        (json.dumps({"schema": 1, "identity": {}}), "provenance"),
        (json.dumps({"schema": 1, "identity": {"a": []}, "provenance": {}}), "identity"),
        (json.dumps({"schema": 1, "identity": {}, "provenance": {}, "x": 1}), "`x`"),
        ("[" * 100_000, "not an artifact's description"),
        (" " * (MAX_JSON_BYTES + 1), "is over"),
    ],
)
def test_a_wrong_description_is_named(tmp_path: Path, text: str, problem: str) -> None:
    path = saved(tmp_path)
    (path / JSON).write_text(text)
    with pytest.raises(ConfigError, match=problem):
        load_artifact(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no artifact directory"):
        load_artifact(tmp_path / "nowhere")
    (saved(tmp_path) / ARRAYS).unlink()
    with pytest.raises(ConfigError, match=ARRAYS):
        load_artifact(tmp_path / "artifact")


@given(place=st.integers(0, 1 << 20), value=st.integers(0, 255), cut=st.booleans())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_refused_or_harmless(tmp_path: Path, place: int, value: int, cut: bool) -> None:
    path = tmp_path / "damaged"
    shutil.rmtree(path, ignore_errors=True)
    save_artifact(artifact(), path)
    content = bytearray((path / ARRAYS).read_bytes())
    place %= len(content)
    if cut:
        del content[place:]
    else:
        content[place] = value
    (path / ARRAYS).write_bytes(content)
    try:
        loaded = load_artifact(path)
    except ConfigError:
        return
    assert loaded.identity == IDENTITY
