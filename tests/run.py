"""The whole suite as two pytest runs side by side: ``python -m tests.run [PYTEST OPTIONS]``.

A server's start uses one core for half of its time, so two runs keep two cores busy.  The first
run owns the modules that share servers; everything else, also what is added later, is in the
second.  The second run's output follows when the first has ended.  Without a GPU the tests for one
are rehearsed on the CPU engine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress

SHARED = [
    *(
        f"tests/engine/test_{name}.py"
        for name in ("cpu_engine", "lossless", "serving", "signals", "artifact")
    ),
    "tests/gpu",
]
_NOTHING_COLLECTED = 5


def main(options: Sequence[str]) -> int:
    """The worse exit code of the two runs."""
    command = [sys.executable, "-m", "pytest", *options]
    environment = {"SPECKV_REHEARSE": "1", **os.environ}
    with tempfile.TemporaryFile("w+") as output:
        rest = subprocess.Popen(
            [*command, *(f"--ignore={path}" for path in SHARED)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            codes = [subprocess.call([*command, *SHARED], env=environment), rest.wait()]
        finally:
            with suppress(subprocess.TimeoutExpired):  # Ctrl-C reached it as well
                rest.wait(30)
            rest.kill()
            output.seek(0)
            print(output.read(), end="", flush=True)
    return max(0 if code == _NOTHING_COLLECTED else abs(code) for code in codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
