"""No test changes what the next one logs to."""

from __future__ import annotations

import io
import logging

from tests.conftest import same_logging


def test_a_handler_goes_with_its_test() -> None:
    before, level = list(logging.root.handlers), logging.root.level
    with same_logging():
        logging.root.addHandler(logging.StreamHandler(io.StringIO()))
        logging.root.setLevel(level - 1)
    assert logging.root.handlers == before and logging.root.level == level
