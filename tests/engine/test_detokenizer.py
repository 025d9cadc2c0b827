"""Streams of characters of several bytes, cut into rounds anywhere: SGLang's detokenizer says some
of them twice, with SpecKV it does not."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from sglang_speckv.srt import arguments, compat, cpu, detokenizer, plugin
from sglang_speckv.srt.detokenizer import keep_what_was_sent

pytestmark = pytest.mark.engine
TEXTS = (
    "世界では、多くの人々が住んでいます。",
    "東京🎌 ありがとう",
    "한국어 café 👩‍👩‍👧 ok",
    "plain",
)
PROMPT = "日本語で"
WAYS = 200
"""In which each text is cut."""


@pytest.fixture(scope="module")
def tokenizer(models: dict[str, str]) -> Any:
    """Every byte is a token."""
    return AutoTokenizer.from_pretrained(models["target"])


def streamed(tokenizer: Any, text: str, chance: random.Random, active: bool) -> str:
    from sglang.srt.managers.detokenizer_manager import DetokenizerManager

    manager: Any = object.__new__(DetokenizerManager)  # its sockets are not needed
    manager.tokenizer, manager.vocab_size, manager.decode_status = tokenizer, len(tokenizer), {}
    manager.disable_tokenizer_batch_decode = manager.is_tool_call_parser_gpt_oss = False
    keep_what_was_sent(None, manager, SimpleNamespace(_speckv_active=active))
    context, ids = tokenizer(PROMPT)["input_ids"][-5:], tokenizer(text)["input_ids"]
    said, new = "", context
    while ids:
        count = chance.randint(1, 8)
        new, ids = [*new, *ids[:count]], ids[count:]
        batch = SimpleNamespace(
            rids=["one"],
            decoded_texts=[""],
            decode_ids=[new],
            read_offsets=[len(context)],
            finished_reasons=[None if ids else {"type": "length"}],
            no_stop_trim=[False],
            skip_special_tokens=[True],
            spaces_between_special_tokens=[True],
        )
        said, new = said + manager._decode_batch_token_id_output(batch)[0], []
    return said


@pytest.mark.parametrize("text", TEXTS)
def test_nothing_is_said_twice(tokenizer: Any, text: str) -> None:
    chance = random.Random(0)
    assert {streamed(tokenizer, text, chance, True) for _ in range(WAYS)} == {text}


def test_by_sglang_alone_it_is(tokenizer: Any) -> None:
    """Else the hook may go."""
    chance = random.Random(0)
    found = [streamed(tokenizer, TEXTS[0], chance, False) for _ in range(WAYS)]
    assert any(said != TEXTS[0] and len(said) > len(TEXTS[0]) for said in found)


def test_it_is_hooked_where_a_detokenizer_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or is forked: by the launcher, and by the plugin in a process that has its module."""
    import sglang.srt.managers.detokenizer_manager  # noqa: F401
    from sglang.srt.plugins.hook_registry import HookRegistry

    detokenizer.hook()
    assert compat.DETOKENIZER_STATUS.path in HookRegistry._patched
    hooked: list[int] = []
    monkeypatch.setattr(detokenizer, "hook", lambda: hooked.append(1))
    monkeypatch.setattr(arguments, "hook_warm_up", lambda: None)
    monkeypatch.setattr(cpu, "apply_if_enabled", lambda: None)
    monkeypatch.setattr(HookRegistry, "register", lambda *_: None)
    plugin.register()
    assert hooked == [1]
