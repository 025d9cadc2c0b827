"""Settings survive the trip through SGLang's JSON file, and bad files are named."""

import json
from pathlib import Path

import pytest

from sglang_speckv.config import ConfigError, SpecKVConfig
from sglang_speckv.policy.ema import read_slots
from sglang_speckv.srt import carrier


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPECKV_CACHE", str(tmp_path))
    return tmp_path


def test_round_trip_and_content_addressing() -> None:
    config = SpecKVConfig(policy="ema", candidate_steps=(0, 2, 4))
    path = carrier.write(config)
    assert carrier.read(path) == config
    assert carrier.write(config) == path
    assert carrier.write(SpecKVConfig()) != path


def test_sglang_finds_every_candidate_in_the_file() -> None:
    path = carrier.write(SpecKVConfig(candidate_steps=(1, 6)))
    assert json.loads(Path(path).read_text())["1"] == {"candidate_steps": [1, 6]}


def test_stock_files_do_not_ask_for_speckv(tmp_path: Path) -> None:
    stock = tmp_path / "stock.json"
    stock.write_text('{"1": {"candidate_steps": [1, 3]}}')
    assert carrier.read(str(stock)) is None
    assert carrier.read(None) is None


def test_a_users_slots_give_the_candidates_and_the_ema_its_rule(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    slots = {"1": {"candidate_steps": [1, 4]}, "8": {"candidate_steps": [0, 2]}, "ema_alpha": 0.3}
    path.write_text(json.dumps({**slots, "speckv": {"policy": "ema"}}))
    config = carrier.read(str(path))
    assert config is not None
    assert config.candidate_steps == (0, 1, 2, 4)
    assert config.ema_config == slots


@pytest.mark.parametrize("key", ["²", "٣", "9" * 5000, "-1", "1.5"])
def test_what_is_no_batch_size_is_no_slot(tmp_path: Path, key: str) -> None:
    """For the carrier as for the policy that reads the slots."""
    path = tmp_path / "own.json"
    slots = {key: {"candidate_steps": [1, 4]}}
    path.write_text(json.dumps({**slots, "speckv": {"policy": "ema"}}))
    config = carrier.read(str(path))
    assert config is not None and config.ema_config is None
    assert list(read_slots(slots, (0, 1))) == [1, 8, 32, 64]


@pytest.mark.parametrize("found", ["", "{}", '{"1": {"candidate_steps": [16]}}', "x" * (1 << 16)])
def test_a_file_of_the_right_name_and_other_content_is_replaced(found: str) -> None:
    path = Path(carrier.write(SpecKVConfig()))
    whole = path.read_bytes()
    path.write_text(found)
    assert carrier.write(SpecKVConfig()) == str(path)
    assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written(cache: Path) -> None:
    (cache / "configs").write_text("a file, not a folder")
    with pytest.raises(ConfigError, match="SPECKV_CACHE"):
        carrier.write(SpecKVConfig())


def test_a_running_servers_file_is_not_touched() -> None:
    path = Path(carrier.write(SpecKVConfig()))
    before = path.stat()
    carrier.write(SpecKVConfig())
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("{", "not valid JSON"),
        ("[1]", "JSON object"),
        ("[" * 100_000, "not valid JSON"),
        ('{"ema": ' + "[" * 500 + "]" * 500 + ', "speckv": {}}', "at most 16 levels"),
        ('{"speckv": 3}', "3"),
        ('{"speckv": {"polcy": "ema"}}', "polcy"),
        ('{"speckv": {"candidate_steps": [1, 2.5]}}', "2.5"),
        ('{"speckv": {}, "1": {"candidate_steps": "x"}}', "'x'"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path: Path, content: str, names: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=names):
        carrier.read(str(path))


def test_missing_and_huge_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.json"):
        carrier.read(str(tmp_path / "nowhere.json"))
    huge = tmp_path / "huge.json"
    huge.write_bytes(b" " * (1 << 20) + b"{}")
    with pytest.raises(ConfigError, match="over 1 MiB"):
        carrier.read(str(huge))
