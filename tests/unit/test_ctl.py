"""`speckv ctl` against servers that answer, refuse, want keys and lie."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from sglang_speckv.cli import main

SPECKV = {
    "policy": "throughput",
    "policies": ["throughput", "static:0", "static:2"],
    "candidate_steps": [0, 2],
    "pinned": None,
    "held": False,
    "num_steps": 2,
    "rounds": {"0": 0, "2": 12},
    "accept_rate": 0.5,
    "stops": "on",
    "widths": "off: the target's graphs verify whole depths",
    "fallbacks": 0,
    "failures": {},
}


class Fake:
    """``sent``: bodies of what steers, with the key that came along."""

    def __init__(self) -> None:
        self.speckv: Any = dict(SPECKV)
        self.answer: Any = [True]
        self.keys: dict[str, str] = {}
        self.sent: list[tuple[Any, str]] = []
        self.url = ""

    def reply(self, path: str, key: str, body: Any) -> tuple[int, Any]:
        wanted = self.keys.get(path)
        if wanted is not None and key != f"Bearer {wanted}":
            return 401, {"error": "Unauthorized"}
        if path == "/server_info":
            return 200, {"internal_states": [{"speckv": self.speckv} if self.speckv else {}]}
        self.sent.append((body, key))
        value = body["server_args"].get("speckv_num_steps")
        if value is not None and self.answer == [True]:
            self.speckv["pinned"] = None if value == -1 else value
        return 200, self.answer


@pytest.fixture
def fake() -> Iterator[Fake]:
    told = Fake()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            status, answer = told.reply(self.path, self.headers.get("Authorization", ""), body)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        told.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield told
        server.shutdown()
        thread.join()


def ctl(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code."""
    monkeypatch.setattr("sys.argv", ["speckv", "ctl", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SPECKV_API_KEY", "SPECKV_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_it_shows_how_the_server_does(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.speckv["failures"] = {"trace": 1}
    assert ctl(monkeypatch, fake.url, "show") == 0
    told = capsys.readouterr().out
    assert "throughput" in told and "2: 12" in told and "50.0%" in told and "trace: 1" in told
    assert ctl(monkeypatch, fake.url, "show", "--json") == 0
    assert json.loads(capsys.readouterr().out) == fake.speckv
    assert fake.sent == []


@pytest.mark.parametrize(
    ("words", "sent"),
    [
        (["pin", "2"], {"speckv_num_steps": 2}),
        (["off"], {"speckv_num_steps": 0}),
        (["release"], {"speckv_num_steps": -1}),
        (["policy", "static:2"], {"speckv_policy:static:2": 1}),
    ],
)
def test_it_steers(
    fake: Fake,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    sent: dict[str, int],
) -> None:
    assert ctl(monkeypatch, fake.url, *words) == 0
    assert fake.sent == [({"server_args": sent}, "")]
    pinned = sent.get("speckv_num_steps", -1)
    assert (f"pinned to {pinned}" in capsys.readouterr().out) == (pinned >= 0)


def test_a_shape_is_pinned_by_its_name(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.speckv |= {"candidate_steps": [0, 1, 2], "candidate_shapes": ["0", "1x2", "3x8"]}
    assert ctl(monkeypatch, fake.url, "pin", "3x8") == 0
    assert fake.sent == [({"server_args": {"speckv_num_steps": 2}}, "")]
    told = capsys.readouterr().out
    assert "pinned to 3x8" in told and "0, 1x2, 3x8" in told
    assert ctl(monkeypatch, fake.url, "pin", "2") == 2
    assert "the server has no depth 2; it has 0, 1x2, 3x8" in capsys.readouterr().err


def test_what_the_server_has_not_is_refused_before_it_is_sent(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, told in (
        (["pin", "3"], "the server has no depth 3; it has 0, 2"),
        (["policy", "static:7"], "the server has no policy static:7; it has throughput, static:0"),
    ):
        assert ctl(monkeypatch, fake.url, *words) == 2
        assert told in capsys.readouterr().err
    fake.speckv["candidate_steps"] = [1, 2]
    assert ctl(monkeypatch, fake.url, "off") == 2
    assert fake.sent == []


def test_keys(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each path gets its own."""
    fake.keys = {"/server_info": "one", "/set_internal_state": "two"}
    assert ctl(monkeypatch, fake.url, "pin", "2") == 2
    assert "401" in capsys.readouterr().err
    assert ctl(monkeypatch, "--api-key", "one", fake.url, "pin", "2") == 2
    monkeypatch.setenv("SPECKV_ADMIN_KEY", "two")
    assert ctl(monkeypatch, "--api-key", "one", fake.url, "pin", "2") == 0
    assert [key for _, key in fake.sent] == ["Bearer two"]


@pytest.mark.parametrize("speckv", [None, "nonsense", {}, {"rounds": 7, "failures": [1]}], ids=str)
def test_odd_servers(
    fake: Fake,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    speckv: Any,
) -> None:
    fake.speckv = speckv
    assert ctl(monkeypatch, fake.url, "show") in (0, 2)
    assert capsys.readouterr().err.count("\n") <= 1


def test_a_refusal_is_told(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.answer = [False]
    assert ctl(monkeypatch, fake.url, "pin", "2") == 2
    assert "refused speckv_num_steps = 2" in capsys.readouterr().err
    assert ctl(monkeypatch, "localhost:30000", "show") == 2
    assert "http://localhost:30000" in capsys.readouterr().err
