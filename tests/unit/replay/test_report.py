"""``speckv replay`` as a person meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import msgspec
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from sglang_speckv.config import ConfigError
from sglang_speckv.replay.command import replay_command
from tests.unit.offline.synthetic import HEADER, Traffic, write_trace

app = typer.Typer()
app.command()(replay_command)


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``deep.jsonl.gz`` of one depth at two loads, ``times.jsonl.gz`` of several depths."""
    folder = tmp_path_factory.mktemp("traces")
    deep = list(Traffic(requests=12, rounds=40, batch=1).records())
    write_trace(folder / "deep.jsonl.gz", deep)
    every = [
        record
        for batch in (1, 4)
        for record in Traffic(requests=8, rounds=40, batch=batch, depths=(0, 1, 3, 7)).records()
    ]
    times = [
        type(record)(
            **{**{f: getattr(record, f) for f in record.__struct_fields__}, "round": number}
        )
        for number, record in renumbered(every)
    ]
    write_trace(folder / "times.jsonl.gz", times)
    return folder


def renumbered(records: list[Any]) -> list[tuple[int, Any]]:
    """Two runs' rounds in one file."""
    offset, last, numbered = 0, -1, []
    for record in records:
        if record.round < last:
            offset += last + 1
        last = record.round
        numbered.append((offset + record.round, record))
    return numbered


def run(*arguments: object) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


def test_every_arm_on_the_same_rounds(traces: Path) -> None:
    result = run(traces / "deep.jsonl.gz", "--cost", traces / "times.jsonl.gz")
    arms = {arm["arm"]: arm for arm in result["arms"]}
    assert {"throughput", "ema", "throughput_aware", "batch_table", "confidence"} <= set(arms)
    assert arms["oracle"]["regret"] == 0 and arms["oracle"]["hindsight"]
    assert all(arm["regret"] > 0 for name, arm in arms.items() if name != "oracle")
    assert all(arm["dropped"] == 0 for arm in arms.values()), "recorded at the deepest step"
    assert arms[result["best_static"]]["of_best_static"] == [1.0, 1.0, 1.0]
    assert arms["throughput"]["of_best_static"][0] > 0.85
    assert arms["throughput"]["calibration"]["brier"] < 0.3
    assert sum(arms["ema"]["steps"].values()) == pytest.approx(1, abs=1e-3)
    assert set(result["groups"]) == {"label code", "label chat"}


def test_the_figures_are_printed_and_noted(traces: Path) -> None:
    result = CliRunner().invoke(app, [str(traces / "times.jsonl.gz")])
    assert "static:7" in result.stdout and "are dropped" in result.stdout
    assert "load 1" in result.stdout and "load 3-4" in result.stdout


def test_one_policy_beside_the_static_ones(traces: Path) -> None:
    result = run(traces / "deep.jsonl.gz", "--draft-cost", 0.1, "--policy", "ema", "--json")
    names = [arm["arm"] for arm in result["arms"]]
    assert names == ["ema", *(f"static:{k}" for k in (0, 1, 2, 3, 5, 7)), "none", "oracle"]
    assert result["cost"]["unit"] == "tokens per target step"


def test_complete_rounds_only(traces: Path) -> None:
    result = run(traces / "times.jsonl.gz", "--complete", "--policy", "ema")
    assert all(arm["dropped"] == 0 for arm in result["arms"])
    assert result["trace"]["rounds"] == pytest.approx((320 + 80) / 4, abs=2)


def test_regrouped(traces: Path) -> None:
    deep = traces / "deep.jsonl.gz"
    result = run(deep, "--draft-cost", 0.1, "--regroup", 4, "--traffic", "phases", "--lag", 2)
    assert result["trace"]["regroup"] == 4 and result["trace"]["lag"] == 2
    assert {row["batch_size"] for row in result["cost"]["table"]} == {4}


def test_costs_from_a_file(traces: Path, tmp_path: Path) -> None:
    rows = [
        {"batch_size": 1, "num_steps": k, "seconds": s} for k, s in ((-1, 1), (0, 1.1), (7, 2.0))
    ]
    file = tmp_path / "cost.json"
    file.write_text(json.dumps({"rows": rows}))
    result = run(traces / "deep.jsonl.gz", "--cost", file, "--policy", "ema")
    arms = {arm["arm"]: arm for arm in result["arms"]}
    assert arms["none"]["rate"] == 1.0 and arms["static:0"]["rate"] == pytest.approx(1 / 1.1, 1e-4)


def test_costs_from_an_artifact(traces: Path, tmp_path: Path) -> None:
    from sglang_speckv.offline.artifact import save_artifact
    from sglang_speckv.offline.train import train

    path = tmp_path / "artifact.safetensors"
    save_artifact(train([traces / "times.jsonl.gz"]), path)
    result = run(traces / "deep.jsonl.gz", "--cost", path, "--policy", "ema")
    assert result["cost"]["source"] == str(path)
    (tmp_path / "policy.json").touch()
    with pytest.raises(ConfigError, match="is a directory, as artifacts of older versions were"):
        run(traces / "deep.jsonl.gz", "--cost", tmp_path)


def test_what_an_artifact_knows_is_told(traces: Path, tmp_path: Path) -> None:
    from sglang_speckv.offline.artifact import save_artifact
    from sglang_speckv.offline.train import train

    deep = traces / "deep.jsonl.gz"
    path = tmp_path / "artifact.safetensors"
    save_artifact(train([deep]), path)
    arguments = [deep, "--draft-cost", 0.1, "--policy", "throughput", "--no-profile"]
    without, with_it = run(*arguments), run(*arguments, "--artifact", path)
    first = [result["arms"][0]["calibration"]["brier"] for result in (without, with_it)]
    assert first[1] < first[0], "it forecasts better from the start"
    assert with_it["trace"]["artifact_in_sample"] and "very rounds" in " ".join(with_it["notes"])
    every = run(deep, "--draft-cost", 0.1, "--artifact", path)
    shares = {arm["arm"]: arm["steps"] for arm in every["arms"]}
    depths = {name: sum(int(k) * s for k, s in steps.items()) for name, steps in shares.items()}
    assert depths["paper"] > depths["throughput"], "tokens per step ask for depth"
    assert {"paper:throughput", "paper:in-round", "paper:throughput:in-round"} <= set(shares)
    other = msgspec.structs.replace(HEADER, draft="another")
    foreign = write_trace(tmp_path / "b.jsonl.gz", Traffic(requests=4).records(), other)
    with pytest.raises(ConfigError, match="draft 'draft'"):
        run(foreign, "--draft-cost", 0.1, "--artifact", path)


def test_one_decision_laid_open(traces: Path) -> None:
    arguments = ["--policy", "throughput", "--explain", 30]
    explained = run(traces / "deep.jsonl.gz", "--draft-cost", 0.1, *arguments)
    assert explained["round"] == 30 and explained["saw"]["batch_size"] == 1
    assert len(explained["saw"]["first_probs"]) == 1
    chosen = str(explained["chose"]["num_steps"])
    assert explained["came"]["tokens"][chosen] == explained["came"]["tokens_at_choice"]
    assert explained["chose"]["reason"] and explained["state"]


def test_the_picture_and_the_file(
    traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(plt, "close", closed.append)
        picture, out = tmp_path / "replay.png", tmp_path / "replay.json"
        last = run(traces / "deep.jsonl.gz", "--draft-cost", 0.1, "--plot", picture, "--out", out)
    written = json.loads(out.read_text())
    assert written.pop("provenance")["versions"] and written == last
    assert picture.read_bytes().startswith(b"\x89PNG")
    (figure,) = closed
    check_picture(figure, {arm["arm"]: arm for arm in last["arms"]})
    plt.close(figure)


def check_picture(figure: Any, arms: dict[str, Any]) -> None:
    """Every arm's regret; depth over time and calibration of every policy."""
    regret, depths, calibration = figure.axes
    (bars,) = regret.containers
    names = [label.get_text() for label in regret.yaxis.get_ticklabels()]
    assert set(names) == set(arms) - {"oracle"}
    lengths = [bar.get_width() for bar in bars]
    assert lengths == sorted(lengths, reverse=True)
    for name, length in zip(names, lengths, strict=True):
        assert length == pytest.approx(100 * arms[name]["regret"], abs=0.01)
    policies = [text.get_text() for text in depths.get_legend().get_texts()]
    assert {"throughput", "ema", "confidence"} <= set(policies) <= set(arms)
    for name, line in zip(policies, depths.lines, strict=True):
        mean = sum(int(k) * share for k, share in arms[name]["steps"].items())
        assert np.mean(line.get_ydata()) == pytest.approx(mean, abs=0.2)
    (throughput,) = (line for line in calibration.lines if line.get_label() == "throughput")
    expected, came = throughput.get_data()
    assert len(expected) > 1 and np.corrcoef(expected, came)[0, 1] > 0.9


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--policy", "magic"], "unknown policy 'magic'"),
        (["--policy", "static:4", "--draft-cost", "0.1"], "static:4"),
        (["--policy", "none"], "no row without speculation"),
        (["--policy", "paper"], "needs its weights"),
        (["--lag", "99"], "--lag 99"),
        (["--draft-cost", "-1"], "draft-cost"),
        (["--draft-cost", "0.1", "--cost", "x"], "give one"),
        (["--cost", "missing.json"], "does not exist"),
        (["--candidate-steps", "1,x"], "candidate steps"),
        (["--explain", "99999"], "no such round"),
        (["--policy", "oracle", "--explain", "1"], "needs a policy"),
        (["--regroup", "500"], "fewer than 500"),
    ],
)
def test_mistakes_are_named(traces: Path, arguments: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        run(traces / "times.jsonl.gz", *arguments)


def test_one_depth_does_not_price_the_others(traces: Path) -> None:
    with pytest.raises(ConfigError, match="one depth only"):
        run(traces / "deep.jsonl.gz")


def test_a_cost_file_that_is_none(traces: Path, tmp_path: Path) -> None:
    file = tmp_path / "cost.json"
    file.write_text('{"rows": [{"batch_size": 1}]}')
    with pytest.raises(ConfigError, match="num_steps"):
        run(traces / "deep.jsonl.gz", "--cost", file)
