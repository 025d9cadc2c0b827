"""What is refused before a server starts, which servers run together, and what they are given."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from sglang_speckv.ab import comparison
from sglang_speckv.ab.arms import Draft, arms_for, servers_for
from sglang_speckv.ab.comparison import (
    comparison_of,
    find_drafts,
    grouped,
    kv_tokens,
    longest_prompt,
    most_requests,
    server_flags,
    with_artifacts,
)
from sglang_speckv.ab.options import Options, options_from
from sglang_speckv.ab.request import Prompt
from sglang_speckv.ab.traffic import Workload
from sglang_speckv.config import ConfigError
from sglang_speckv.demo import drafts
from sglang_speckv.progress import Screen

PAIR = [Draft("a", "/a", "EAGLE3"), Draft("b", "/b", "STANDALONE")]


def screen(path: Path) -> Screen:
    return Screen(Console(file=path.open("w"), width=200))


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    found = SimpleNamespace(available=20e9)
    monkeypatch.setattr(comparison.psutil, "virtual_memory", lambda: found)
    return found


@pytest.mark.parametrize(("available", "groups"), [(20e9, 1), (8e9, 3)])
def test_servers_run_one_by_one_when_memory_is_short(tmp_path, memory, available, groups):
    memory.available = available
    options = Options(arms=("none", "static:1", "ema", "speckv"))
    found = grouped(options, PAIR[:1], "t", screen(tmp_path / "said"))
    assert len(found) == groups
    assert [arm.name for group in found for arm in group.arms].count("speckv") == 1
    if groups > 1:
        # still up when the others' answers are judged
        assert found[-1].servers[0].name == "a-none"
        assert "run one after another" in (tmp_path / "said").read_text()


def test_drafts_come_one_after_the_other_each_with_all_of_its_servers(tmp_path, memory):
    memory.available = 8e9
    options = Options(arms=("none", "static:1"))
    groups = grouped(options, PAIR, "t", screen(tmp_path / "said"))
    assert [[spec.name for spec in group.servers] for group in groups] == [
        ["a-none", "a-speckv"],
        ["b-none", "b-speckv"],
    ]
    for group in groups:
        assert {arm.server for arm in group.arms} == {spec.name for spec in group.servers}


def test_a_draft_that_none_of_the_arms_can_be_with_is_skipped(tmp_path, memory):
    """SGLang's rule is for the EAGLE family."""
    (group,) = grouped(Options(arms=("ema",)), PAIR, "t", screen(tmp_path / "said"))
    assert {arm.draft for arm in group.arms} == {"a"}
    assert "none of the arms can be with the draft b" in (tmp_path / "said").read_text()
    with pytest.raises(ConfigError, match="none of the arms ema can be with any of the drafts"):
        grouped(Options(arms=("ema",)), PAIR[1:], "t", screen(tmp_path / "said"))


def test_a_server_elsewhere_needs_no_memory_here(tmp_path, memory):
    memory.available = 4e9
    options = Options(arms=("none", "url:x=http://h:1"))
    (group,) = grouped(options, [], "t", screen(tmp_path / "said"))
    assert [spec.name for spec in group.servers] == ["none", "url:x"]


def test_own_memory_means_one_server_at_a_time_and_no_limit_on_tokens(tmp_path, memory):
    options = Options(arms=("none", "speckv"), own_memory=True)
    groups = grouped(options, PAIR[:1], "t", screen(tmp_path / "said"))
    assert [len(group.servers) for group in groups] == [1, 1]
    assert "--max-total-tokens" not in server_flags(4, "float32")
    with pytest.raises(ConfigError, match="own_memory and together exclude each other"):
        Options(own_memory=True, together=True)


def test_none_is_scheduled_like_the_servers_that_draft():
    arms = arms_for(PAIR[0], ("none", "none:overlap", "speckv"))
    here = {spec.name: spec.flags for spec in servers_for(PAIR[0], arms, overlap=False)}
    assert here["a-none"] == ("--disable-overlap-schedule",) and here["a-none-overlap"] == ()
    there = {spec.name: spec.flags for spec in servers_for(PAIR[0], arms, overlap=True)}
    assert there["a-none"] == there["a-none-overlap"] == ()


def test_the_kv_cache_holds_all_requests_at_their_end():
    """The load that was asked for, whatever the prompts' length: nothing waits for memory."""
    prompts = [Prompt("short", "qa", "x" * 10), Prompt("long", "qa", "x" * 5000)]
    longest = longest_prompt(prompts, lambda prompt: [1] * len(prompt.prompt), 256, 8192)
    assert longest == 5000
    assert kv_tokens(16, longest + 256) > 16 * 5256
    flags = server_flags(16, "float32", kv_tokens(16, longest + 256))
    assert int(flags[flags.index("--max-total-tokens") + 1]) == kv_tokens(16, 5256)


@pytest.mark.parametrize(("context", "refused"), [(5000 + 256, True), (6000, False), (None, False)])
def test_a_prompt_that_passes_the_context_is_refused_by_name(context, refused):
    prompts = [Prompt("short", "qa", "x"), Prompt("long", "qa", "x" * 5000)]
    if not refused:
        longest_prompt(prompts, lambda prompt: [1] * len(prompt.prompt), 256, context)
        return
    with pytest.raises(
        ConfigError, match=r"prompt 'long' has 5000 tokens.* lower --max-new-tokens"
    ):
        longest_prompt(prompts, lambda prompt: [1] * len(prompt.prompt), 256, context)


def test_an_open_loop_may_have_all_of_its_requests_at_once():
    workload = Workload([], open_loop_requests=16)
    assert most_requests(Options(concurrency=(1, 4)), workload) == 4
    assert most_requests(Options(concurrency=(1, 4), rate=(2.0,)), workload) == 16


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
    monkeypatch.setattr(comparison, "resolve_target", lambda *_: pytest.fail("fetched"))
    options = options_from({"drafts": asked}, "test")
    with pytest.raises(
        ConfigError, match=rf"drafts \({absent}\) are a package of their own.* --draft PATH"
    ):
        comparison_of(options, screen(tmp_path / "said"))


def test_an_artifact_goes_with_its_draft(tmp_path):
    path = tmp_path / "artifact.safetensors"
    path.touch()
    a, b = with_artifacts(PAIR, [f"b={path}"])
    assert (a.artifact, b.artifact) == (None, str(path))
    (only,) = with_artifacts(PAIR[:1], [str(path)])
    assert only.artifact == str(path)
    flags = servers_for(only, arms_for(only, ("static:1", "speckv")))[0].flags
    assert flags[flags.index("--speckv") + 1] == str(path)
    with pytest.raises(ConfigError, match="names no draft"):
        with_artifacts(PAIR, [str(path)])
    with pytest.raises(ConfigError, match="not a file; check the path or train it again"):
        with_artifacts(PAIR, [f"a={tmp_path}"])


def test_two_drafts_of_one_name_are_refused(tmp_path):
    asked = ("EAGLE=a/epoch_3", "EAGLE=b/epoch_3")
    with pytest.raises(ConfigError, match="two drafts are called 'eagle-epoch_3'"):
        find_drafts(asked, tmp_path, screen(tmp_path / "said"))


def test_a_draft_by_algorithm(tmp_path):
    found = find_drafts(("EAGLE=some/head",), tmp_path, screen(tmp_path / "said"))
    assert found == [Draft("eagle-head", "some/head", "EAGLE")]
    with pytest.raises(ConfigError, match=r"head holds no config.json"):
        find_drafts((f"EAGLE={tmp_path}/head",), tmp_path, screen(tmp_path / "said"))
