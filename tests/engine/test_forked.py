"""Forked test servers: nothing is imported twice, and they end and refuse as others do.

That they answer as others do is asked in test_python_api, which has servers of both sorts.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sglang_speckv.config import ConfigError
from tests import forked
from tests.engine.conftest import PROMPTS, flags, serving

pytestmark = pytest.mark.engine
ASKED = ["--speckv", "--speckv-profile", "0"]


def test_nothing_heavy_is_imported_again(
    models: dict[str, str], plain_answers: dict[str, Any], tmp_path: Path
) -> None:
    with serving(tmp_path, *flags(models, "STANDALONE", "alike"), *ASKED) as server:
        assert server.tokens(PROMPTS) == plain_answers["batch"]
    late = re.findall(f"^{forked.LATE}(.*)", server.log.read_text(errors="replace"), re.MULTILINE)
    assert "sglang.cli" in late  # what is late shows
    assert not {"sglang", "torch", "transformers", "sglang.srt.managers.scheduler"} & {*late}
    assert len(late) < 200  # of some 2,000


def test_a_refusal_is_one_sentence(models: dict[str, str], tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"^server under test: speckv: .*'magic'"),
        serving(tmp_path, *flags(models), "--speckv-policy", "magic"),
    ):
        pass
