"""One record for flags and YAML: what makes no sense is refused by name."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from sglang_speckv.ab import command
from sglang_speckv.ab.command import _objective, listed
from sglang_speckv.ab.options import Goodput, Options, options_from, read_options
from sglang_speckv.cli import app
from sglang_speckv.config import ConfigError

EXAMPLES = sorted((Path(__file__).parents[3] / "examples" / "ab").glob("*.yaml"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"armz": ["none"]}, "unknown field `armz`.*the options are target, drafts, artifacts"),
        ({"concurrency": 4}, "array"),
        ({"concurrency": [0]}, r">= 1 - at `\$.concurrency"),
        ({"concurrency": [2000]}, r"<= 1024 - at `\$.concurrency"),
        ({"concurrency": [4, 4]}, "names 4 twice"),
        ({"concurrency": []}, r"length >= 1 - at `\$.concurrency"),
        ({"rate": [float("nan")]}, r"`\$.rate"),
        ({"arms": ["none", "none"]}, "add none#2"),
        ({"arms": ["none", "quick"]}, "unknown arm 'quick'"),
        ({"traffic": ["rush"]}, "Invalid enum value 'rush' - at `\\$.traffic"),
        ({"arms": ["url:a=http://x", "url:a=http://y"]}, "url arms names 'url:a' twice"),
        ({"goodput": {"ttft": -1}}, r"`\$.goodput.ttft"),
        ({"rate": [1.0], "traffic": ["sweep"]}, "a rate goes with mixed and phases only"),
        ({"minutes": 0.1}, r">= 1.0 - at `\$.minutes"),
        ({"minutes": float("nan")}, r"`\$.minutes"),
        ({"max_new_tokens": 1}, r">= 2 - at `\$.max_new_tokens"),
        ({"temperature": -1}, r"`\$.temperature"),
        ({"goodput": {"latency": 1}}, "unknown field `latency`"),
    ],
)
def test_a_bad_value_is_named(values: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        options_from(values, "file.yaml")


def test_without_time_limit_the_number_of_blocks_ends_it():
    assert Options().most_blocks == 8 and Options().seconds == float("inf")
    assert Options(minutes=5).most_blocks == float("inf") and Options(minutes=5).seconds == 300
    assert Options(minutes=5, blocks=3).most_blocks == 3


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
    assert listed("1, 4,16", int, "concurrency") == [1, 4, 16]
    arms = ["none", "speckv:throughput,stop=off,width=off#2", "speckv:throughput,width=off", "ema"]
    assert listed(",".join(arms), str, "arms") == arms
    with pytest.raises(ConfigError, match="concurrency '1;4'"):
        listed("1;4", int, "concurrency")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_options(path: Path):
    assert isinstance(options_from(read_options(path), str(path)), Options)


def test_there_are_examples():
    assert EXAMPLES


def test_an_objective_in_a_flag():
    assert _objective("ttft:500, tpot:50") == {"ttft": 500.0, "tpot": 50.0}
    with pytest.raises(ConfigError, match="goodput 'fast' is not of the form ttft:500"):
        _objective("fast")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    seen: list[Options] = []

    def run(options: Options, resume: bool = False, only_json: bool = False) -> int:
        seen.append(options)
        return 0

    monkeypatch.setattr(command, "run_ab", run)
    return seen


def test_flags_win_over_the_file(tmp_path: Path, asked: list[Options]):
    (tmp_path / "f.yaml").write_text("concurrency: [2]\nmax_new_tokens: 8\n")
    flags = ["ab", str(tmp_path / "f.yaml"), "--max-new-tokens", "9", "--arms", "none,static:2"]
    assert CliRunner().invoke(app, flags).exit_code == 0
    assert asked == [Options(concurrency=(2,), max_new_tokens=9, arms=("none", "static:2"))]


def test_every_flag_reaches_its_option(asked: list[Options]):
    flags = (
        *("--draft", "eagle3", "--artifact", "a=/b", "--server-flag", "--x", "--rate", "0.5"),
        *("--goodput", "ttft:500", "--own-memory", "--flush-urls", "--seed", "3"),
    )
    assert CliRunner().invoke(app, ["ab", *flags]).exit_code == 0
    (options,) = asked
    assert options == Options(
        drafts=("eagle3",),
        artifacts=("a=/b",),
        server_flags=("--x",),
        rate=(0.5,),
        goodput=Goodput(ttft=500.0),
        own_memory=True,
        flush_urls=True,
        seed=3,
    )


def test_every_option_has_a_flag_or_is_for_files_only():
    parameters = typer.main.get_command(app).commands["ab"].params
    flags = {parameter.name for parameter in parameters}
    assert set(Options.__struct_fields__) - flags == {"requests_per_slot", "together"}


def test_the_help_fits_a_screen():
    shown = CliRunner().invoke(app, ["ab", "--help"], env={"COLUMNS": "120"}).output
    assert len(shown.splitlines()) <= 50


@pytest.mark.parametrize(
    ("flags", "minutes"), [([], 19), (["--quick"], 5.5), (["--quick", "--minutes", "3"], 3)]
)
def test_the_demo_is_a_preset(asked: list[Options], flags: list[str], minutes: float):
    assert CliRunner().invoke(app, ["demo", *flags]).exit_code == 0
    (options,) = asked
    assert options.minutes == minutes and options.out == "out/demo"
    assert options.traffic == ("sweep",) and options.arms[0] == "none"


@pytest.mark.parametrize("minutes", ["0.05", "nan"])
def test_demo_options_that_make_no_sense(minutes: str):
    result = CliRunner().invoke(app, ["demo", "--minutes", minutes])
    assert isinstance(result.exception, ConfigError) and "minutes" in str(result.exception)
