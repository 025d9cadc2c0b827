"""Which tests stay together when two processes run them (``pytest -n 2 --dist loadgroup``), and
what holds for all of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import settings

settings.register_profile("speckv", deadline=None)  # no test is of the machine's speed
settings.load_profile("speckv")
SHARED_SERVERS = ("server", "gpu_server")
"""Fixtures with a server for each parameter. One process runs the tests of each, for they are
compared with answers of the target alone, which it asks for once."""
IN_PROCESS = (
    *("test_access", "test_detokenizer", "test_ema_is_sglangs", "test_readme", "test_refusals"),
    *("test_refused_models", "test_switching", "test_untouched", "test_usage"),
    "test_window_is_sglangs",
)
"""Engine tests that import SGLang themselves: all in one process, so that it is imported once."""


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    with same_logging():
        yield


@contextmanager
def same_logging() -> Iterator[None]:
    """SGLang gives the root logger a handler on the standard error of the moment, which is a file
    that pytest closes after the test: the next line that any test logged would be an error."""
    before, level = list(logging.root.handlers), logging.root.level
    yield
    logging.root.setLevel(level)
    for handler in list(logging.root.handlers):
        if handler not in before and not type(handler).__module__.startswith("_pytest"):
            logging.root.removeHandler(handler)


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
