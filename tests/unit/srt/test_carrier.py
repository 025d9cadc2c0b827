"""Settings survive the trip through SGLang's JSON file, and bad files are named."""

import json
from pathlib import Path

import pytest

from sglang_speckv.config import ConfigError, SpecKVConfig
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


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("{", "not valid JSON"),
        ("[1]", "JSON object"),
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
