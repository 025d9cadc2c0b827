"""SGLang only logs a hook that it cannot apply: what would be served without it is refused."""

import dataclasses

import pytest

from sglang_speckv.config import ConfigError
from sglang_speckv.srt import compat
from sglang_speckv.srt.engine import prepare
from tests import seams

pytestmark = pytest.mark.engine


@pytest.fixture(autouse=True)
def _loaded() -> None:
    prepare()


def without(target: compat.HookTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry

    monkeypatch.setattr(HookRegistry, "_patched", HookRegistry._patched - {target.path})


@pytest.mark.parametrize("target", [*compat.LAUNCHER_HOOKS, *compat.CPU_HOOKS])
def test_in_the_launcher(target: compat.HookTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    without(target, monkeypatch)
    with pytest.raises(ConfigError, match=rf"{target.path} did not apply"):
        prepare()


@pytest.mark.parametrize("target", compat.CPU_HOOKS)
def test_in_a_scheduler(target: compat.HookTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether SpecKV was asked for or not: without it a CPU would verify greedily."""
    from sglang.srt.server_args import ServerArgs
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    without(target, monkeypatch)
    with pytest.raises(ConfigError, match=rf"{target.path} did not apply"):
        SpeculativeAlgorithm.STANDALONE.create_worker(ServerArgs(model_path="none"))


def test_every_hook_has_the_parameters_it_was_made_for() -> None:
    compat.check_installation()
    compat.check_signatures([compat.WARM_UP])


def test_what_moved_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    every = seams.targets()
    assert len(every) > 30 and {compat.WARM_UP, *compat.WORKER_SEAMS} <= set(every)
    assert seams.moved() == []
    gone = compat.HookTarget("sglang.srt.server_args.ServerArgs.no_such_function", ())
    changed = dataclasses.replace(compat.ADD_CLI_ARGS, parameters=("other",))
    monkeypatch.setattr(compat, "WORKER_SEAMS", (gone, changed))
    told = sorted(seams.moved())
    assert len(told) == 2 and gone.path in told[0] and changed.path in told[1]


@pytest.mark.parametrize(
    ("table", "names"),
    [
        ("RUNTIME_STATE_FIELDS", compat.RUNTIME_STATE),
        ("APPLY_STATE_SOURCES", compat.APPLY_STATE),
    ],
)
def test_switching_depths_as_no_one_checked(
    table: str, names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compat, table, ("another",))
    with pytest.raises(ConfigError, match=names):
        compat.check_installation()


def test_the_cpu_engine_replaces_only_what_sglang_has() -> None:
    from sglang.srt.speculative import eagle_utils

    from sglang_speckv.srt.cpu import patches

    with pytest.raises(AttributeError, match="no_such_op"):
        patches._supply("no_such_op", print, eagle_utils)
