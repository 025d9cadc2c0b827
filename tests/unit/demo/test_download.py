"""Downloads from a local package index: resumed, truncated, wrong, too large for the disk."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from sglang_speckv.config import ConfigError
from sglang_speckv.demo import download
from sglang_speckv.demo.download import PackageFile, fetch

CONTENT = bytes(range(256)) * 4096
FILE = PackageFile("thing", "thing-1.whl", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


class Index(ThreadingHTTPServer):
    """Serves one project page and one file; the attributes make it misbehave."""

    content = CONTENT
    cut_at: int | None = None
    ranges = True
    html = False
    page: bytes | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        if self.path.startswith("/simple/"):
            self._page()
        else:
            self._file()

    def _page(self) -> None:
        url = f"../../files/{FILE.name}"
        body = json.dumps({"files": [{"filename": FILE.name, "url": url}]}).encode()
        kind = "application/vnd.pypi.simple.v1+json"
        if self.server.html:
            body = f'<a href="{url}#sha256=00">{FILE.name}</a>'.encode()
            kind = "text/html"
        self._answer(200, self.server.page or body, kind)

    def _file(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if start and self.server.ranges:
            self._answer(206, self.server.content[start:], "application/octet-stream")
        else:
            self._answer(200, self.server.content, "application/octet-stream")

    def _answer(self, code: int, body: bytes, kind: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.cut_at] if kind.endswith("stream") else body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    server = Index()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    monkeypatch.delenv("PIP_CERT", raising=False)
    yield server
    server.shutdown()
    server.server_close()


def test_download_with_progress_then_offline(index: Index, tmp_path: Path):
    seen: list[tuple[str, int, int]] = []
    path = fetch(FILE, tmp_path, lambda *step: seen.append(step))
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (FILE.name, len(CONTENT), len(CONTENT))
    assert [file.name for file in tmp_path.iterdir()] == [FILE.name]
    index.page = b"the index is gone"
    assert fetch(FILE, tmp_path) == path


def test_an_index_with_html_only(index: Index, tmp_path: Path):
    index.html = True
    assert fetch(FILE, tmp_path).read_bytes() == CONTENT


def test_an_interrupted_download_continues(index: Index, tmp_path: Path):
    index.cut_at = 300_000
    with pytest.raises(ConfigError, match=r"check the network|again to continue"):
        fetch(FILE, tmp_path)
    part = tmp_path / f"{FILE.name}.part"
    done = part.stat().st_size
    assert 0 < done < len(CONTENT) and not (tmp_path / FILE.name).exists()
    index.cut_at = None
    assert fetch(FILE, tmp_path).read_bytes() == CONTENT
    assert index.requests == [None, f"bytes={done}-"]


def test_a_server_that_ignores_ranges(index: Index, tmp_path: Path):
    (tmp_path / f"{FILE.name}.part").write_bytes(CONTENT[:1000])
    index.ranges = False
    assert fetch(FILE, tmp_path).read_bytes() == CONTENT


def test_a_wrong_file_is_refused_and_forgotten(index: Index, tmp_path: Path):
    index.content = CONTENT[::-1]
    with pytest.raises(ConfigError, match="wrong sha256"):
        fetch(FILE, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_server_sends_beyond_the_file_is_not_read(index: Index, tmp_path: Path):
    index.content = CONTENT * 3
    assert fetch(FILE, tmp_path).read_bytes() == CONTENT


def test_disk_space_is_checked_before_the_first_byte(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        download.shutil, "disk_usage", lambda folder: SimpleNamespace(free=len(CONTENT) - 1)
    )
    with pytest.raises(ConfigError, match="SPECKV_CACHE"):
        fetch(FILE, tmp_path)
    assert index.requests == []


@pytest.mark.parametrize("page", [b"[]", b"{}", b'{"files": [{}]}', b"\xff"])
def test_an_index_that_talks_nonsense(index: Index, tmp_path: Path, page: bytes):
    index.page = page
    with pytest.raises(ConfigError, match="not an index page"):
        fetch(FILE, tmp_path)


def test_a_file_that_is_not_listed(index: Index, tmp_path: Path):
    index.page = b'{"files": []}'
    with pytest.raises(ConfigError, match="does not list"):
        fetch(FILE, tmp_path)


def test_no_index_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(ConfigError, match="check the network"):
        fetch(FILE, tmp_path)


def test_the_index_is_the_one_pip_or_uv_would_ask(monkeypatch: pytest.MonkeyPatch):
    for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    assert download.index_url() == "https://pypi.org/simple"
    monkeypatch.setenv("UV_INDEX_URL", "https://mirror.example/simple/")
    assert download.index_url() == "https://mirror.example/simple"
