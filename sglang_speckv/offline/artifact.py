"""A trained prior on disk: a directory of ``policy.json`` and ``arrays.npz``.

``policy.json`` says what the arrays are for (identity) and where they came from (provenance);
``arrays.npz`` holds plain numbers. Nothing is unpickled, every size is bounded before anything is
allocated, and the same content makes the same bytes.
"""

from __future__ import annotations

import io
import math
import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from sglang_speckv.config import ConfigError
from sglang_speckv.files import BAD_JSON, read_bounded
from sglang_speckv.policy.prior import (
    AcceptancePrior,
    CostPrior,
    MlpWeights,
    Prior,
    compression_code,
)

SCHEMA = 1
JSON, ARRAYS = "policy.json", "arrays.npz"
MAX_JSON_BYTES = 1 << 20
MAX_ARRAY_BYTES = 4 << 20
_PARTS: dict[str, Any] = {"acceptance": AcceptancePrior, "cost": CostPrior, "mlp": MlpWeights}
_DTYPES = ("<f8", "<i8")
_EPOCH = (1980, 1, 1, 0, 0, 0)
_T = TypeVar("_T")


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    schema: int
    identity: dict[str, str | int | None]
    provenance: dict[str, Any]


class _Schema(msgspec.Struct):
    schema: int


@dataclass(frozen=True, eq=False)
class Artifact:
    """``identity``: whose prior it is, in the names of the trace's header. ``provenance``: the
    command, versions, counts and held-out figures."""

    identity: Mapping[str, str | int | None]
    provenance: Mapping[str, Any]
    prior: Prior

    @property
    def acceptance(self) -> AcceptancePrior | None:
        return self.prior.acceptance

    @property
    def cost(self) -> CostPrior | None:
        return self.prior.cost

    @property
    def mlp(self) -> MlpWeights | None:
        return self.prior.mlp


def check_identity(artifact: Artifact, identity: Mapping[str, str | int | None]) -> None:
    """Raise :class:`ConfigError` that names everything in which a server differs."""
    differences = [
        f"{name} {value!r} (here {identity.get(name)!r})"
        for name, value in artifact.identity.items()
        if identity.get(name) != value
    ]
    if differences:
        raise ConfigError(
            f"the artifact was trained for {', '.join(differences)}; train one from this server's "
            "own trace (speckv train) or leave the artifact out"
        )


def save_artifact(artifact: Artifact, path: Path) -> None:
    """Write all of it or nothing; replaces an older artifact, and nothing else.

    Raises:
        ConfigError: ``path`` holds something that is no artifact, or cannot be written.
    """
    if path.exists() and not _replaceable(path):
        raise ConfigError(f"{path} exists and is no artifact; name another directory")
    document = _Document(SCHEMA, dict(artifact.identity), dict(artifact.provenance))
    text = msgspec.json.format(msgspec.json.encode(document, order="sorted"), indent=1) + b"\n"
    packed = _pack(artifact.prior)
    if len(text) > MAX_JSON_BYTES or len(packed) > MAX_ARRAY_BYTES:
        raise ConfigError(f"the artifact is too large to be read back ({len(packed)} bytes)")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
            fresh, old = Path(scratch) / "new", Path(scratch) / "old"
            fresh.mkdir()
            (fresh / JSON).write_bytes(text)
            (fresh / ARRAYS).write_bytes(packed)
            if path.exists():
                os.rename(path, old)
            os.rename(fresh, path)
    except OSError as error:
        raise ConfigError(f"cannot write the artifact {path}: {error}") from error


def load_artifact(path: Path) -> Artifact:
    """Read and check an artifact. Raises :class:`ConfigError` that says what is wrong with it."""
    if not path.is_dir():
        raise ConfigError(f"{str(path)!r} is no artifact directory; `speckv train` makes one")
    document = _document(read_bounded(path / JSON, MAX_JSON_BYTES), path / JSON)
    arrays = _unpack(read_bounded(path / ARRAYS, MAX_ARRAY_BYTES), path / ARRAYS)
    try:
        parts = {name: _part(kind, name, arrays) for name, kind in _PARTS.items()}
    except ConfigError as error:
        raise ConfigError(f"{path / ARRAYS}: {error}") from error
    if arrays:
        raise ConfigError(f"{path / ARRAYS} has an unknown array {sorted(arrays)[0]!r}")
    quantization = document.identity.get("quantization")
    prior = Prior(**parts, compression=compression_code(str(quantization or "")))
    return Artifact(document.identity, document.provenance, prior)


def _replaceable(path: Path) -> bool:
    """An empty directory, or an artifact with nothing beside it."""
    if not path.is_dir() or path.is_symlink():
        return False
    names = {entry.name for entry in path.iterdir()}
    return not names or names == {JSON, ARRAYS}


def _document(text: bytes, path: Path) -> _Document:
    schema = _decoded(text, _Schema, path).schema
    if schema != SCHEMA:
        raise ConfigError(f"{path} has schema {schema}, this version reads {SCHEMA}")
    return _decoded(text, _Document, path)


def _decoded(text: bytes, kind: type[_T], path: Path) -> _T:
    try:
        return msgspec.json.decode(text, type=kind)
    except BAD_JSON as error:
        raise ConfigError(f"{path} is not an artifact's description ({error})") from error


def _pack(prior: Prior) -> bytes:
    """A stored (not compressed) npz with fixed times: the same arrays, the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for part in _PARTS:
            value = getattr(prior, part)
            for field in fields(value) if value is not None else ():
                raw = io.BytesIO()
                array = _plain(getattr(value, field.name))
                np.lib.format.write_array(raw, array, version=(1, 0), allow_pickle=False)
                name = f"{part}.{field.name}.npy"
                archive.writestr(zipfile.ZipInfo(name, _EPOCH), raw.getvalue())
    return buffer.getvalue()


def _plain(array: np.ndarray) -> np.ndarray:
    kind = "<i8" if array.dtype.kind in "iu" else "<f8"
    return np.asarray(array, dtype=kind, order="C")


def _unpack(content: bytes, path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            infos = archive.infolist()
            if len(infos) > 32 or sum(info.file_size for info in infos) > MAX_ARRAY_BYTES:
                raise ConfigError(f"{path} holds too many or too large arrays")
            return {
                info.filename.removesuffix(".npy"): _array(archive.read(info), info.filename, path)
                for info in infos
            }
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is not an archive of arrays ({error})") from error
    except (NotImplementedError, RuntimeError) as error:  # another compression, a password
        raise ConfigError(f"{path} is not a plain archive ({error})") from error


def _array(content: bytes, name: str, path: Path) -> np.ndarray:
    """One ``.npy`` without trusting what its header promises."""
    file = io.BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ConfigError(f"{path}: array {name} is of another format version")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    start = file.tell()
    if dtype.str not in _DTYPES or fortran:
        raise ConfigError(
            f"{path}: array {name} is of type {dtype.str}, not {' or '.join(_DTYPES)}"
        )
    if min(shape, default=1) < 0 or math.prod(shape) * dtype.itemsize != len(content) - start:
        raise ConfigError(f"{path}: array {name} of shape {shape} does not fit its data")
    array = np.frombuffer(content, dtype, offset=start).reshape(shape)
    if not np.isfinite(array).all():
        raise ConfigError(f"{path}: array {name} has a value that is not finite")
    return array


def _part(kind: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """One of the prior's parts out of its arrays, which are taken from ``arrays``."""
    wanted = [f"{name}.{field.name}" for field in fields(kind)]
    present = [key for key in wanted if key in arrays]
    if not present:
        return None
    if present != wanted:
        missing = next(key for key in wanted if key not in arrays)
        raise ConfigError(f"the array {missing!r} is missing")
    return kind(*(arrays.pop(key) for key in wanted))
