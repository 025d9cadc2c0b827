"""The ways to serve that are compared, by name, and the servers that they need.

========================  =================================================================
``none``                  the target alone, scheduled like the servers that draft
``none:overlap``          the target alone under SGLang's overlap scheduler, where ``none`` is not
``default``               SGLang with the algorithm and no step flags (a tree for Llama)
``ema``                   SGLang's own adaptive rule (EAGLE family only)
``fresh:K``               SGLang with K steps on a server of its own, without SpecKV
``static:K``              K steps, a policy of the SpecKV server
``tree:SxKxT``            S steps, topk K and T verified tokens, a policy of a SpecKV server of
                          that topk
``speckv:topkK``          SpecKV over the shapes of that server
``speckv[:POLICY]``       SpecKV, ``throughput`` unless another policy is named;
                          ``,stop=off``, ``,width=off`` or both behind it: without that part
``url:NAME=http://...``   a running server with the OpenAI chat interface
========================  =================================================================

``ARM#2`` is the same arm a second time: how far apart the two come out is the noise. All
``static:K`` and ``speckv`` arms share one server and are switched while it runs; ``speckv#2``
learns for itself. Each draft is compared apart, beside servers of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sglang_speckv.config import (
    DEFAULT_CANDIDATE_STEPS,
    MAX_NUM_STEPS,
    MAX_TREE_TOKENS,
    SWITCHES,
    ConfigError,
    Shape,
    default_shapes,
)

NO_DRAFT = "no draft"
"""Stands for the draft where none of the arms has one."""
NO_DRAFTING = ("none", "none:overlap")
RESTATED = "speckv:ema"
"""SGLang's own rule as this project restates it, for drafts that SGLang has no rule for."""
DEFAULT_POLICY = "throughput"
_ARM = re.compile(
    r"(?:none(?::overlap)?|default|ema|(?P<fixed>static|fresh):(?P<steps>\d{1,3})"
    r"|tree:(?P<tree>\d{1,3}x\d{1,2}x\d{1,3})|speckv:topk(?P<topk>\d{1,2})"
    rf"|speckv:throughput(?:{'|'.join(SWITCHES)})|speckv(?::[\w.:-]+)?)(?:#2)?\Z"
)
_URL = re.compile(r"url:(?P<name>[\w.-]+)=(?P<url>https?://\S+)\Z")


@dataclass(frozen=True)
class Draft:
    """A draft checkpoint under the name that the tables show. ``artifact`` is what SpecKV serves
    it with, if anything."""

    name: str
    path: str
    algorithm: str
    artifact: str | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        """Let a server draft with it."""
        return (
            *("--speculative-algorithm", self.algorithm),
            *("--speculative-draft-model-path", self.path),
        )


@dataclass(frozen=True)
class Arm:
    """One way to serve. ``policy`` is switched to before each of its blocks, if it has one."""

    draft: str
    name: str
    server: str
    policy: str | None = None

    @property
    def base(self) -> str:
        """The name without ``#2``."""
        return self.name.partition("#")[0]

    @property
    def is_fixed(self) -> bool:
        """Whether it is a fixed setting that a user could have launched instead; measured twice it
        counts once."""
        return self.name == self.base and not self.learns and not self.is_elsewhere

    @property
    def is_elsewhere(self) -> bool:
        """Whether it is a server that somebody else runs."""
        return self.name.startswith("url:")

    @property
    def learns(self) -> bool:
        """Whether what it served before changes what it does next."""
        return self.base.startswith(("speckv", "ema"))


@dataclass(frozen=True)
class ServerSpec:
    """A server by name: flags that make it different from the others, or where it runs."""

    name: str
    flags: tuple[str, ...] = ()
    url: str | None = None


@dataclass
class ServerFacts:
    """What is reported of a server beside its arms."""

    ready_s: float | None = None
    peak_memory: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def check_arm(name: str) -> None:
    """Raises :class:`ConfigError` where ``name`` is no arm."""
    match = _ARM.match(name)
    if match is None and _URL.match(name) is None:
        raise ConfigError(
            f"unknown arm {name!r}; arms are none, none:overlap, default, ema, static:K, fresh:K, "
            "tree:SxKxT, speckv[:POLICY], speckv:topkK, url:NAME=http://..., each with #2 for a "
            "second time"
        )
    if match and match["steps"] and int(match["steps"]) > MAX_NUM_STEPS:
        raise ConfigError(f"arm {name!r} drafts more than {MAX_NUM_STEPS} steps")
    if match and match["fixed"] == "fresh" and int(match["steps"]) == 0:
        raise ConfigError(f"arm {name!r} drafts nothing; without drafting the arm is none")
    if match and match["tree"]:
        topk, shape = _tree(name)
        large = shape.num_steps > MAX_NUM_STEPS or shape.num_draft_tokens > MAX_TREE_TOKENS
        if topk < 2 or large or not shape.fits(topk):
            raise ConfigError(
                f"arm {name!r} is no tree of STEPSxTOPKxTOKENS, such as tree:5x4x8: topk is above "
                f"1, steps are 1 to {MAX_NUM_STEPS}, tokens more than steps, at most "
                f"{MAX_TREE_TOKENS} and no more than such a tree has"
            )


def check_arms(names: Sequence[str]) -> None:
    """Raises :class:`ConfigError` where one is no arm, or no tree says which shapes another one is
    to choose from."""
    for name in names:
        check_arm(name)
    trees = {_tree(name)[0] for name in names if name.startswith("tree:")}
    for name in names:
        match = _ARM.match(name)
        if match and match["topk"] and int(match["topk"]) not in trees:
            topk = match["topk"]
            raise ConfigError(f"arm {name!r} needs a tree of its topk, such as tree:5x{topk}x8")


def _tree(name: str) -> tuple[int, Shape]:
    """The topk and the shape of an arm ``tree:SxKxT``."""
    steps, topk, tokens = map(int, _base(name).removeprefix("tree:").split("x"))
    return topk, Shape(steps, tokens)


def arms_for(draft: Draft | None, names: Sequence[str]) -> list[Arm]:
    """The arms called ``names`` beside one draft; those that cannot be with it are left out."""
    arms = []
    for name in names:
        if _needs_no_draft(name):
            arms.append(_draftless(name, draft.name if draft else NO_DRAFT))
        elif draft and (_base(name) != "ema" or has_ema(draft)):
            arms.append(_drafting(draft, name))
    return arms


def servers_for(draft: Draft | None, arms: Sequence[Arm], overlap: bool = True) -> list[ServerSpec]:
    """The servers of one draft's arms, each once, in their order. ``overlap``: servers that draft
    use SGLang's overlap scheduler here; where they do not, ``none`` must not either."""
    specs: dict[str, ServerSpec] = {}
    for arm in arms:
        if arm.server not in specs:
            match = _URL.match(arm.name)
            if match or arm.base == "none:overlap":
                flags: tuple[str, ...] = ()
            elif arm.base == "none":
                flags = () if overlap else ("--disable-overlap-schedule",)
            else:
                assert draft is not None, "an arm that drafts has a draft"
                flags = _flags(draft, arm, arms)
            specs[arm.server] = ServerSpec(arm.server, flags, match["url"] if match else None)
    return list(specs.values())


def needs_draft(names: Sequence[str]) -> bool:
    """Whether any of the arms drafts."""
    return not all(map(_needs_no_draft, names))


def has_ema(draft: Draft) -> bool:
    """SGLang's own adaptive rule exists for the EAGLE family only."""
    return draft.algorithm in ("EAGLE", "EAGLE3", "NEXTN")


def _base(name: str) -> str:
    return name.partition("#")[0]


def _needs_no_draft(name: str) -> bool:
    return _base(name) in NO_DRAFTING or name.startswith("url:")


def _draftless(name: str, draft: str) -> Arm:
    match = _URL.match(name)
    if match:
        return Arm(draft, name, f"url:{match['name']}")
    server = _base(name).replace(":", "-")
    return Arm(draft, name, server if draft == NO_DRAFT else f"{draft}-{server}")


def _drafting(draft: Draft, name: str) -> Arm:
    base = _base(name)
    if base.startswith("static:"):
        return Arm(draft.name, name, f"{draft.name}-speckv", base)
    if base.startswith("tree:"):
        topk, shape = _tree(name)
        return Arm(draft.name, name, f"{draft.name}-speckv-topk{topk}", f"static:{shape}")
    if base.startswith("speckv:topk"):
        policy = DEFAULT_POLICY + name.removeprefix(base)
        return Arm(draft.name, name, f"{draft.name}-speckv-{base.removeprefix('speckv:')}", policy)
    if base.startswith("speckv"):
        policy = (base.partition(":")[2] or DEFAULT_POLICY) + name.removeprefix(base)
        return Arm(draft.name, name, f"{draft.name}-speckv", policy)
    return Arm(draft.name, name, f"{draft.name}-{base.replace(':', '')}")


def _flags(draft: Draft, arm: Arm, arms: Sequence[Arm]) -> tuple[str, ...]:
    if "-speckv-topk" in arm.server:
        return (*draft.flags, "--speckv", *_tree_flags(arm.server, arms))
    if arm.policy is not None:
        artifact = (draft.artifact,) if draft.artifact else ()
        return (*draft.flags, "--speckv", *artifact, *_candidates(arm.server, arms))
    if arm.base == "ema":
        return (*draft.flags, "--speculative-adaptive")
    if arm.base.startswith("fresh:"):
        return (*draft.flags, *_step_flags(int(arm.base.partition(":")[2])))
    return draft.flags


def _candidates(server: str, arms: Sequence[Arm]) -> tuple[str, ...]:
    """Every depth that an arm holds must exist as a tier of the shared server."""
    policies = [arm.policy for arm in arms if arm.server == server and arm.policy]
    held = {int(policy.partition(":")[2]) for policy in policies if policy.startswith("static:")}
    if held <= set(DEFAULT_CANDIDATE_STEPS):
        return ()
    steps = sorted(held | set(DEFAULT_CANDIDATE_STEPS))
    return ("--speckv-candidate-steps", ",".join(map(str, steps)))


def _tree_flags(server: str, arms: Sequence[Arm]) -> tuple[str, ...]:
    """Launched with the largest tree that an arm holds; candidates are those of all of them, beside
    the ones that such a launch line has by itself."""
    trees = [_tree(arm.name) for arm in arms if arm.server == server and "tree:" in arm.name]
    topk, launch = max(trees, key=lambda tree: tree[1].num_draft_tokens)
    shapes = sorted({*default_shapes(launch, topk), *(shape for _, shape in trees)})
    return (
        *("--speculative-num-steps", str(launch.num_steps)),
        *("--speculative-eagle-topk", str(topk)),
        *("--speculative-num-draft-tokens", str(launch.num_draft_tokens)),
        *("--speckv-candidate-shapes", ",".join(map(str, shapes))),
    )


def _step_flags(steps: int) -> tuple[str, ...]:
    """A chain of ``steps``: SGLang wants all three, and they must agree."""
    return (
        *("--speculative-num-steps", str(steps)),
        *("--speculative-eagle-topk", "1"),
        *("--speculative-num-draft-tokens", str(steps + 1)),
    )
