"""``speckv serve`` and ``speckv doctor``: SGLang's own launch path with the plugin in place."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from sglang_speckv.config import ConfigError, SpecKVConfig
from sglang_speckv.srt import (
    arguments,
    carrier,
    compat,
    cpu,
    in_round,
    memory,
    patches_present,
)
from sglang_speckv.srt.controller import on_or_off
from sglang_speckv.srt.draft_check import first_line
from sglang_speckv.srt.engine import prepare


def serve(argv: Sequence[str]) -> None:
    """Serve until stopped: ``sglang serve`` with the same flags, on a CPU where there is no GPU.

    Raises:
        ConfigError: SpecKV cannot serve this.
    """
    check_early(argv)
    server_args = parse(argv)
    from sglang.launch_server import run_server
    from sglang.srt.utils import kill_process_tree

    resolve(server_args)
    try:
        run_server(server_args)
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


def resolve(server_args: Any) -> None:
    """SGLang's resolution; an unreadable model becomes one sentence."""
    try:
        server_args.resolve_once()
    except OSError as error:
        raise ConfigError(
            f"target {server_args.model_path!r} cannot be read: {first_line(error)}"
        ) from error


def check_early(argv: Sequence[str]) -> None:
    """What can be refused before SGLang is imported, which takes many seconds, is refused here."""
    compat.check_version()
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    arguments.add_flags(None, parser)
    parser.add_argument("--speculative-adaptive-config")
    parser.add_argument("--port", type=int, default=30000)
    parser.add_argument("--config")
    flags, _ = parser.parse_known_args(list(argv))
    arguments.config_from_flags(flags)
    if flags.config is None:  # else the port may stand in that file
        check_port(flags.port)


def check_port(port: int) -> None:
    """Raise :class:`ConfigError` where something listens on ``port`` already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"port {port} cannot be used ({error}); choose another with --port"
            ) from error


def parse(argv: Sequence[str]) -> Any:
    """``argv`` as SGLang's ``ServerArgs``, raw, with the CPU engine's settings where open."""
    prepare()
    from sglang.cli.serve import _normalize_positional_model_path
    from sglang.srt.server_args import prepare_server_args

    argv, _ = _normalize_positional_model_path(list(argv))
    return prepare_server_args([*argv, *(_cpu_flags(argv) if cpu.wanted() else [])])


def _cpu_flags(argv: Sequence[str]) -> list[str]:
    """What the CPU engine needs and ``argv`` leaves open, as flags."""
    given = {arg.split("=", 1)[0] for arg in argv}
    flags: list[str] = []
    for name, value in cpu.default_server_args().items():
        flag = "--" + name.replace("_", "-")
        if flag in given or value is False:
            continue
        flags += [flag] if value is True else [flag, str(value)]
    return flags


def print_help() -> None:
    """All of SGLang's flags and ours."""
    prepare()
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser(
        prog="speckv serve",
        description="Serve a model with SGLang and let SpecKV choose the draft depth. Takes "
        "every flag of `sglang serve`; on a machine without CUDA it runs on the CPU.",
        epilog="Example: speckv serve --model-path TARGET --speculative-algorithm EAGLE3 "
        "--speculative-draft-model-path HEAD --speckv",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    ServerArgs.add_cli_args(parser)
    ours = [group for group in parser._action_groups if group.title == "SpecKV"]
    parser._action_groups = ours + [g for g in parser._action_groups if g not in ours]
    parser.print_help()


def diagnose(argv: Sequence[str]) -> dict[str, Any]:
    """What serving with ``argv`` would do here, without spawning anything.

    ``adaptive`` says whether SpecKV would choose depths; ``problem`` holds the refusal if not.
    """
    report: dict[str, Any] = {"adaptive": False, "problem": None, **_machine()}
    try:
        server_args = _parse_or_refuse(argv)
        compat.check_installation()
        report["hooks"] = "applied"
        server_args._speckv_from_cli = False
        server_args.resolve_once()
        report |= _resolved(server_args)
        if not report["adaptive"]:
            report["problem"] = "SpecKV was not asked for; add --speckv"
    except Exception as error:  # whatever would stop the server is what was asked for
        report["problem"] = str(error).strip() or repr(error)
    return report


def _parse_or_refuse(argv: Sequence[str]) -> Any:
    """:func:`parse`, where an error that a parser prints before it exits is raised instead."""
    stderr = _Overheard(sys.stderr)
    try:
        with contextlib.redirect_stderr(stderr):
            return parse(argv)
    except SystemExit as exit:
        said = stderr.newest.strip().splitlines() or [f"exit code {exit.code}"]
        raise ConfigError(said[-1].removeprefix("speckv: ")) from None


class _Overheard(io.TextIOBase):
    """Hands on to ``stream``; SGLang's log, set up while parsing, goes on writing here."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.newest = ""

    def write(self, text: str) -> int:
        self.newest = (self.newest + text)[-4096:]
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()


def _machine() -> dict[str, Any]:
    import platform

    import torch

    has_cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "sglang": compat.installed_version(),
        "patches": ", ".join(patches_present.present()) or "none",
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if has_cuda else f"cpu ({platform.machine()})",
    }


def _resolved(server_args: Any) -> dict[str, Any]:
    from sglang.srt.arg_groups.overrides import resolving_view

    cfg = resolving_view(server_args)
    config = carrier.read(cfg.speculative_adaptive_config)
    adaptive = arguments.is_active(server_args) and bool(cfg.speculative_adaptive)
    taken = memory.planned(server_args)
    no_stops, no_widths = in_round.planned(config, cfg) if config else (None, None)
    return {
        "adaptive": adaptive,
        "target": cfg.model_path,
        "draft": cfg.speculative_draft_model_path,
        "algorithm": cfg.speculative_algorithm,
        "vocabulary": "target and draft agree" if adaptive else None,
        "attention_backend": cfg.attention_backend,
        "policy": config.policy if config else None,
        **_candidates(config),
        "launch_steps": cfg.speculative_num_steps,
        "exact": config.exact if config else None,
        "stops": on_or_off(no_stops) if adaptive else None,
        "widths": on_or_off(no_widths) if adaptive else None,
        "memory_of_further_depths_gib": _gib(taken.further_device_mib),
        "pinned_host_memory_gib_per_rank": _gib(taken.pinned_host_mib),
    }


def _candidates(config: SpecKVConfig | None) -> dict[str, list[int] | list[str] | None]:
    if config is not None and config.trees:
        return {"candidate_shapes": list(map(str, config.shapes))}
    return {"candidate_steps": None if config is None else list(config.candidate_steps)}


def _gib(mib: float) -> float | None:
    return round(mib / 1024, 2) if mib else None
