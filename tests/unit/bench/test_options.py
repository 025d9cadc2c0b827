"""One record for flags and YAML: what makes no sense is refused by name."""

from pathlib import Path

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from sglang_speckv.bench.ab import _listed
from sglang_speckv.bench.demo import demo_options
from sglang_speckv.bench.options import Options, options_from, read_options
from sglang_speckv.cli import app
from sglang_speckv.config import ConfigError

EXAMPLES = sorted((Path(__file__).parents[3] / "examples" / "ab").glob("*.yaml"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"armz": ["none"]}, "unknown field `armz`.*the options are target, drafts, artifacts"),
        ({"concurrency": 4}, "array"),
        ({"concurrency": [0]}, "concurrency 0 is not in 1..1024"),
        ({"concurrency": [4, 4]}, "names 4 twice"),
        ({"concurrency": []}, "concurrency is empty"),
        ({"rate": [float("nan")]}, "rate nan"),
        ({"arms": ["none", "none"]}, "add none#2"),
        ({"arms": ["none", "quick"]}, "unknown arm 'quick'"),
        ({"traffic": ["rush"]}, "unknown traffic 'rush'; choose from mixed"),
        ({"baseline": "static:4"}, "the baseline 'static:4' is not one of the arms"),
        ({"minutes": 0.1}, "minutes 0.1"),
        ({"max_new_tokens": 1}, "max_new_tokens 1"),
        ({"token_bounds": [8, 4]}, "token_bounds"),
        ({"temperature": -1}, "temperature"),
    ],
)
def test_a_bad_value_is_named(values: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        options_from(values, "file.yaml")


def test_the_baseline_is_none_or_the_first_arm():
    assert Options().base == "none"
    assert Options(arms=("static:1", "speckv")).base == "static:1"
    assert Options(baseline="ema", arms=("none", "ema")).base == "ema"


def test_checking_a_static_arm_needs_two_arms():
    options = options_from({"arms": ["none", "static:3"], "check_static": 3}, "x")
    assert options.all_arms == ("none", "static:3", "fresh:3")


def test_without_time_limit_the_number_of_blocks_ends_it():
    assert Options().most_rounds == 8 and Options().seconds == float("inf")
    assert Options(minutes=5).most_rounds is None and Options(minutes=5).seconds == 300
    assert Options(minutes=5, rounds=3).most_rounds == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- a\n- b\n", "not a mapping"),
        (b"1: 2\n", "not a mapping"),
        (b"a: [", "is not YAML"),
        (b"a: \xc3\x28", "is not YAML"),
        (b"!!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)
def test_a_file_that_is_no_options_file(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "f.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_options(tmp_path / "f.yaml")


def test_a_file_that_is_not_there():
    with pytest.raises(ConfigError, match="cannot read"):
        read_options(Path("/nowhere.yaml"))


def test_lists_in_flags():
    assert _listed("1, 4,16", int, "concurrency") == [1, 4, 16]
    assert _listed(None, int, "concurrency") is None
    with pytest.raises(ConfigError, match="concurrency '1;4'"):
        _listed("1;4", int, "concurrency")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_options(path: Path):
    assert isinstance(options_from(read_options(path), str(path)), Options)


def test_there_are_examples():
    assert EXAMPLES


def test_flags_win_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from sglang_speckv.bench import ab

    seen: list[Options] = []
    monkeypatch.setattr(ab, "run_ab", lambda options, resume, json: seen.append(options) or 0)
    (tmp_path / "f.yaml").write_text("concurrency: [2]\nmax_new_tokens: 8\n")
    asked = ["ab", str(tmp_path / "f.yaml"), "--max-new-tokens", "9", "--arms", "none,static:2"]
    assert CliRunner().invoke(app, asked).exit_code == 0
    assert seen == [Options(concurrency=(2,), max_new_tokens=9, arms=("none", "static:2"))]


def test_every_option_has_a_flag_or_is_for_files_only():
    command = typer.main.get_command(app).commands["ab"]
    flags = {parameter.name for parameter in command.params}
    renamed = {"drafts": "draft", "artifacts": "artifact", "server_flags": "server_flag"}
    missing = {key for key in Options.__struct_fields__ if renamed.get(key, key) not in flags}
    assert missing == {"token_bounds", "requests_per_slot", "spare", "together"}


@pytest.mark.parametrize("seconds", [5, float("nan")])
def test_demo_options_that_make_no_sense(seconds: float):
    with pytest.raises(ConfigError, match=f"{seconds} seconds are not in 60"):
        demo_options(seconds=seconds)


def test_demo_time_limits():
    assert demo_options(quick=True)[0].seconds < 360
    assert demo_options()[0].seconds < 1200
    assert demo_options(quick=True, seconds=100)[0].seconds == pytest.approx(100)
    assert msgspec.to_builtins(demo_options()[0])["arms"][0] == "none"
