"""Which servers run together, and the drafts that are found."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from sglang_speckv.bench import compare, drafts, prepare
from sglang_speckv.bench.arms import Draft, arms_for, servers_for
from sglang_speckv.bench.compare import Comparison, server_groups
from sglang_speckv.bench.options import Options, options_from
from sglang_speckv.bench.prepare import find_drafts, with_artifacts
from sglang_speckv.bench.progress import Screen
from sglang_speckv.bench.traffic import Workload
from sglang_speckv.config import ConfigError


def screen(path: Path) -> Screen:
    return Screen(Console(file=path.open("w"), width=200))


def wanted(arms: tuple[str, ...] = ("none", "static:1", "ema", "speckv")) -> Comparison:
    eagle3 = Draft("eagle3", "/e", "EAGLE3")
    return Comparison(
        options=Options(arms=arms),
        target="t",
        drafts=[eagle3],
        arms=arms_for([eagle3], arms),
        workload=Workload([]),
        tokenize=lambda prompt: [1],
        server_flags=[],
        dtype="float32",
        server_bytes=3_000_000_000,
        planned_rounds=4,
    )


@pytest.mark.parametrize(("available", "groups"), [(20e9, 1), (8e9, 3)])
def test_servers_run_one_by_one_when_memory_is_short(tmp_path, monkeypatch, available, groups):
    memory = SimpleNamespace(available=available)
    monkeypatch.setattr(compare.psutil, "virtual_memory", lambda: memory)
    found = server_groups(wanted(), screen(tmp_path / "said"))
    assert len(found) == groups
    if groups > 1:
        assert found[-1][0].name == "none"  # still up when the others' answers are judged
        assert "3 servers run one after another" in (tmp_path / "said").read_text()


def test_drafts_one_after_the_other_have_everything_of_a_draft_up(tmp_path, monkeypatch):
    monkeypatch.setattr(compare.psutil, "virtual_memory", lambda: SimpleNamespace(available=8e9))
    pair = [Draft("a", "/a", "EAGLE3"), Draft("b", "/b", "STANDALONE")]
    arms = arms_for(pair, ("none", "static:1"), shared=False)
    both = replace(wanted(), drafts=pair, arms=arms)
    groups = server_groups(both, screen(tmp_path / "said"))
    assert [[spec.name for spec in group] for group in groups] == [
        ["a-none", "a-speckv"],
        ["b-none", "b-speckv"],
    ]


def test_a_server_elsewhere_needs_no_memory_here(tmp_path, monkeypatch):
    memory = SimpleNamespace(available=4e9)
    monkeypatch.setattr(compare.psutil, "virtual_memory", lambda: memory)
    found = server_groups(wanted(("none", "url:x=http://h:1")), screen(tmp_path / "said"))
    assert [spec.name for spec in found[0]] == ["none", "url:x"]


def test_a_demo_draft_that_is_absent_is_skipped_with_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(drafts, "_MODELS", tmp_path)
    (tmp_path / "eagle3").mkdir()
    (tmp_path / "eagle3" / "config.json").write_text('{"architectures": ["XEagle3"]}')
    found = find_drafts((), tmp_path, screen(tmp_path / "said"))
    assert found == [Draft("eagle3", str(tmp_path / "eagle3"), "EAGLE3")]
    assert (tmp_path / "said").read_text().count("\n") == 1
    with pytest.raises(ConfigError, match="standalone"):
        find_drafts(("standalone",), tmp_path, screen(tmp_path / "said"))


@pytest.mark.parametrize(
    ("asked", "absent"),
    [
        ((), "eagle3, standalone"),
        (("standalone",), "standalone"),
        (("EAGLE3=mine", "eagle3"), "eagle3"),
    ],
)
def test_absent_demo_drafts_are_refused_before_anything_is_fetched(
    tmp_path, monkeypatch, asked, absent
):
    monkeypatch.setattr(drafts, "_MODELS", tmp_path)
    monkeypatch.setattr(prepare, "resolve_target", lambda *_: pytest.fail("fetched"))
    options = options_from({"drafts": asked}, "test")
    with pytest.raises(ConfigError, match=rf"drafts \({absent}\) come with a clone.* --draft PATH"):
        prepare.prepare(options, screen(tmp_path / "said"))


def test_an_artifact_goes_with_its_draft(tmp_path):
    path = tmp_path / "artifact.safetensors"
    path.touch()
    pair = [Draft("a", "/a", "EAGLE3"), Draft("b", "/b", "STANDALONE")]
    a, b = with_artifacts(pair, [f"b={path}"])
    assert (a.artifact, b.artifact) == (None, str(path))
    (only,) = with_artifacts(pair[:1], [str(path)])
    assert only.artifact == str(path)
    flags = servers_for([only], arms_for([only], ("static:1", "speckv")))[0].flags
    assert flags[flags.index("--speckv") + 1] == str(path)
    with pytest.raises(ConfigError, match="names no draft"):
        with_artifacts(pair, [str(path)])
    with pytest.raises(ConfigError, match="not a file; check the path or train it again"):
        with_artifacts(pair, [f"a={tmp_path}"])


def test_a_draft_by_algorithm(tmp_path):
    found = find_drafts(("EAGLE=some/head",), tmp_path, screen(tmp_path / "said"))
    assert found == [Draft("eagle-head", "some/head", "EAGLE")]
