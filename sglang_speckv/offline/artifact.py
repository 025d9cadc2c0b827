"""A trained prior on disk: one safetensors file.

Its tensors are the prior's arrays; a JSON text in its header says what they are for (identity) and
where they came from (provenance). Nothing is unpickled, no more than :data:`MAX_BYTES` are read,
and the same content makes the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors.numpy

from sglang_speckv.config import ConfigError
from sglang_speckv.files import BAD_JSON, read_bounded, write_atomically
from sglang_speckv.policy import Prior
from sglang_speckv.policy.mlp import MlpWeights, compression_code
from sglang_speckv.policy.prior import AcceptancePrior, CostPrior

SCHEMA = 3
SUFFIX = ".safetensors"
MAX_BYTES = 5 << 20
MOST_FILES = 64
"""Artifacts of a folder that are looked at."""
_PARTS: dict[str, Any] = {"acceptance": AcceptancePrior, "cost": CostPrior, "mlp": MlpWeights}
_DTYPES = ("float64", "int64")
_REMEDY = "check the path or train it again (speckv train)"
# KeyError: a type that numpy does not have.
_UNREADABLE = (safetensors.SafetensorError, KeyError, *BAD_JSON)


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    schema: int
    identity: dict[str, str | int | None]
    provenance: dict[str, Any]


class _Schema(msgspec.Struct):
    schema: int


class _Metadata(msgspec.Struct):
    speckv: str  # all in one entry: safetensors writes several in random order


class _Header(msgspec.Struct):
    metadata: _Metadata = msgspec.field(name="__metadata__")


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


Identity = Mapping[str, str | int | None]


def check_identity(artifact: Artifact, identity: Identity) -> None:
    """Raise :class:`ConfigError` that names everything in which a server differs."""
    differences = _differences(artifact, identity)
    if differences:
        raise ConfigError(
            f"the artifact was trained for {', '.join(differences)}; train one from this server's "
            "own trace (speckv train) or leave the artifact out"
        )


def artifacts_in(path: Path) -> dict[Path, Artifact]:
    """The artifact that ``path`` is, or those in the folder that it is: one for each compression
    of a target, say. Raises :class:`ConfigError` where one of them cannot be read."""
    files = sorted(path.glob(f"*{SUFFIX}"))[: MOST_FILES + 1] if path.is_dir() else []
    if len(files) > MOST_FILES:
        raise ConfigError(f"{str(path)!r} holds more than {MOST_FILES} artifacts; name one of them")
    return {file: load_artifact(file) for file in files or [path]}


def fitting(path: Path, identity: Identity) -> Path:
    """The artifact at ``path`` that was trained for such a server.

    Raises:
        ConfigError: there is none; says in what the nearest one differs.
    """
    found = artifacts_in(path)
    nearest = min(found, key=lambda file: len(_differences(found[file], identity)))
    differences = _differences(found[nearest], identity)
    if differences and len(found) > 1:
        raise ConfigError(
            f"none of the {len(found)} artifacts in {str(path)!r} was trained for this server; the "
            f"nearest, {nearest.name}, is for {', '.join(differences)}; train one from this "
            "server's own trace (speckv train) or leave them out"
        )
    check_identity(found[nearest], identity)
    return nearest


def _differences(artifact: Artifact, identity: Identity) -> list[str]:
    return [
        f"{name} {value!r} (here {identity.get(name)!r})"
        for name, value in artifact.identity.items()
        if identity.get(name) != value
    ]


def check_target(path: Path) -> None:
    """Raise :class:`ConfigError` unless ``path`` may become an artifact: it is named
    ``*.safetensors``, and nothing is there or an older artifact."""
    if path.suffix != SUFFIX:
        raise ConfigError(f"an artifact is a file named *{SUFFIX}; rename {str(path)!r}")
    if not _replaceable(path):
        raise ConfigError(f"{str(path)!r} exists and is no artifact; name another file")


def save_artifact(artifact: Artifact, path: Path) -> None:
    """Write all of it or nothing; replaces an older artifact, and nothing else.

    Raises:
        ConfigError: :func:`check_target` refuses ``path``, the artifact is over :data:`MAX_BYTES`,
            or it cannot be written.
    """
    check_target(path)
    content = _encoded(artifact)
    if len(content) > MAX_BYTES:
        raise ConfigError(f"the artifact is too large to be read back ({len(content)} bytes)")
    try:
        write_atomically(path, lambda scratch: scratch.write_bytes(content))
    except OSError as error:
        raise ConfigError(f"cannot write the artifact {str(path)!r}: {error}") from error


def load_artifact(path: Path) -> Artifact:
    """Read and check an artifact. Raises :class:`ConfigError` that says what is wrong with it."""
    if os.path.isdir(path):
        raise ConfigError(
            f"{str(path)!r} is a directory, as artifacts of older versions were; {_REMEDY}"
        )
    content = read_bounded(path, MAX_BYTES, _REMEDY)
    try:
        return _decoded(content)
    except _UNREADABLE as error:
        raise ConfigError(
            f"{str(path)!r} is no artifact of this version ({error}); {_REMEDY}"
        ) from error


def _replaceable(path: Path) -> bool:
    """Nothing is there, or an artifact of any version."""
    try:
        _description(read_bounded(path, MAX_BYTES))
    except BAD_JSON:
        return not os.path.lexists(path)
    return True


def _encoded(artifact: Artifact) -> bytes:
    document = _Document(SCHEMA, dict(artifact.identity), dict(artifact.provenance))
    text = msgspec.json.encode(document, order="sorted").decode()
    arrays = {
        f"{name}.{field.name}": _plain(getattr(part, field.name))
        for name in _PARTS
        if (part := getattr(artifact.prior, name)) is not None
        for field in fields(part)
    }
    return safetensors.numpy.save(arrays, {"speckv": text})


def _plain(array: np.ndarray) -> np.ndarray:
    """Of a type that is read back, and contiguous: safetensors copies memory as it lies."""
    return np.asarray(array, "int64" if array.dtype.kind in "iu" else "float64", order="C")


def _decoded(content: bytes) -> Artifact:
    document = _document(_description(content))
    arrays = safetensors.numpy.load(content)
    for name, array in arrays.items():
        if array.dtype.name not in _DTYPES:
            raise ConfigError(f"{name!r} is of type {array.dtype}, not {' or '.join(_DTYPES)}")
        if not np.isfinite(array).all():
            raise ConfigError(f"{name!r} has a value that is not finite")
    parts = {name: _part(kind, name, arrays) for name, kind in _PARTS.items()}
    if arrays:
        raise ConfigError(f"the array {min(arrays)!r} is unknown")
    quantization = document.identity.get("quantization")
    prior = Prior(**parts, compression=compression_code(str(quantization or "")))
    return Artifact(document.identity, document.provenance, prior)


def _description(content: bytes) -> str:
    """The header's text, which safetensors leaves out when it reads from memory."""
    size = int.from_bytes(content[:8], "little")
    return msgspec.json.decode(content[8 : 8 + size], type=_Header).metadata.speckv


def _document(text: str) -> _Document:
    schema = msgspec.json.decode(text, type=_Schema).schema
    if schema != SCHEMA:
        raise ConfigError(f"it has schema {schema}, not {SCHEMA}")
    return msgspec.json.decode(text, type=_Document)


def _part(kind: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """One of the prior's parts out of its arrays, which are taken from ``arrays``."""
    wanted = [f"{name}.{field.name}" for field in fields(kind)]
    missing = [key for key in wanted if key not in arrays]
    if missing == wanted:
        return None
    if missing:
        raise ConfigError(f"the array {missing[0]!r} is missing")
    return kind(*map(arrays.pop, wanted))
