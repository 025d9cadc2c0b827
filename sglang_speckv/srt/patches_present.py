"""Which of the optional patches in ``patches/`` the installed SGLang carries.

Nothing here depends on the answer: SpecKV works with and without each. Looks for a name that only
the patch brings, in the source text, so that nothing of SGLang is imported.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

MARKERS = {
    "0001-draft-logits-callback": ("srt/speculative/eagle_worker_v2.py", "draft_logits_callback"),
    "0002-adaptive-standalone": (
        "srt/speculative/standalone_worker_v2.py",
        "_create_adaptive_controller",
    ),
    "0003-quiet-tier-switches": ("srt/runtime_context.py", "replace_last"),
    "0004-proposed-drafts-in-metrics": (
        "srt/managers/scheduler_components/metrics_reporter.py",
        "spec_num_proposed_drafts",
    ),
    "0005-proposed-drafts-in-meta-info": ("srt/managers/io_struct.py", "spec_num_proposed_drafts"),
}
"""Patch file less its suffix -> a file of the package, a name that only the patch puts there."""


def installed_package() -> Path:
    """The folder of the ``sglang`` package that would be imported."""
    spec = importlib.util.find_spec("sglang")
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))


def present(package: Path | None = None) -> list[str]:
    """Names of the patches in ``package``, by default the installed one."""
    package = package or installed_package()
    return [name for name, (path, marker) in MARKERS.items() if _contains(package / path, marker)]


def _contains(path: Path, marker: str) -> bool:
    try:
        return marker in path.read_text(encoding="utf-8")
    except OSError:
        return False
