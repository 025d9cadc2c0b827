"""Prompts from the datasets that SGLang's own benchmark knows, each loaded by SGLang itself."""

import json
from pathlib import Path

import pytest

from sglang_speckv.bench.prompts import find_prompts
from sglang_speckv.config import ConfigError
from tests.engine.tiny_models import tiny_llama

pytestmark = pytest.mark.engine

QUESTIONS = ["How deep is the sea between here and there?", "Which of these two is the older one?"]
ANSWER = "Nobody has measured it yet, and so nobody can tell you."
FILES = {
    "sharegpt": [
        {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": ANSWER}]}
        for q in QUESTIONS
    ],
    "custom": [
        {
            "conversations": [
                {"role": "user", "content": q},
                {"role": "assistant", "content": ANSWER},
            ]
        }
        for q in QUESTIONS
    ],
    "openai": [{"messages": [{"role": "user", "content": q}], "max_tokens": 8} for q in QUESTIONS],
}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_llama(tmp_path_factory.mktemp("models") / "target", layers=1))


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_a_dataset(tmp_path: Path, target: str, name: str) -> None:
    path = tmp_path / "data"
    records = FILES[name]
    lines = [json.dumps(record) for record in records]
    path.write_text(json.dumps(records) if name == "sharegpt" else "\n".join(lines))
    prompts = find_prompts(f"sglang:{name}={path}", target)
    assert {prompt.prompt for prompt in prompts} == set(QUESTIONS)
    assert {(prompt.kind, prompt.chat()[-1]["role"]) for prompt in prompts} == {(name, "user")}
    assert [prompt.id for prompt in prompts] == [f"{name}-1", f"{name}-2"]


@pytest.mark.parametrize("name", ["random-ids", "generated-shared-prefix"])
def test_a_dataset_that_is_made_up(target: str, name: str) -> None:
    first, again = (find_prompts(f"sglang:{name}", target) for _ in range(2))
    assert len(first) > 100 and all(prompt.prompt for prompt in first)
    assert first == again, "the same in every run"


def test_a_dataset_that_cannot_be_loaded_is_one_sentence(tmp_path: Path, target: str) -> None:
    with pytest.raises(ConfigError, match=r"SGLang cannot load its dataset 'openai=.*missing'"):
        find_prompts(f"sglang:openai={tmp_path / 'missing'}", target)
    (tmp_path / "empty").write_text("")
    with pytest.raises(ConfigError, match="holds no prompts"):
        find_prompts(f"sglang:openai={tmp_path / 'empty'}", target)
