"""The prompts that are shipped, and the errors of ones that are not right."""

from collections import Counter
from pathlib import Path

import pytest

from sglang_speckv.ab.prompts import load_prompts
from sglang_speckv.config import ConfigError

CLASSES = {"code", "question_answering", "reasoning", "summarisation"}


def test_shipped_prompts_are_24_of_each_class_and_distinct():
    prompts = load_prompts()
    assert Counter(prompt.kind for prompt in prompts) == dict.fromkeys(CLASSES, 24)
    assert len({prompt.prompt for prompt in prompts}) == 96


def test_any_four_in_a_row_have_all_classes():
    prompts = load_prompts()
    for start in range(0, 96, 4):
        assert {prompt.kind for prompt in prompts[start : start + 4]} == CLASSES


def test_summarisation_passages_have_the_promised_length():
    for prompt in load_prompts():
        if prompt.kind == "summarisation":
            passage = prompt.prompt.split("\n\n", 1)[1]
            assert 120 <= len(passage.split()) <= 220, prompt.id


GOOD = '{"id": "a", "class": "code", "prompt": "x"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD + "{", "a.jsonl, line 2"),
        (GOOD + '{"id": "b", "class": "code"}', "line 2.*prompt"),
        ('{"id": 1, "class": "code", "prompt": "x"}', "line 1"),
        ('{"id": "b", "class": "code", "prompt": " "}', "must not be empty"),
        (GOOD + GOOD, "'a' occurs twice"),
        (b"\xff\xfe", "line 1"),
    ],
)
def test_broken_prompts_name_file_and_line(tmp_path: Path, content: str | bytes, message: str):
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "a.jsonl").write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        load_prompts(tmp_path)


def test_an_empty_folder_says_how_to_name_another(tmp_path: Path):
    with pytest.raises(ConfigError, match="--prompts FOLDER"):
        load_prompts(tmp_path)
