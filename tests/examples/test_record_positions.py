"""``examples/record_positions.py`` on tiny random pairs: what it says is what the models do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import examples.record_positions as script
from examples.record_positions import DEPTH, Answer, Recorded
from examples.train_drafts import eagle3
from examples.train_drafts.target import read_shape
from sglang_speckv.offline.records import Record
from sglang_speckv.replay.positions import Source, read_positions
from tests.engine.tiny_models import tiny_llama
from tests.unit.offline.synthetic import HEADER, write_trace

PROMPTS = ["Say it.", "Tell me something longer, please.", "Why?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pair")


@pytest.fixture(scope="module")
def target(folder: Path) -> Path:
    return tiny_llama(folder / "target", layers=6)


@pytest.fixture(scope="module")
def standalone(folder: Path) -> Path:
    return tiny_llama(folder / "standalone", layers=2, noise=0.3)


@pytest.fixture(scope="module")
def head(folder: Path, target: Path) -> Path:
    torch.manual_seed(0)
    shape, weights = read_shape(target), load_file(target / "model.safetensors")
    with torch.no_grad():
        made = eagle3.fresh(shape, weights, torch.arange(0, shape.vocab, 2))
    config = json.loads((target / "config.json").read_text())
    eagle3.save(made, torch.arange(0, shape.vocab, 2), folder / "head", config)
    return folder / "head"


@pytest.fixture(scope="module")
def answer(target: Path) -> Answer:
    prompt = list(range(5, 25))
    (made,) = script.greedy(script.load_model(target), [prompt], 24)
    return Answer("a", "code", prompt, made)


def test_answers_made_together_are_those_made_alone(target: Path) -> None:
    model = script.load_model(target)
    prompts = [[7, 8, 9], list(range(30, 50)), [3] * 11]
    together = script.greedy(model, prompts, 12)
    assert together == [script.greedy(model, [prompt], 12)[0] for prompt in prompts]
    end = together[0][4]
    model.generation_config.eos_token_id = end
    assert script.greedy(model, prompts, 12)[0] == together[0][: together[0].index(end) + 1]


def test_a_separate_draft_goes_on_greedily_from_every_position(
    standalone: Path, answer: Answer
) -> None:
    """From what is before it, the prompt's first token aside, as SGLang feeds it."""
    made = script.standalone_chains(standalone)(answer)
    model = script.load_model(standalone)
    model.generation_config.eos_token_id = None
    assert len(made.drafts) == len(answer.answer) - 1
    for s, (drafts, signals) in enumerate(zip(made.drafts, made.signals, strict=True)):
        before = answer.prompt[1:] + answer.answer[: s + 1]
        asked = torch.tensor([before])
        plain = model.generate(
            asked, attention_mask=torch.ones_like(asked), max_new_tokens=DEPTH, do_sample=False
        )
        assert plain[0, len(before) :].tolist() == drafts.tolist()
        with torch.no_grad():
            logits = model(plain[:, :-1]).logits[0, len(before) - 1 :]
        probs = logits.softmax(-1)
        assert signals[:, 0] == pytest.approx(probs.amax(-1).numpy(), abs=1e-5)
        entropy = -(probs * probs.log()).sum(-1) / np.log(probs.shape[-1])
        assert signals[:, 1] == pytest.approx(entropy.numpy(), abs=1e-5)
    assert len({tuple(drafts) for drafts in made.drafts.tolist()}) > 5, (
        "a draft that says one thing"
    )


@pytest.mark.parametrize("draft", ["standalone", "head"])
def test_a_chain_knows_nothing_of_what_comes_later(
    request: pytest.FixtureRequest, target: Path, draft: str, answer: Answer
) -> None:
    path = request.getfixturevalue(draft)
    chains = (
        script.eagle3_chains(target, path) if draft == "head" else script.standalone_chains(path)
    )
    made = chains(answer)
    for length in (2, 9, 20):
        cut = chains(Answer("a", "code", answer.prompt, answer.answer[:length]))
        assert cut.drafts.tolist() == made.drafts[: length - 1].tolist()
        assert cut.signals == pytest.approx(made.signals[: length - 1], abs=1e-5)


def test_drafts_are_right_as_far_as_they_are_the_answer() -> None:
    answer = list(range(10))
    drafts = np.array([np.arange(s + 1, s + 1 + DEPTH) for s in range(9)])
    drafts[2, 1] = 99
    assert script.correct_drafts(drafts, answer).tolist() == [7, 7, 1, 6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize("draft", ["standalone", "head"])
def test_the_whole_script(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    target: Path,
    draft: str,
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"id": f"p{i}", "class": "c", "prompt": text} for i, text in enumerate(PROMPTS)]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    app = script.typer.Typer()
    app.command()(script.record)
    out = tmp_path / "mine.safetensors"
    arguments = ["--target", target, "--draft", request.getfixturevalue(draft), "--out", out]
    arguments += ["--prompts", prompts, "--max-new-tokens", 30]
    done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    told = json.loads(done.stdout.splitlines()[-1])
    found = read_positions(out)
    assert told["positions"] == len(found) and 1 <= told["walked"]["accept_length"] <= DEPTH + 1
    assert found.source.requests == (("c", "p0"), ("c", "p1"), ("c", "p2"))
    assert found.source.algorithm == ("EAGLE3" if draft == "head" else "STANDALONE")
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert np.diff(found.start).tolist() == [len(each["answer"]) - 1 for each in answers]
    # a second run goes on from the answers of the first
    monkeypatch.setattr(script, "greedy", lambda *_: pytest.fail("answered anew"))
    again = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert json.loads(again.stdout.splitlines()[-1]) == told


def test_rounds_of_an_engine_are_met_where_they_began(tmp_path: Path) -> None:
    source = Source("t", "d", "EAGLE3", (("code", "1"), ("code", "2")))
    correct = np.array([1, 0, 1, 7, 3, 0])
    made = Recorded(source, [10, 20], np.array([0, 3, 6]), correct, np.zeros((6, DEPTH, 2)))
    assert script.walked(made).tolist() == [1, 1, 7]
    # a prompt that is not here, contexts before and beyond the answer, and another depth
    strangers = [("3", 11, 1, 7), ("1", 10, 4, 7), ("2", 24, 1, 7), ("1", 12, 0, 3)]
    rounds = [("1", 11, 1, 7), ("1", 13, 0, 7), ("2", 21, 7, 7), *strangers]
    records = [
        Record(
            round=number,
            request=f"code:{prompt}:x{number}",
            batch_size=1,
            context_len=context,
            num_steps=depth,
            num_correct_drafts=count,
        )
        for number, (prompt, context, count, depth) in enumerate(rounds)
    ]
    found = script.compared(made, write_trace(tmp_path / "t.jsonl.gz", records, HEADER))
    assert (found["met_here"], found["same"]) == (3, 2)
    assert found["recorded"]["rounds"] == 6 and found["recorded"]["by_position"][0] == 0.833
