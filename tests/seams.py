"""What of SGLang has moved: every function that this package hooks, overrides or restates and that
the installed SGLang has no more, or has with other parameters.

    python -m tests.seams

Whatever its version is. Exits with 1 where something moved; the tables are in
``sglang_speckv/srt/compat.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from sglang_speckv.config import ConfigError
from sglang_speckv.srt import compat


def targets() -> list[compat.HookTarget]:
    """Every one that :mod:`compat` names, alone or in a table."""
    tables = [each if isinstance(each, tuple) else (each,) for each in vars(compat).values()]
    named = (each for table in tables for each in table if isinstance(each, compat.HookTarget))
    return list(dict.fromkeys(named))


def moved() -> list[str]:
    """A sentence for each."""
    checks: list[Callable[[], None]] = [
        *(partial(compat.check_signatures, [target]) for target in targets()),
        compat.check_restated,
    ]
    found = []
    for check in checks:
        try:
            check()
        except ConfigError as error:
            found.append(str(error).partition("; reinstall")[0])
    return found


def main() -> int:
    found = moved()
    print(f"sglang {compat.installed_version()}: {len(found)} seams have moved")
    for sentence in found:
        print(f"- {sentence}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
