"""Two ranks on one machine choose alike: they would hang at the first different depth."""

from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import PROMPTS, flags, serving

pytestmark = pytest.mark.engine


def test_two_ranks_agree(
    models: dict[str, str], plain_answers: dict[str, Any], tmp_path: Path
) -> None:
    asked = ["--speckv", "--tp-size", "2"]
    with serving(tmp_path, *flags(models, "STANDALONE", "alike"), *asked) as server:
        for _ in range(3):
            assert server.tokens(PROMPTS) == plain_answers["batch"]
        shown = server.speckv()
    assert shown["active"] and shown["fallbacks"] == 0
    assert sum(count > 0 for count in shown["rounds"].values()) >= 3
    assert shown["policy_state"]["timed_rounds"] > 0
