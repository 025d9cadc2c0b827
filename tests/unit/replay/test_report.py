"""``speckv replay`` as a person meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from sglang_speckv.config import ConfigError
from sglang_speckv.replay.command import replay_command
from sglang_speckv.replay.positions import write_positions
from tests.unit.offline.synthetic import HEADER, Traffic, write_trace
from tests.unit.replay.answers import positions

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


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Positions that can be walked."""
    path = tmp_path_factory.mktemp("positions") / "mine.safetensors"
    made = positions(requests=12, length=40)
    write_positions(path, made.source, [20] * 12, made.start, made.correct, made.signals)
    return path


SHORT = ("--seeds", 1, "--passes", 2, "--jobs", 1)


def arms_of(result: Any, cell: int = 0) -> dict[str, Any]:
    return {arm["arm"]: arm for arm in result["cells"][cell]["arms"]}


def test_every_arm_serves_the_same_requests_at_every_load(answers: Path) -> None:
    result = run(answers, "--draft-cost", 0.1, "--requests", "1,4", *SHORT)
    assert [cell["requests"] for cell in result["cells"]] == [1, 4]
    assert result["source"]["walked"] and result["source"]["requests"] == 12
    for cell in (0, 1):
        arms = arms_of(result, cell)
        assert {"throughput", "ema", "throughput_aware", "confidence", "none"} <= set(arms)
        best = result["cells"][cell]["best_fixed"]
        assert arms[best]["vs_best_fixed"] is None and arms[best]["rate"] == max(
            arm["rate"] for name, arm in arms.items() if name.startswith("static:")
        )
        assert arms["oracle"]["of_oracle"] == 1 and arms["oracle"]["hindsight"]
        assert all(arm["of_oracle"] < 1 for name, arm in arms.items() if name != "oracle")
        low, high = arms["throughput"]["interval"]
        assert low <= arms["throughput"]["vs_best_fixed"] <= high
        assert sum(arms["ema"]["steps"].values()) == pytest.approx(1, abs=1e-3)
    assert arms_of(result)["none"]["rate"] == pytest.approx(1.0)
    assert not any("as recorded" in note for note in result["notes"])


def test_recorded_rounds_are_said_to_flatter(traces: Path) -> None:
    result = run(traces / "deep.jsonl.gz", "--cost", traces / "times.jsonl.gz", *SHORT)
    assert not result["source"]["walked"]
    assert any("That flatters arms" in note for note in result["notes"])


def test_the_figures_are_printed(answers: Path) -> None:
    arguments = [str(answers), "--draft-cost", "0.1", "--seeds", "1", "--passes", "1"]
    result = CliRunner().invoke(app, arguments)
    assert "static:7" in result.stdout and "1 at a time" in result.stdout
    assert "knows the future" in result.stdout


def test_one_policy_beside_the_fixed_depths(answers: Path) -> None:
    result = run(answers, "--draft-cost", 0.1, "--policy", "ema", "--json", *SHORT)
    names = [arm["arm"] for arm in result["cells"][0]["arms"]]
    assert names == ["ema", *(f"static:{k}" for k in (0, 1, 2, 3, 5, 7)), "none", "oracle"]
    assert result["cost"]["unit"] == "tokens per target step"


def test_what_was_asked_for_is_told(answers: Path) -> None:
    asked = ("--traffic", "phases", "--lag", 1, "--policy", "ema", "--candidate-steps", "1,3")
    result = run(answers, "--draft-cost", 0.1, *asked, *SHORT)
    source = result["source"]
    assert (source["traffic"], source["lag"], source["passes"]) == ("phases", 1, 2)
    assert result["candidate_steps"] == [1, 3]


def test_a_separate_draft_sleeps_where_that_has_a_price(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    made = positions(requests=8, algorithm="STANDALONE")
    write_positions(path, made.source, [20] * 8, made.start, made.correct, made.signals)
    rates = {}
    for depths in ("0", "0,7"):
        asked = ("--draft-cost", 5.0, "--candidate-steps", depths, "--policy", "throughput")
        rates[depths] = arms_of(run(path, *asked, *SHORT))
    assert rates["0"]["static:0"]["rate"] == pytest.approx(1.0), "asleep it costs nothing"
    assert rates["0,7"]["throughput"]["rate"] > 0.75, "two probes of 36 steps cost the rest"
    asked = ("--draft-cost", 1.0, "--candidate-steps", "0,1", "--policy", "ema", "--requests", 4)
    arms = arms_of(run(path, *asked, *SHORT))
    assert arms["oracle"]["rate"] >= arms["static:0"]["rate"] > arms["static:1"]["rate"]


def test_costs_from_a_file(answers: Path, tmp_path: Path) -> None:
    rows = [
        {"batch_size": 1, "num_steps": k, "seconds": s} for k, s in ((-1, 1), (0, 1.1), (7, 2.0))
    ]
    file = tmp_path / "cost.json"
    file.write_text(json.dumps({"rows": rows}))
    arms = arms_of(run(answers, "--cost", file, "--policy", "ema", *SHORT))
    assert arms["none"]["rate"] == pytest.approx(1.0)
    assert arms["static:0"]["rate"] == pytest.approx(1 / 1.1, 1e-4)


def test_costs_from_an_artifact(answers: Path, traces: Path, tmp_path: Path) -> None:
    from sglang_speckv.offline.artifact import save_artifact
    from sglang_speckv.offline.train import train

    path = tmp_path / "artifact.safetensors"
    save_artifact(train([traces / "times.jsonl.gz"]), path)
    result = run(answers, "--cost", path, "--policy", "ema", *SHORT)
    assert result["cost"]["source"] == str(path)
    (tmp_path / "policy.json").touch()
    with pytest.raises(ConfigError, match="is a directory, as artifacts of older versions were"):
        run(answers, "--cost", tmp_path)


def test_what_an_artifact_knows_is_used(traces: Path, tmp_path: Path) -> None:
    from sglang_speckv.offline.artifact import save_artifact
    from sglang_speckv.offline.train import train

    deep = traces / "deep.jsonl.gz"
    path = tmp_path / "artifact.safetensors"
    save_artifact(train([deep]), path)
    every = run(deep, "--draft-cost", 0.1, "--artifact", path, *SHORT)
    shares = {name: arm["steps"] for name, arm in arms_of(every).items()}
    depths = {name: sum(int(k) * s for k, s in steps.items()) for name, steps in shares.items()}
    name = "paper:throughput:in-round"
    assert depths["paper:in-round"] > depths[name], "tokens per step ask for depth"
    assert {"paper:throughput", "paper:in-round", "paper:throughput:in-round"} <= set(shares)
    assert any("trained on answers to these prompts" in note for note in every["notes"])
    other = msgspec.structs.replace(HEADER, draft="another")
    foreign = write_trace(tmp_path / "b.jsonl.gz", Traffic(requests=4).records(), other)
    with pytest.raises(ConfigError, match="draft 'draft'"):
        run(foreign, "--draft-cost", 0.1, "--artifact", path)


def test_one_decision_laid_open(answers: Path) -> None:
    explained = run(answers, "--draft-cost", 0.1, "--policy", "throughput", "--explain", 30)
    assert explained["round"] == 30 and explained["saw"]["batch_size"] == 1
    assert len(explained["saw"]["first_probs"]) == 1
    assert str(explained["chose"]["num_steps"]) in explained["came"]["tokens"]
    assert explained["chose"]["reason"] and explained["because"]


def test_the_picture_and_the_file(answers: Path, tmp_path: Path) -> None:
    picture, out = tmp_path / "replay.svg", tmp_path / "replay.json"
    last = run(answers, "--draft-cost", 0.1, "--plot", picture, "--out", out, *SHORT)
    written = json.loads(out.read_text())
    assert written.pop("provenance")["versions"] and written == last
    text = picture.read_text()
    assert text.startswith("<svg") and ">throughput<" in text and ">1 at a time" in text


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--policy", "magic", "--draft-cost", "0.1"], "unknown policy 'magic'"),
        (["--policy", "static:4", "--draft-cost", "0.1"], "static:4"),
        (["--policy", "none", "--cost", "COST"], "no row without speculation"),
        (["--policy", "paper", "--draft-cost", "0.1"], "needs its weights"),
        ([], "positions have no round times"),
        (["--draft-cost", "-1"], "draft-cost"),
        (["--draft-cost", "0.1", "--cost", "x"], "give one"),
        (["--cost", "missing.json"], "does not exist"),
        (["--candidate-steps", "1,x"], "candidate steps"),
        (["--candidate-steps", "1,9", "--draft-cost", "0.1"], "deeper than the 7"),
        (["--draft-cost", "0.1", "--explain", "99999"], "has rounds 0"),
        (["--requests", "500", "--draft-cost", "0.1"], "there are 12 requests in all"),
        (["--requests", "0"], "are not numbers in"),
        (["--requests", "one"], "are not numbers in"),
        (["--traffic", "rush"], "--traffic 'rush' is not one of"),
    ],
)
def test_mistakes_are_named(
    answers: Path, tmp_path: Path, arguments: list[str], problem: str
) -> None:
    rows = [{"batch_size": 1, "num_steps": k, "seconds": 1.0 + k} for k in (0, 7)]
    (tmp_path / "cost.json").write_text(json.dumps({"rows": rows}))
    given = [str(tmp_path / "cost.json") if word == "COST" else word for word in arguments]
    with pytest.raises(ConfigError, match=problem):
        run(answers, *given)


def test_one_depth_does_not_price_the_others(traces: Path) -> None:
    with pytest.raises(ConfigError, match="one depth only"):
        run(traces / "deep.jsonl.gz")


def test_positions_and_traces_do_not_mix(answers: Path, traces: Path) -> None:
    with pytest.raises(ConfigError, match="replay it alone"):
        run(answers, traces / "deep.jsonl.gz", "--draft-cost", 0.1)


def test_a_cost_file_that_is_none(answers: Path, tmp_path: Path) -> None:
    file = tmp_path / "cost.json"
    file.write_text('{"rows": [{"batch_size": 1}]}')
    with pytest.raises(ConfigError, match="num_steps"):
        run(answers, "--cost", file)
