"""``examples/gpu`` without a GPU: command lines, models, parsers, tables, and the measuring core
against a server that is none."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from aiohttp import web
from typer.testing import CliRunner

from examples.gpu import attention, cost_curves, overhead, project, shapes, smoke, width
from examples.gpu.curves import Cell, cell, distinct_prompts, measure, replay_table, round_times
from examples.gpu.observe import as_told, signal_ages, tier_memory
from sglang_speckv.ab.arms import Draft
from sglang_speckv.ab.client import Client, ServerError
from sglang_speckv.ab.options import options_from, read_options
from sglang_speckv.cli import app
from sglang_speckv.config import ConfigError
from sglang_speckv.offline.records import Record
from sglang_speckv.policy.prior import OFF
from sglang_speckv.progress import Screen
from sglang_speckv.replay.positions import write_positions
from tests.unit.replay.answers import positions

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "gpu"
SCRIPTS = {
    "attention": attention.app,
    "cost_curves": cost_curves.app,
    "overhead": overhead.app,
    "project": project.app,
    "smoke": smoke.app,
    "width": width.app,
}
CONFIGS = sorted((ROOT / "examples" / "ab").glob("gpu-demo*.yaml"))


def documented() -> list[str]:
    """Every command of the README (in backticks), of the docstrings (indented) and of the YAML
    files' comments."""
    found = re.findall(r"`([^`\n]+)`", (FOLDER / "README.md").read_text())
    for script in FOLDER.glob("*.py"):
        found += re.findall(r"^ {4}(\S.*)$", script.read_text().split('"""')[1], re.MULTILINE)
    for config in CONFIGS:
        found += re.findall(r"(speckv ab .*)$", config.read_text(), re.MULTILINE)
    starts = ("python examples/", "speckv ", "pytest ")
    return [command for command in found if command.startswith(starts)]


@pytest.mark.parametrize("command", documented())
def test_documented_commands_parse(command: str) -> None:
    program, *rest = shlex.split(command)
    if program == "speckv":
        typer.main.get_command(app).make_context("speckv", rest)
    elif program == "python" and rest[0].startswith("examples/gpu/"):
        typer.main.get_command(SCRIPTS[Path(rest[0]).stem]).make_context(rest[0], rest[1:])
    elif program == "python":
        assert (ROOT / rest[0]).is_file()
    else:
        assert (ROOT / rest[-1]).is_dir() and "gpu" in rest


def test_every_script_is_documented() -> None:
    commands = " ".join(documented())
    assert all(f"examples/gpu/{name}.py" in commands for name in SCRIPTS)
    assert all(f"examples/ab/{config.name}" in commands for config in CONFIGS)
    assert len(CONFIGS) == 3


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_comparisons_are_valid(config: Path) -> None:
    options = options_from(read_options(config), config.name)
    assert "none" in options.arms and "speckv" in options.arms
    assert "claims no throughput" in config.read_text()


# ---------------------------------------------------------------------------- models


def test_a_model_has_the_documented_shape(tmp_path: Path) -> None:
    config = json.loads((shapes.write_llama(tmp_path, shapes.LLAMA_8B) / "config.json").read_text())
    assert (config["num_hidden_layers"], config["num_attention_heads"]) == (32, 32)
    assert (config["hidden_size"], config["head_dim"], config["vocab_size"]) == (4096, 128, 128256)


def test_models_are_read_by_transformers(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    plan = cost_curves.scaled(cost_curves.Plan(), layers=4, hidden=512, vocab=1024)
    models = cost_curves.write_models(plan, tmp_path)
    target, draft = (AutoConfig.from_pretrained(models[n]) for n in ("target", "standalone"))
    assert (target.num_hidden_layers, target.hidden_size, target.num_key_value_heads) == (4, 512, 1)
    assert (draft.num_hidden_layers, draft.hidden_size, draft.head_dim) == (2, 256, 64)
    assert draft.num_attention_heads % draft.num_key_value_heads == 0
    head = AutoConfig.from_pretrained(models["eagle3"])
    assert (head.num_hidden_layers, head.draft_vocab_size, head.vocab_size) == (1, 1024, 1024)
    tokenizer = AutoTokenizer.from_pretrained(models["target"])
    assert tokenizer.decode(tokenizer("depth follows load")["input_ids"]) == "depth follows load"


@pytest.mark.parametrize(
    ("layers", "hidden", "vocab", "named"),
    [(2, 100, None, "hidden 100"), (2, 64, None, "hidden 64"), (None, None, 100, "vocab 100")],
)
def test_shapes_that_are_none(
    layers: int | None, hidden: int | None, vocab: int | None, named: str
) -> None:
    with pytest.raises(ConfigError, match=f"--{named} is"):
        cost_curves.scaled(cost_curves.Plan(), layers, hidden, vocab)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"drafts": ("x",)}, "draft 'x'"),
        ({"compressions": ("int3",)}, "compression 'int3'"),
        ({"contexts": (20000,)}, "more than 16384 positions"),
    ],
    ids=str,
)
def test_plans_that_are_none(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        cost_curves.Plan(**wrong)


def test_only_the_target_is_compressed() -> None:
    models = {name: Path(name) for name in ("target", "eagle3")}
    flags = cost_curves.server_flags(cost_curves.Plan(), models, "eagle3", "fp8-kv8")
    text = " ".join(flags)
    assert "--quantization fp8" in text and "--kv-cache-dtype fp8_e4m3" in text
    assert "--speculative-draft-model-quantization unquant" in text
    plain = " ".join(cost_curves.server_flags(cost_curves.Plan(), models, "off", "plain"))
    assert "spec" not in plain and "quantization" not in plain


# ---------------------------------------------------------------------------- what is read


def test_memory_per_tier_from_a_log() -> None:
    log = (
        "[2026-11-24 10:00:00] Built adaptive runtime state steps=0: elapsed=1.25s, mem=0.41GB\n"
        "something else\n"
        "[2026-11-24 10:00:02] Built adaptive runtime state steps=5: elapsed=2.00s, mem=-0.01GB\n"
    )
    assert tier_memory(log) == {0: 0.41, 5: -0.01}


def record(number: int, seen: float | None, own: float, request: str = "a") -> Record:
    return Record(
        round=number,
        request=request,
        batch_size=1,
        context_len=9,
        num_steps=1,
        num_correct_drafts=0,
        top1_prob=(own,),
        entropy=(1.0,),
        first_prob=seen,
    )


@pytest.mark.parametrize(
    ("seen", "age"),
    [(0.7, "coming"), (0.3, "before"), (0.5, "neither"), (None, "none")],
)
def test_age_of_a_signal(seen: float | None, age: str) -> None:
    assert signal_ages([record(1, None, 0.3), record(3, seen, 0.7)]) == {age: 1}


@pytest.mark.parametrize(
    ("ages", "rounds", "holds"),
    [
        ({"coming": 9, "either": 2, "none": 1}, 0, True),
        ({"coming": 9, "before": 1}, 0, False),
        ({"before": 9, "coming": 1}, 1, True),  # a prefill came in between
        ({"before": 1, "coming": 9}, 1, False),
        ({"before": 9, "neither": 1}, 1, False),
        ({}, 0, False),
    ],
)
def test_signals_are_no_older_than_told(ages: dict[str, int], rounds: int, holds: bool) -> None:
    assert as_told(Counter(ages), rounds) == holds


def test_ages_are_told_per_request() -> None:
    rounds = [record(1, 0.3, 0.3), record(1, 0.9, 0.9, "b"), record(2, 0.3, 0.3)]
    assert signal_ages(rounds) == {"either": 1}


def test_times_are_between_rounds_of_a_kind() -> None:
    recent = [[1.0, 3, 2], [1.1, 3, 2], [2.0, 3, 2], [2.2, 3, 2], [2.5, 3, 2], [2.6, 3, 1]]
    recent += [[2.9, 3, 2], [3.0, 5, 2], [3.4, 5, 2]]
    assert round_times(recent, 3, 2, since=1.5) == pytest.approx([0.2, 0.3])
    assert round_times(recent, 5, 2, since=0.0) == pytest.approx([0.4])
    assert round_times(recent, 0, 2, since=0.0) == []


def test_a_cell_leaves_out_the_outer_tenths() -> None:
    found = cell(4, 3, 512, [0.010] * 9 + [9.0] + [0.010] * 9 + [0.0001])
    assert (found.seconds, found.low, found.high, found.rounds) == (0.01, 0.01, 0.01, 20)


def test_tables_are_read_by_replay(tmp_path: Path) -> None:
    cells = [Cell(1, k, 512, 0.01 * (k + 2), 0.01, 0.01, 16) for k in (OFF, 0, 1, 3)]
    cost_curves.write_tables(tmp_path / "cost.json", "eagle3.plain", cells)
    (table,) = tmp_path.glob("cost.eagle3.plain.512.json")
    file, made = tmp_path / "p.safetensors", positions(requests=8)
    write_positions(file, made.source, [20] * 8, made.start, made.correct, made.signals)
    arguments = [str(file), "--cost", str(table), "--batch", "1", "--batch", "4"]
    arguments += ["--candidate-steps", "0,1,3", "--out", str(tmp_path / "projection.json")]
    done = CliRunner().invoke(project.app, arguments)
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "projection.json").read_text())
    assert "never a measurement" in told["what"]
    assert [one["batch"] for one in told["projections"]] == [1, 4]
    arms = {arm["arm"] for arm in told["projections"][0]["arms"]}
    assert {"none", "static:3", "throughput"} <= arms
    assert told["provenance"]["versions"]["sglang"]


def test_smoke_says_what_does_not_hold() -> None:
    shown = {
        "active": True,
        "fallbacks": 0,
        "rounds": {"0": 5, "1": 9},
        "switches": 2,
        "profile": [[1, 0, 3.0]],
        "signal_lag": {"rounds": 0},
        "correct_drafts": 4,
    }
    records = [record(1, 0.3, 0.3), record(2, 0.7, 0.7)]
    assert all(smoke.checks({"speckv": shown}, records).values())
    late = smoke.checks({"speckv": shown}, [record(1, None, 0.3), record(2, 0.3, 0.7)])
    assert [name for name, holds in late.items() if not holds] == ["signal_lag_is_as_told"]
    idle = smoke.checks({"speckv": shown | {"rounds": {"0": 0, "1": 9}}}, records)
    assert [name for name, holds in idle.items() if not holds] == ["every_depth_served"]
    assert not any(smoke.checks({}, []).values())


def test_the_taps_work_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "REPEATS", 3)
    rows = overhead.tap_rows([1, 2], 3, 50, [[1, 3, 40.0], [1, 5, 60.0]], "cpu")
    assert [row["batch_size"] for row in rows] == [1, 2]
    assert rows[0]["round_ms"] == 40.0 and rows[0]["host_ms"] > 0 and rows[0]["device_ms"] > 0
    assert "round_ms" not in rows[1]


# ---------------------------------------------------------------------------- measuring


class FakeServer:
    """Rounds of a known length, accepted in turn wholly and not at all, on a clock of its own."""

    def __init__(
        self, speckv: bool, most: int = 64, capacity: int | None = None, sleeps: bool = False
    ) -> None:
        self.capacity = capacity
        self.sleeps = sleeps
        self.speckv = speckv
        self.most = most
        self.depth = 0
        self.awake = False
        self.now = 0.0
        self.recent: list[list[float]] = []
        self.asked: list[tuple[int, int]] = []
        self.pins: list[int] = []

    def seconds(self, size: int) -> float:
        draft = 0.004 if self.awake and self.depth == 0 else 0.0
        return 0.01 * (1 + self.depth) + 0.001 * size + draft

    async def info(self, request: web.Request) -> web.Response:
        shown = {"recent": self.recent[-1024:], "candidate_steps": [0, 2], "pinned": self.depth}
        shown["draft_sleeps"] = self.sleeps
        state: dict[str, Any] = {"speckv": shown} if self.speckv else {}
        state["memory_usage"] = {"token_capacity": self.capacity}
        return web.json_response({"internal_states": [state]})

    async def set_state(self, request: web.Request) -> web.Response:
        ((key, value),) = (await request.json())["server_args"].items()
        if key == "speckv_keep_awake":
            self.awake = bool(value)
            return web.json_response([True])
        assert key == "speckv_num_steps"
        self.depth = value
        return web.json_response([self.depth < 7])

    async def generate(self, request: web.Request) -> web.Response:
        body = await request.json()
        tokens, size = body["sampling_params"]["max_new_tokens"], len(body["input_ids"])
        self.asked.append((size, tokens))
        if body.get("stream"):
            self.pins.append(self.depth)
            await asyncio.sleep(0.05)
            answer = {"output_ids": [1] * tokens, "meta_info": {"completion_tokens": tokens}}
            return web.Response(text=f"data: {json.dumps(answer)}\n\ndata: [DONE]\n\n")
        self.now += 5.0
        done, turn = 0, 0
        while done < tokens:
            self.now += self.seconds(size)
            self.recent.append([round(self.now, 4), self.depth, min(size, self.most)])
            done, turn = done + 1 + self.depth * (turn % 2), turn + 1
        if not self.speckv:
            await asyncio.sleep(0.002 * tokens)
        return web.json_response([{}] * size)

    async def flush_cache(self, request: web.Request) -> web.Response:
        return web.Response()


@asynccontextmanager
async def serving(fake: FakeServer) -> AsyncIterator[str]:
    application = web.Application()
    application.router.add_get("/server_info", fake.info)
    application.router.add_post("/set_internal_state", fake.set_state)
    application.router.add_post("/generate", fake.generate)
    application.router.add_post("/flush_cache", fake.flush_cache)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


def measured(fake: FakeServer, steps: tuple[int, ...], sizes: tuple[int, ...] = (1, 4)) -> Any:
    async def go() -> list[Cell]:
        async with serving(fake) as url, Client("fake", url) as client:
            return [cell async for cell in measure(client, sizes, (32,), steps, 8, 300)]

    return asyncio.run(go())


def test_backends_answer_the_same_prompts_in_turn() -> None:
    first, second = FakeServer(speckv=False), FakeServer(speckv=False)

    async def go() -> Any:
        async with (
            serving(first) as one,
            serving(second) as two,
            Client("fa3", one) as a,
            Client("fa3 with SpecKV", two) as b,
        ):
            return await attention.measure([a, b], [[1], [2], [3]], 2, 4, 5, Screen())

    sample = asyncio.run(go())
    assert first.asked == second.asked and len(first.asked) == 2 * (4 + 1)
    assert sample.prompt.tolist() == [2, 0, 1, 2, 0, 1, 2, 0]
    stock, ours = attention.rows_of(["fa3", "fa3 with SpecKV"], sample)
    assert stock["ratio"] == 1.0 and ours["interval"][0] < ours["ratio"] < ours["interval"][1]


class PolicyServer(FakeServer):
    """Makes two drafts of five where rounds stop. Its answers are others then, ``gap`` below the
    target's own."""

    def __init__(self, gap: float) -> None:
        super().__init__(speckv=True)
        self.policy, self.gap = "", gap
        self.counts = dict.fromkeys(width.COUNTS, 0)

    async def info(self, request: web.Request) -> web.Response:
        shown = {"rounds": {"5": self.counts["request_rounds"] // 2}, **self.counts}
        shown |= {"stops": "on", "widths": "off: no", "candidate_steps": [0, 5], "failures": {}}
        return web.json_response({"internal_states": [{"speckv": shown}]})

    async def set_state(self, request: web.Request) -> web.Response:
        ((key, _),) = (await request.json())["server_args"].items()
        self.policy = key.removeprefix("speckv_policy:")
        return web.json_response([True])

    async def generate(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body.get("return_logprob"):
            told = {"input_token_logprobs": [[0, 0, ""]], "input_top_logprobs": [None]}
            for token in body["input_ids"][1:]:
                told["input_token_logprobs"].append([-self.gap, token, ""])
                told["input_top_logprobs"].append([[0.0, 7, ""]])
            return web.json_response({"meta_info": {"completion_tokens": 1, **told}})
        tokens, stops = body["sampling_params"]["max_new_tokens"], self.policy == width.STOPS
        await asyncio.sleep(0.01 if stops else 0.02)
        for name, n in zip(width.COUNTS, (4, 4 * (2 if stops else 5), 4, 2 * stops), strict=True):
            self.counts[name] += n
        answer = {"output_ids": [3 if stops else 4] * tokens}
        answer |= {"meta_info": {"completion_tokens": tokens}}  # type: ignore[dict-item]
        return web.Response(text=f"data: {json.dumps(answer)}\n\ndata: [DONE]\n\n")


@pytest.mark.parametrize(("gap", "lost"), [(0.0, 0), (0.1, 8)])
def test_rounds_that_stop_are_set_beside_whole_ones(
    gap: float, lost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def up(servers: Any, timeout_s: float) -> AsyncIterator[dict[str, Any]]:
        yield {}

    monkeypatch.setattr(width, "running", up)

    async def go() -> Any:
        async with serving(PolicyServer(gap)) as url:
            server: Any = SimpleNamespace(name="fake", url=url)
            return await width.compare(server, [[1], [2], [3]], [2], 4, 5, Screen())

    told = asyncio.run(go())
    (cell,) = told["cells"]
    chain, stops, whole = cell["policies"]
    assert [row["policy"] for row in cell["policies"]] == ["static:5", width.STOPS, width.WHOLE]
    assert [row["drafts_made"] for row in (chain, stops, whole)] == [5, 2, 5]
    assert (chain["ratio"], chain["stopped"], stops["stopped"]) == (1.0, 0.0, 1.0)
    assert [row["identical"] for row in (chain, stops, whole)] == [8, 0, 8]
    assert [row["lost"] for row in (chain, stops, whole)] == [0, lost, 0]
    assert width.holds(told) == (not lost)
    assert not width.holds(told | {"stops": "off: because"})


def test_every_depth_and_size_is_measured() -> None:
    cells = measured(FakeServer(speckv=True), (0, 3))
    assert [(c.batch_size, c.num_steps) for c in cells] == [(1, 0), (1, 3), (4, 0), (4, 3)]
    for one in cells:
        expected = 0.01 * (1 + one.num_steps) + 0.001 * one.batch_size
        assert one.seconds == pytest.approx(expected, rel=0.02)
        assert one.rounds >= 8 and one.context_len == 32


def test_a_draft_that_sleeps_is_measured_awake_as_well() -> None:
    cells = measured(FakeServer(speckv=True, sleeps=True), (0, 1))
    found = [(c.batch_size, c.num_steps, c.asleep) for c in cells]
    assert found == [(n, *c) for n in (1, 4) for c in ((0, False), (1, False), (0, True))]
    for awake, _, asleep in (cells[:3], cells[3:]):
        assert awake.seconds - asleep.seconds == pytest.approx(0.004, rel=0.01)
    rows = replay_table(cells)["rows"]
    assert [row["seconds"] for row in rows] == [c.seconds for c in cells if not c.asleep]


def test_cells_without_room_are_left_out() -> None:
    cells = measured(FakeServer(speckv=True, capacity=400), (0, 3))
    assert {one.batch_size for one in cells} == {1, 4}
    cells = measured(FakeServer(speckv=True, capacity=200), (0, 3))
    assert {one.batch_size for one in cells} == {1}


def test_a_server_that_never_drafts_is_measured_by_the_length_of_answers() -> None:
    fake = FakeServer(speckv=False)
    (found,) = measured(fake, (), sizes=(2,))
    assert (found.num_steps, found.batch_size) == (OFF, 2)
    assert found.seconds > 0.001
    assert fake.asked[0] == (2, 1) and len(set(fake.asked)) == 3


@pytest.mark.parametrize(
    ("fake", "steps", "problem"),
    [
        (FakeServer(speckv=True, most=2), (1,), "KV memory"),
        (FakeServer(speckv=True), (8,), "refused"),
        (FakeServer(speckv=False), (1,), "not served by SpecKV"),
    ],
)
def test_what_cannot_be_measured_is_said(
    fake: FakeServer, steps: tuple[int, ...], problem: str
) -> None:
    with pytest.raises(ServerError, match=problem):
        measured(fake, steps, sizes=(4,))


@pytest.mark.parametrize(
    ("script", "more"), [(smoke, ()), (overhead, (16,))], ids=["smoke", "overhead"]
)
def test_a_server_is_asked_at_every_depth(
    script: Any, more: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def up(servers: Any, timeout_s: float) -> AsyncIterator[dict[str, Any]]:
        yield {}

    monkeypatch.setattr(script, "running", up)
    monkeypatch.setattr(script, "chat_tokenizer", lambda target: lambda prompt: [1, 2, 3])
    fake = FakeServer(speckv=True)

    async def go() -> Any:
        async with serving(fake) as url:
            return await script.serve(SimpleNamespace(name="fake", url=url), "target", *more)

    shown = asyncio.run(go())
    if script is smoke:
        assert fake.pins == [0] * 4 + [2] * 4 + [-1] * 4
        assert shown["speckv"]["pinned"] == -1
    else:
        assert shown["pinned"] in (0, 2) and len(fake.pins) == 4


def test_a_server_that_fails_costs_its_own_cells_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what came before is in the file already, also of a server that fails half-way."""
    written: list[Any] = []

    async def measured(plan: Any, server: Any, found: dict[str, Any], save: Any) -> None:
        found["cells"].append(
            asdict(Cell(1, 0 if "eagle" in server.name else OFF, 512, 0.1, 0, 1, 9))
        )
        save()
        written.append(json.loads((tmp_path / "cost.json").read_text()))
        if server.name == "eagle3.plain":
            raise ServerError("out of memory")

    monkeypatch.setattr(cost_curves, "measure_server", measured)
    arguments = ["--draft", "eagle3", "--compression", "plain", "--compression", "fp8"]
    small = ["--layers", "2", "--hidden", "256", "--vocab", "1024"]
    done = CliRunner().invoke(
        cost_curves.app, [*arguments, *small, "--out", str(tmp_path / "cost.json")]
    )
    assert done.exit_code == 1
    assert [len(one["servers"]) for one in written] == [1, 2, 3, 4]
    told = json.loads((tmp_path / "cost.json").read_text())["servers"]
    assert [one.get("problem") for one in told] == [None, "out of memory", None, None]
    assert all(len(one["cells"]) == 1 for one in told)
    tables = sorted(path.name for path in tmp_path.glob("cost.*.512.json"))
    assert tables == ["cost.eagle3.fp8.512.json", "cost.eagle3.plain.512.json"]


def test_smoke_tries_every_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(server: Any, target: str) -> dict[str, Any]:
        raise ServerError(f"{server.name} did not start")

    drafts = [Draft("one", "one", "EAGLE3"), Draft("two", "two", "STANDALONE")]
    monkeypatch.setattr(smoke, "doctor", lambda flags: {"adaptive": True})
    monkeypatch.setattr(smoke, "serve", serve)
    monkeypatch.setattr(smoke, "resolve_target", lambda target: tmp_path)
    monkeypatch.setattr(smoke, "find_drafts", lambda *_: drafts)
    done = CliRunner().invoke(smoke.app, ["--out", str(tmp_path / "smoke.json")])
    assert done.exit_code == 1
    told = json.loads((tmp_path / "smoke.json").read_text())
    assert not told["ok"]
    assert {name: one["problem"] for name, one in told["drafts"].items()} == {
        "one": "one did not start",
        "two": "two did not start",
    }


def test_prompts_share_no_prefix() -> None:
    prompts = distinct_prompts(64, 16, 1024)
    assert len({prompt[0] for prompt in prompts}) == 64
    assert all(0 <= token < 1024 for prompt in prompts for token in prompt)
