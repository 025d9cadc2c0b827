"""Resolve server arguments as on a machine with one H100, which this one need not have.

    python -m tests.engine.pretend_h100 < LINES > FACTS

LINES is a JSON list of argument lists for ``speckv serve``; FACTS one object for each: what doctor
says of it, with SGLang's plan of memory and graphs, or the ``problem``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any
from unittest import mock

H100_MIB = 80 * 1024


def resolved(argv: Sequence[str]) -> dict[str, Any]:
    from sglang.srt.arg_groups import memory_hook
    from sglang.srt.arg_groups.overrides import resolving_view
    from sglang.srt.runtime_context import override_platform

    from sglang_speckv.srt.serve import _resolved, parse

    machine = {"is_cuda": True, "has_flashinfer": True, "is_hopper_with_cuda_12_3": True}
    with (
        override_platform(**machine),
        mock.patch.object(memory_hook, "get_device_memory_capacity", return_value=H100_MIB),
    ):
        try:
            args = parse([*argv, "--device", "cuda"])
            args._speckv_from_cli = False  # a refusal is raised, not printed
            args.resolve_once()
        except (Exception, SystemExit) as error:
            return {"problem": f"{type(error).__name__}: {error}"}
        cfg = resolving_view(args)
        return {
            **_resolved(args),
            "mem_fraction_static": cfg.mem_fraction_static,
            "graph_sizes": cfg.cuda_graph_config.decode.bs,
        }


def main() -> None:
    os.environ["SPECKV_CPU"] = "0"  # none of the CPU engine's own settings
    with redirect_stdout(sys.stderr):
        facts = [resolved(argv) for argv in json.load(sys.stdin)]
    json.dump(facts, sys.stdout)


if __name__ == "__main__":
    main()
