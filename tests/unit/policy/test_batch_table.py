from __future__ import annotations

import pytest

from sglang_speckv.config import ConfigError
from sglang_speckv.policy import Batch
from sglang_speckv.policy.batch_table import BatchTablePolicy


def test_the_range_of_the_batch_size_decides() -> None:
    policy = BatchTablePolicy((0, 1, 3), {2: 3, 8: 1, 64: 0})
    sizes = (1, 2, 7, 8, 63, 64, 1000)
    assert [policy.decide(Batch(size)).num_steps for size in sizes] == [3, 3, 3, 1, 1, 0, 0]
    assert policy.snapshot() == {"table": {"2": 3, "8": 1, "64": 0}}


@pytest.mark.parametrize(("table", "problem"), [({}, "empty"), ({1: 7}, "step 7")])
def test_a_wrong_table_is_refused(table: dict[int, int], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        BatchTablePolicy((0, 1, 3), table)
