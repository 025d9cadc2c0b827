"""Which tests stay together when two processes run them (``pytest -n 2 --dist loadgroup``), and
what holds for all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("speckv", deadline=None)  # no test is of the machine's speed
settings.load_profile("speckv")
SHARED_SERVERS = ("server", "gpu_server")
"""Fixtures with a server for each parameter. One process runs the tests of each, for they are
compared with answers of the target alone, which it asks for once."""
IN_PROCESS = (
    *("test_ema_is_sglangs", "test_readme", "test_refusals", "test_refused_models"),
    *("test_switching", "test_untouched", "test_window_is_sglangs"),
)
"""Engine tests that import SGLang themselves: all in one process, so that it is imported once."""


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Iterator[None]:
    if not config.getoption("loadgroup", False):
        return (yield)
    for item in items:
        group = group_of(item)
        if group is not None:
            item.add_marker(pytest.mark.xdist_group(group))
    yield  # pytest-xdist puts the group behind the test's name
    lost = [item.nodeid for item in items if group_of(item) and "@" not in item.nodeid]
    if lost:
        raise pytest.UsageError(f"pytest-xdist did not group {lost[0]}; install what is locked")


def group_of(item: pytest.Item) -> str | None:
    """The kind of shared server that a test uses, else an engine test's module, whose server it
    may be."""
    if item.path.stem in IN_PROCESS:
        return "in process"
    call = getattr(item, "callspec", None)
    for fixture in SHARED_SERVERS:
        if call is not None and fixture in call.params:
            return fixture
    return item.path.stem if item.get_closest_marker("engine") else None
