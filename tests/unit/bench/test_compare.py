"""Which servers run together, what is checked of them, and the demo's options."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from sglang_speckv.bench import compare, drafts
from sglang_speckv.bench.client import ServerError
from sglang_speckv.bench.compare import Comparison, Outcome, server_groups
from sglang_speckv.bench.plan import Draft
from sglang_speckv.bench.prepare import DemoOptions, find_drafts
from sglang_speckv.bench.progress import Screen
from sglang_speckv.config import ConfigError


def screen(path: Path) -> Screen:
    return Screen(Console(file=path.open("w"), width=200))


def wanted(**changes: object) -> Comparison:
    values = {
        "target": "t",
        "drafts": [Draft("eagle3", Path("/e"), "EAGLE3")],
        "concurrencies": (1, 4),
        "prompts": [],
        "tokenize": lambda prompt: [1],
        "server_flags": [],
        "seconds": 60,
        "rounds": 4,
        "token_bounds": (16, 64),
        "server_bytes": 3_000_000_000,
        "logs": Path("logs"),
    }
    return Comparison(**{**values, **changes})


@pytest.mark.parametrize(("available", "groups"), [(20e9, 1), (8e9, 3)])
def test_servers_run_one_by_one_when_memory_is_short(tmp_path, monkeypatch, available, groups):
    memory = SimpleNamespace(available=available)
    monkeypatch.setattr(compare.psutil, "virtual_memory", lambda: memory)
    found = server_groups(wanted(), screen(tmp_path / "said"))
    assert len(found) == groups
    if groups > 1:
        assert found[-1][0].name == "none"  # still up when the others' answers are judged
        assert "8 GB are free: running one after another" in (tmp_path / "said").read_text()


def test_unequal_limits_are_unfair():
    outcome = Outcome()
    compare._check_limit("none", {"effective_max_running_requests_per_dp": 4}, outcome)
    compare._check_limit("ema", {"effective_max_running_requests_per_dp": 4}, outcome)
    with pytest.raises(ServerError, match="at most 48 requests where another runs 4"):
        compare._check_limit("speckv", {"effective_max_running_requests_per_dp": 48}, outcome)


@pytest.mark.parametrize(
    "options",
    [
        {"concurrencies": (0,)},
        {"concurrencies": (4, 4)},
        {"concurrencies": ()},
        {"seconds": 5},
        {"seconds": float("nan")},
    ],
)
def test_options_that_make_no_sense(options):
    with pytest.raises(ConfigError):
        DemoOptions(**options)


def test_time_limits():
    assert DemoOptions(quick=True).budget_s < 360
    assert DemoOptions().budget_s < 1200
    assert DemoOptions(quick=True, seconds=100).budget_s == 100


def test_a_demo_draft_that_is_absent_is_skipped_with_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(drafts, "_MODELS", tmp_path)
    (tmp_path / "eagle3").mkdir()
    (tmp_path / "eagle3" / "config.json").write_text('{"architectures": ["XEagle3"]}')
    found = find_drafts((), tmp_path, screen(tmp_path / "said"))
    assert found == [Draft("eagle3", tmp_path / "eagle3", "EAGLE3")]
    assert (tmp_path / "said").read_text().count("\n") == 1
    with pytest.raises(ConfigError, match="standalone"):
        find_drafts(("standalone",), tmp_path, screen(tmp_path / "said"))
