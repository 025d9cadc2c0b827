"""What stands between this package's faults and SGLang's scheduler: no exception of ours leaves it.

Every piece of our code that SGLang calls while serving runs under a guard. A failure is counted by
seam and shown in ``/server_info`` and ``/metrics``; the first one of a seam is logged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType

logger = logging.getLogger(__name__)


class Fuse:
    """``with fuse.guard("result"): ...`` passes an exception on until :attr:`armed`: at start-up a
    fault is to be loud. From then on it counts the exception and swallows it.

    ``blown`` is called after a failure of a guard that ``holds``: what the depth is chosen from
    can no longer be trusted.
    """

    def __init__(self, blown: Callable[[], None]) -> None:
        self.blown = blown
        self.armed = False
        self.failures: dict[str, int] = {}
        """Failures by seam, since start-up."""
        self._guards: dict[str, _Guard] = {}

    def guard(self, seam: str, holds: bool = True) -> _Guard:
        """The guard of a seam; it holds no state of its own and may be entered again inside."""
        guard = self._guards.get(seam)
        if guard is None:
            guard = self._guards[seam] = _Guard(self, seam, holds)
        return guard

    def failed(self, seam: str, error: Exception, holds: bool) -> None:
        first = seam not in self.failures
        self.failures[seam] = self.failures.get(seam, 0) + 1
        if first:
            logger.error(
                "SpecKV: %s failed (%r)%s; further failures of this kind are only counted in "
                "/server_info and /metrics",
                seam,
                error,
                "; the launch depth is served until a policy is selected again" if holds else "",
                exc_info=error,
            )
        if holds:
            self.blown()


class _Guard:
    __slots__ = ("_fuse", "_holds", "_seam")

    def __init__(self, fuse: Fuse, seam: str, holds: bool) -> None:
        self._fuse, self._seam, self._holds = fuse, seam, holds

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Exception) or not self._fuse.armed:
            return False
        self._fuse.failed(self._seam, error, self._holds)
        return True
