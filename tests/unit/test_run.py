"""The two halves of the suite are whole, and a failure in either is one."""

from pathlib import Path

import pytest

from tests import run

ROOT = Path(__file__).parents[2]


def test_modules_that_share_servers_are_in_one_half() -> None:
    sharing = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests" / "engine").glob("test_*.py")
        if "on_pairs(" in path.read_text()
    }
    assert sharing and sharing <= set(run.SHARED)
    assert all((ROOT / path).exists() for path in run.SHARED)


@pytest.mark.parametrize(
    ("shared", "rest", "code"), [(0, 0, 0), (0, 1, 1), (1, 0, 1), (5, 0, 0), (0, -9, 9), (2, 1, 2)]
)
def test_the_worse_code_wins(
    shared: int, rest: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Rest:
        def __init__(self, *args: object, **kwargs: object) -> None: ...
        def wait(self, timeout: float | None = None) -> int:
            return rest

        def kill(self) -> None: ...

    monkeypatch.setattr(run.subprocess, "Popen", Rest)
    monkeypatch.setattr(run.subprocess, "call", lambda command, env: shared)
    assert run.main([]) == code
