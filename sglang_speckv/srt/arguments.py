"""The launcher's side: flags become carried settings, settings become SGLang's own arguments.

Everything that can be refused is refused here, in the process that the user started.
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sglang_speckv.config import (
    DEFAULT_CANDIDATE_STEPS,
    DEFAULT_PROFILE_SECONDS,
    EXACT,
    MAX_NUM_STEPS,
    POLICY_NAMES,
    SIGNAL_LAGS,
    STOPS,
    WIDTHS,
    ConfigError,
    Shape,
    SpecKVConfig,
    default_shapes,
    joined,
    names_shape,
    parse_shapes,
    parse_steps,
    static_steps,
)
from sglang_speckv.offline.artifact import artifacts_in, fitting
from sglang_speckv.srt import carrier, compat, cpu, detokenizer, exact, request_checks
from sglang_speckv.srt.controller import EnginePolicy
from sglang_speckv.srt.draft_check import check_draft
from sglang_speckv.srt.identity import draft_model_config, identity
from sglang_speckv.srt.refusals import refuse_recurrent, refuse_unsupported
from sglang_speckv.srt.trace import check_directory

logger = logging.getLogger(__name__)

DEFAULT_NUM_STEPS = 3  # where serving starts and falls back to, when nobody says


# ---------------------------------------------------------------------------- flags


def add_flags(result: None, parser: argparse.ArgumentParser) -> None:
    """AFTER ``ServerArgs.add_cli_args``."""
    group = parser.add_argument_group("SpecKV")
    group.add_argument(
        "--speckv",
        nargs="?",
        const="",
        default=None,
        metavar="ARTIFACT",
        help="Choose the depth of drafting, or the shape of draft trees, for every round. Needs "
        "--speculative-algorithm EAGLE, EAGLE3, NEXTN or STANDALONE. ARTIFACT: a file that `speckv "
        "train` made for this pair, or a folder of such files, of which the one for this server is "
        "taken. Without one, acceptance is learned while serving. Round times are measured at "
        "start-up either way (--speckv-profile).",
    )
    group.add_argument(
        "--speckv-policy",
        default=None,
        metavar="POLICY",
        help=f"Who chooses: {', '.join(POLICY_NAMES)} (default: throughput). Turns --speckv on.",
    )
    group.add_argument(
        "--speckv-candidate-steps",
        default=None,
        metavar="K,K,...",
        help="Depths to build at start-up and choose from, 0 = do not draft (default: "
        f"{','.join(map(str, DEFAULT_CANDIDATE_STEPS))}). Turns --speckv on.",
    )
    group.add_argument(
        "--speckv-candidate-shapes",
        default=None,
        metavar="SxT,SxT,...",
        help="With --speculative-eagle-topk above 1: shapes of draft trees to build at start-up "
        "and choose from, as steps x verified tokens, 0 = do not draft (default: the launch shape, "
        "smaller ones made from it, and 0). Turns --speckv on.",
    )
    group.add_argument(
        "--speckv-signal-lag",
        default=None,
        metavar="|".join(SIGNAL_LAGS),
        help="Under the overlap scheduler: 'late' decides by the draft's signal of the round "
        "before and never waits, '0' waits for the coming round's, 'auto' times both at start-up "
        "(default: auto). Without overlap the coming round's signal is free. Turns --speckv on.",
    )
    group.add_argument(
        "--speckv-stop",
        default=None,
        metavar="|".join(STOPS),
        help="Whether a round may stop drafting by what its own drafts say: 'auto' on the CPU "
        "engine and in captured draft graphs, without tensor parallelism; 'off' nowhere (default: "
        "auto). Turns --speckv on.",
    )
    group.add_argument(
        "--speckv-width",
        default=None,
        metavar="|".join(WIDTHS),
        help="Whether a round may verify fewer drafts of one request than of another: 'auto' on "
        "the CPU engine without tensor parallelism, 'off' nowhere (default: auto). Turns --speckv "
        "on.",
    )
    group.add_argument(
        "--speckv-exact",
        default=None,
        metavar="|".join(EXACT),
        help="Whether a request that verification would treat otherwise than plain decoding "
        "(penalties, min_new_tokens, min_p, custom logit processors) is decoded without drafts, so "
        "that its text is the one of a server without speculation: 'on' decodes it so, refuses "
        "hidden states and ends answers where plain decoding does; 'off' speculates on it as "
        "SGLang does, faster and with another text (default: on). Turns --speckv on.",
    )
    group.add_argument(
        "--speckv-max-context",
        default=None,
        type=int,
        metavar="TOKENS",
        help="Take no drafts for a request whose prompt and answer are longer than this (default: "
        "no limit). Where rounds have no widths per request it holds for batches of such requests "
        "only. Turns --speckv on.",
    )
    group.add_argument(
        "--speckv-profile",
        default=None,
        type=float,
        metavar="SECONDS",
        help="Time real rounds at every depth for at most about this long before serving, 0 = "
        f"learn while serving (default: {DEFAULT_PROFILE_SECONDS:.0f}). Turns --speckv on.",
    )
    group.add_argument(
        "--speckv-trace",
        default=None,
        metavar="DIR",
        help="Write one record per request and round into this folder, for `speckv train` and "
        "`speckv replay`. Turns --speckv on.",
    )


def from_cli_args(original: Callable[..., Any], cls: type, args: argparse.Namespace) -> Any:
    """AROUND ``ServerArgs.from_cli_args``: flags become the carrier file."""
    try:
        config = config_from_flags(args)
        if config is not None:
            args.speculative_adaptive = True
            args.speculative_adaptive_config = carrier.write(config)
    except ConfigError as error:
        exit_with(error)
    server_args = original(cls, args)
    server_args._speckv_from_cli = True
    return server_args


def config_from_flags(args: argparse.Namespace) -> SpecKVConfig | None:
    """Merge the flags over the user's own adaptive-config file; None where nothing was asked."""
    artifact = getattr(args, "speckv", None)
    given: dict[str, Any] = {
        "policy": getattr(args, "speckv_policy", None),
        "candidate_steps": getattr(args, "speckv_candidate_steps", None),
        "candidate_shapes": getattr(args, "speckv_candidate_shapes", None),
        "signal_lag": getattr(args, "speckv_signal_lag", None),
        "stop": getattr(args, "speckv_stop", None),
        "width": getattr(args, "speckv_width", None),
        "exact": getattr(args, "speckv_exact", None),
        "max_context": getattr(args, "speckv_max_context", None),
        "profile_seconds": getattr(args, "speckv_profile", None),
        "trace": getattr(args, "speckv_trace", None),
    }
    given = {key: value for key, value in given.items() if value is not None}
    if artifact is None and not given:
        return None
    if artifact:
        _check_artifact(artifact)
        given["artifact"] = artifact
    if "candidate_steps" in given:
        given["candidate_steps"] = parse_steps(given["candidate_steps"])
    if "candidate_shapes" in given:
        given["candidate_shapes"] = list(map(str, parse_shapes(given["candidate_shapes"])))
    asked = {**carrier.asked_in(args.speculative_adaptive_config), **given}
    return located(SpecKVConfig.from_dict(asked))


def located(config: SpecKVConfig) -> SpecKVConfig:
    """``config`` as schedulers take it: its paths are absolute, its trace has a folder."""
    if config.trace is not None:
        check_directory(config.trace)
    return replace(config, trace=_absolute(config.trace), artifact=_absolute(config.artifact))


def _absolute(path: str | None) -> str | None:
    return path and os.path.abspath(path)


def _check_artifact(artifact: str) -> None:
    if artifact.lower() in ("true", "false"):
        raise ConfigError(
            f"--speckv {artifact} is neither a switch nor an artifact; write --speckv alone "
            "(in a YAML config: speckv: '')"
        )
    artifacts_in(Path(artifact))  # what is wrong with it is said before SGLang is imported


def exit_with(error: ConfigError) -> None:
    """The command line's edge: one sentence, exit code 2."""
    print(f"speckv: {error}", file=sys.stderr, flush=True)
    raise SystemExit(2)


# ---------------------------------------------------------------------------- resolution


def requested(server_args: Any) -> SpecKVConfig | None:
    """The settings these server arguments carry, None where SpecKV was not asked for."""
    from sglang.srt.arg_groups.overrides import resolving_view

    return carrier.read(resolving_view(server_args).speculative_adaptive_config)


def is_active(server_args: Any) -> bool:
    """Did :func:`resolve` accept SpecKV for this record? Survives pickling to the scheduler."""
    return bool(getattr(server_args, "_speckv_active", False))


def check_target(original: Callable[..., Any], server_args: Any) -> Any:
    """AROUND ``handle_model_specific_adjustments``, which has sentences of its own for some of the
    targets that are refused here."""
    from sglang.srt.arg_groups.overrides import model_config_of

    with _refusals_told(server_args):
        if requested(server_args) is not None:
            refuse_recurrent("target", model_config_of(server_args))
    return original(server_args)


def resolve(original: Callable[..., Any], server_args: Any) -> Any:
    """AROUND ``handle_speculative_decoding``: check, then state what SGLang has to build."""
    with _refusals_told(server_args):
        config = requested(server_args)
        launch = None if config is None else _resolve(config, server_args)
    result = original(server_args)
    if launch is not None:
        _restate(launch, server_args)
    return result


@contextmanager
def _refusals_told(server_args: Any) -> Iterator[None]:
    """To the command line as one sentence, to Python as the exception."""
    try:
        yield
    except ConfigError as error:
        if getattr(server_args, "_speckv_from_cli", False):
            exit_with(error)
        raise


def _resolve(config: SpecKVConfig, server_args: Any) -> Shape:
    """Returns the shape to start on."""
    from sglang.srt.arg_groups.overrides import (
        declare_resolution,
        resolving_view,
        use_mla_backend,
    )

    compat.check_installation()
    cfg = resolving_view(server_args)
    algorithm = (cfg.speculative_algorithm or "").upper() or None
    if algorithm != cfg.speculative_algorithm:
        declare_resolution(server_args, "speckv", speculative_algorithm=algorithm)
    refuse_unsupported(cfg)
    check_draft(cfg)
    refuse_recurrent("draft", draft_model_config(server_args))
    config = located(config)
    if config.artifact is not None:
        own = fitting(Path(config.artifact), identity(server_args))
        config = replace(config, artifact=str(own))
    config, launch = with_launch_tier(config, cfg)
    if config.trees and use_mla_backend(server_args):
        raise ConfigError(
            f"SpecKV cannot draft trees for {cfg.model_path!r}, whose attention is MLA; set "
            f"--speculative-eagle-topk to 1 instead of {cfg.speculative_eagle_topk}"
        )
    EnginePolicy(config, launch)  # refuses here what it would refuse in the scheduler
    shape, topk = config.shape_of(launch), cfg.speculative_eagle_topk or 1
    declare_resolution(
        server_args,
        "speckv",
        speculative_adaptive=True,
        speculative_adaptive_config=carrier.write(config, topk, shape),
        speculative_num_steps=shape.num_steps,
        speculative_num_draft_tokens=shape.num_draft_tokens,
        speculative_eagle_topk=topk,
    )
    server_args._speckv_active = True
    if config.exact == "on":
        exact.switch_on(server_args)
    return shape


def _restate(launch: Shape, server_args: Any) -> None:
    """SGLang takes all that adapts for chains, and has set as many tokens as a chain has."""
    from sglang.srt.arg_groups.overrides import declare_resolution

    tokens = launch.num_draft_tokens
    declare_resolution(server_args, "speckv", speculative_num_draft_tokens=tokens)


def with_launch_tier(config: SpecKVConfig, cfg: Any) -> tuple[SpecKVConfig, int]:
    """The tier to start on, joined to the candidates; ``cfg``: resolving server arguments.

    Raises:
        ConfigError: there is no such tier.
    """
    if (cfg.speculative_eagle_topk or 1) > 1:
        return _with_launch_shape(config, cfg)
    if config.trees:
        raise ConfigError(
            "--speckv-candidate-shapes are those of trees; add --speculative-eagle-topk K above 1, "
            "or take --speckv-candidate-steps"
        )
    if names_shape(config.policy):
        raise ConfigError(
            f"policy {config.policy!r} names the shape of a tree; add --speculative-eagle-topk K "
            "above 1, or take static:K"
        )
    return with_launch_steps(config, cfg.speculative_num_steps)


def _with_launch_shape(config: SpecKVConfig, cfg: Any) -> tuple[SpecKVConfig, int]:
    topk, shapes = cfg.speculative_eagle_topk, config.candidate_shapes
    steps, tokens = cfg.speculative_num_steps, cfg.speculative_num_draft_tokens
    named = parse_shapes(config.policy.partition(":")[2]) if names_shape(config.policy) else ()
    if static_steps(config.policy) is not None and config.policy != "static:0":
        raise ConfigError(
            f"policy {config.policy!r} names the depth of a chain; with --speculative-eagle-topk "
            f"{topk} name a shape, such as static:3x8"
        )
    if config.candidate_steps != DEFAULT_CANDIDATE_STEPS:
        raise ConfigError(
            f"--speckv-candidate-steps are those of chains; with --speculative-eagle-topk {topk} "
            "take --speckv-candidate-shapes"
        )
    if (steps is None) != (tokens is None) or (steps is None and shapes is None and not named):
        raise ConfigError(
            f"--speculative-eagle-topk {topk} needs --speculative-num-steps and "
            "--speculative-num-draft-tokens beside it"
        )
    if config.artifact is not None:
        raise ConfigError(
            f"the artifact {config.artifact!r} knows chains; leave it out, or set "
            f"--speculative-eagle-topk to 1 instead of {topk}"
        )
    launch = Shape(steps, tokens) if steps is not None else (named or shapes or ())[-1]
    if launch.num_steps < 1:
        raise ConfigError(
            f"--speculative-num-steps {launch.num_steps} drafts no tree; set it to 1 or more (a "
            "server with trees can be told to draft nothing: --speckv-policy static:0)"
        )
    shapes = tuple({*(shapes or default_shapes(launch, topk)), *named, launch})
    for shape in shapes:
        if not shape.fits(topk):
            raise ConfigError(
                f"shape {shape} cannot be: {shape.num_steps} steps at topk {topk} make trees of "
                f"{shape.num_steps + 1} to {topk + (shape.num_steps - 1) * topk**2 + 1} tokens"
            )
    config = replace(config, candidate_shapes=shapes)
    return config, config.tier_of(launch)


def with_launch_steps(config: SpecKVConfig, asked: int | None) -> tuple[SpecKVConfig, int]:
    """The depth to start on, joined to the candidates where the user named it."""
    if asked is not None:
        if not 0 <= asked <= MAX_NUM_STEPS:
            raise ConfigError(
                f"--speculative-num-steps {asked} is not in 0..{MAX_NUM_STEPS}; choose another"
            )
        steps = joined(config.candidate_steps, asked)
        return SpecKVConfig.from_dict({**config.to_dict(), "candidate_steps": steps}), asked
    pinned = static_steps(config.policy)
    if pinned is not None:
        return config, pinned
    drafting = [step for step in config.candidate_steps if step > 0] or [0]
    return config, min(drafting, key=lambda step: abs(step - DEFAULT_NUM_STEPS))


def unsupported_reason(original: Callable[..., str | None], server_args: Any) -> str | None:
    """AROUND ``adaptive_unsupported_reason``: where SpecKV accepted, STANDALONE is welcome."""
    return None if is_active(server_args) else original(server_args)


def check_resolved(result: None, server_args: Any) -> None:
    """AFTER ``check_server_args``: the last moment before processes are spawned.

    Catches records that were resolved where this plugin was not loaded (``sgl.Runtime`` resolves
    in a parent that loads no plugins).
    """
    if is_active(server_args) or cpu.enabled():
        request_checks.hook_tokenizer()
    if is_active(server_args):
        detokenizer.hook()
        hook_warm_up()
        return
    try:
        stray = requested(server_args) is not None
    except ConfigError:
        stray = False
    if stray:
        raise ConfigError(
            "SpecKV was asked for but these arguments were resolved without its plugin; "
            "use sglang_speckv.Runtime / sglang_speckv.Engine, or call "
            "sglang.srt.plugins.load_plugins() first"
        )


def hook_warm_up() -> None:
    """Let the HTTP server profile before it is ready. Hooking imports the server, which only a
    launcher should pay for, so this is done as late as can be."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from sglang_speckv.srt.profile_load import warm_up

    if compat.WARM_UP.path not in HookRegistry._patched:
        HookRegistry.register(compat.WARM_UP.path, warm_up, HookType.AROUND)
        HookRegistry.apply_hooks()
        compat.check_signatures([compat.WARM_UP])
        compat.check_applied([compat.WARM_UP])


def default_attention(
    original: Callable[..., str], server_args: Any, use_mla_backend: bool, model_config: Any
) -> str:
    """AROUND ``get_default_attn_backend``: FlashInfer where user and models leave it open.

    Its rounds wait for the verify result on the host in stock SGLang too, so that the coming
    round's signal and a STANDALONE draft that sleeps cost little there. Which backend serves faster
    with SpecKV has not been measured.
    """
    choice = original(server_args, use_mla_backend, model_config)
    from sglang.srt.arg_groups.model_override_base import record_of
    from sglang.srt.arg_groups.overrides import ResolvedView, ResolvingConfig, resolving_view

    record = (
        record_of(server_args)
        if isinstance(server_args, ResolvedView | ResolvingConfig)
        else server_args
    )
    cfg = resolving_view(record)
    if choice == "flashinfer" or cfg.device != "cuda" or carrier_is_absent(record):
        return choice
    if use_mla_backend or not flashinfer_fits(model_config):
        return choice
    draft = following_draft(record)
    if draft is not None and not flashinfer_fits(draft):
        return choice
    _tell_replaced(choice)
    return "flashinfer"


@functools.cache  # SGLang asks more than once
def _tell_replaced(choice: str) -> None:
    logger.info("SpecKV: attention backend flashinfer (SGLang's default here is %s)", choice)


def carrier_is_absent(record: Any) -> bool:
    try:
        return requested(record) is None
    except ConfigError:
        return True  # resolve() refuses it with its sentence


def following_draft(record: Any) -> Any:
    """The config of a draft whose attention follows the target's, None where it has a backend of
    its own or cannot be read, which is refused later with its sentence."""
    from sglang.srt.arg_groups.overrides import resolving_view

    if resolving_view(record).speculative_draft_attention_backend:
        return None
    try:
        return draft_model_config(record)
    except Exception:  # whatever is wrong with it, SGLang or check_draft() says it
        return None


def flashinfer_fits(model_config: Any) -> bool:
    """FlashInfer has no attention sinks and knows three head sizes. Past a sliding window SGLang's
    verification by FlashInfer reads the wrong keys (SGLang PR #39287)."""
    from sglang.srt.runtime_context import get_platform

    text = model_config.hf_text_config
    windows = (getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return (
        bool(get_platform().has_flashinfer)
        and not model_config.has_attention_sinks
        and model_config.head_dim in (64, 128, 256)
        and not any(windows)
    )
