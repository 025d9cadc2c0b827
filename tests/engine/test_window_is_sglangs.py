"""What of a block counts, against SGLang's own benchmark."""

import numpy as np
import pytest
from sglang.benchmark.stream_metrics import BatchStreamRecorder

from sglang_speckv.ab.request import Completion
from sglang_speckv.ab.window import counted
from tests.unit.ab.test_window import block


def test_sglang_counts_the_same() -> None:
    """Its recorder on the same events."""
    rng = np.random.default_rng(0)
    done = []
    for _ in range(4):
        times = np.cumsum(rng.uniform(0.05, 0.2, 12))
        arrived = tuple((float(t), 1 + 3 * i) for i, t in enumerate(times))
        done.append(
            Completion((), tokens=34, e2e_s=arrived[-1][0], ttft_s=arrived[0][0], arrived=arrived)
        )
    recorder = BatchStreamRecorder(4)
    events = sorted((t, i, n) for i, one in enumerate(done) for t, n in one.arrived)
    for moment, index, tokens in events:
        finish = "length" if tokens == 34 else None
        recorder.record_chunk(index=index, completion_tokens=tokens, finish_type=finish, now=moment)
    theirs = recorder.steady_state_window()
    (part,) = counted(block((4, 4)), done)
    assert part.seconds == pytest.approx(theirs.duration)
    assert part.tokens.sum() == pytest.approx(theirs.output_tokens)
