"""What a user can set, in one frozen record, and the error that names what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

DEFAULT_CANDIDATE_STEPS = (0, 1, 2, 3, 5, 7)
MAX_NUM_STEPS = 16
DEFAULT_PROFILE_SECONDS = 20.0
MAX_PROFILE_SECONDS = 600.0
SIGNAL_LAGS = ("auto", "late", "0")
STOPS = ("auto", "off")
WIDTHS = ("auto", "off")
EXACT = ("on", "off")
SWITCHES = (",stop=off", ",width=off", ",stop=off,width=off")
"""Behind a policy's name where two ways of it are compared: its rounds do not stop by what their
drafts say, or do not verify less of a request than of another."""
POLICY_NAMES = (
    "throughput",
    "ema",
    "throughput_aware",
    "confidence",
    "paper",
    "paper:throughput",
    "static:K",
)
_NUMBER = r"[0-9]{1,4}"
"""As a user writes one: int() would also take "+1", "1_0" and other scripts' digits."""
_STATIC = re.compile(rf"static:({_NUMBER})")
_STEPS = re.compile(rf" *{_NUMBER} *(, *{_NUMBER} *)*")
_SHAPE = re.compile(rf" *({_NUMBER})(?:x({_NUMBER}))? *")
MAX_TREE_TOKENS = 256
MAX_LEVELS = 64
"""Of all shapes together: what is learned of a round takes time with the square of it and more."""


class ConfigError(ValueError):
    """A setting that cannot be served: one sentence with the bad value and the remedy.

    Becomes exit code 2 at the command line's edge and stays a ``ValueError`` in Python. The bad
    value may come from anyone's file, so what cannot be printed is written as its escape: the
    sentence stays one line and steers no terminal.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in sentence))


def parse_steps(text: str) -> tuple[int, ...]:
    """``"0,1,3"`` -> ``(0, 1, 3)``; raises :class:`ConfigError` on anything else."""
    if not _STEPS.fullmatch(text):
        raise ConfigError(
            f"candidate steps {text!r} are not comma-separated integers, such as 0,1,3,5"
        )
    return tuple(int(part) for part in text.split(","))


class Shape(NamedTuple):
    """What a round drafts and verifies of each request, in SGLang's own numbers: steps of drafting
    and tokens that are verified, the newest one counted. A chain of k drafts is (k, k + 1)."""

    num_steps: int
    num_draft_tokens: int

    @classmethod
    def of(cls, settings: Any) -> Shape:
        """That of an object that has SGLang's two numbers: a runtime state, its settings."""
        return cls(settings.speculative_num_steps, settings.speculative_num_draft_tokens)

    def __str__(self) -> str:
        return f"{self.num_steps}x{self.num_draft_tokens}" if self.num_steps else "0"

    @property
    def drafts(self) -> int:
        """How many are verified."""
        return self.num_draft_tokens - 1

    def fits(self, topk: int) -> bool:
        """Whether a tree of so many children of a node has as many nodes in so many steps."""
        if self.num_steps == 0:
            return self.drafts == 0
        return self.num_steps <= self.drafts <= topk + (self.num_steps - 1) * topk**2


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """``"0,1x2,3x8"`` -> the shapes (0, 1), (1, 2) and (3, 8); raises :class:`ConfigError` on
    anything else."""
    return checked_shapes(text.split(","))


def checked_shapes(texts: Any) -> tuple[Shape, ...]:
    """Each once, those that verify least first; no drafts are always among them."""
    if not isinstance(texts, list | tuple) or not texts:
        raise ConfigError(f"candidate shapes {texts!r} are no list such as 0,1x2,3x8")
    shapes = {Shape(0, 1), *map(_shape, texts)}
    levels = sum(shape.num_steps for shape in shapes)
    if levels > MAX_LEVELS:
        raise ConfigError(
            f"candidate shapes {', '.join(texts)} have {levels} steps together, more than "
            f"{MAX_LEVELS}; leave some out"
        )
    return tuple(sorted(shapes, key=lambda shape: (shape.num_draft_tokens, shape)))


def _shape(text: Any) -> Shape:
    match = _SHAPE.fullmatch(text) if isinstance(text, str) else None
    if match is None or (match[2] is None) != (int(match[1]) == 0):
        raise ConfigError(
            f"candidate shape {text!r} is neither STEPSxTOKENS, such as 3x8, nor 0 for no drafts"
        )
    shape = Shape(int(match[1]), int(match[2] or 1))
    if shape.num_steps > MAX_NUM_STEPS or shape.num_draft_tokens > MAX_TREE_TOKENS:
        raise ConfigError(
            f"candidate shape {text!r} has more than {MAX_NUM_STEPS} steps or more than "
            f"{MAX_TREE_TOKENS} tokens; choose a smaller one"
        )
    return shape


def default_shapes(launch: Shape, topk: int) -> list[Shape]:
    """Beside the launch shape: one draft; half of the steps with a quarter and with half of the
    tokens; all steps with half of the tokens. Those that cannot be are left out."""
    steps, tokens = launch
    half = -(-steps // 2)
    wanted = [(1, 2), (half, tokens // 4), (half, tokens // 2), (steps, tokens // 2)]
    return [shape for shape in (Shape(*each) for each in wanted) if shape.fits(topk)]


def names_shape(policy: str) -> bool:
    """Whether it is ``static:SxT``."""
    kind, _, shape = policy.partition(":")
    return kind == "static" and "x" in shape and _SHAPE.fullmatch(shape) is not None


def static_steps(policy: str) -> int | None:
    """The K of ``static:K``, or None where ``policy`` is another one."""
    match = _STATIC.fullmatch(policy)
    return int(match.group(1)) if match else None


def without_switches(policy: str) -> tuple[str, bool, bool]:
    """A policy's name without one of :data:`SWITCHES`, whether its rounds may stop, and whether
    they may verify a width per request."""
    off = next((switches for switches in reversed(SWITCHES) if policy.endswith(switches)), "")
    return policy.removesuffix(off), "stop=off" not in off, "width=off" not in off


def joined(steps: tuple[int, ...], extra: int | None) -> tuple[int, ...]:
    """``steps`` with ``extra`` among them, ascending."""
    return steps if extra is None else tuple(sorted({*steps, extra}))


@dataclass(frozen=True)
class SpecKVConfig:
    """Settings of the plugin; travels to every process under the ``"speckv"`` key of the
    ``--speculative-adaptive-config`` JSON.

    ``candidate_steps`` are the depths that are built at start-up, ascending; 0 is "do not draft".
    With trees (``--speculative-eagle-topk`` above 1) ``candidate_shapes`` are built in their place.
    ``ema_config`` holds the user's own batch-size slots in SGLang's adaptive-config form, for the
    ``ema`` policy; None means SGLang's defaults. ``signal_lag``: see
    :mod:`sglang_speckv.srt.lag`. ``trace`` is a folder for per-round records, ``artifact`` a file
    that `speckv train` made, or a folder of such files. ``profile_seconds`` bounds the rounds that
    are timed before serving; 0 learns while serving. ``stop``, ``width``: see
    :mod:`sglang_speckv.srt.in_round`; ``exact``: see :mod:`sglang_speckv.srt.exact`;
    ``max_context``: :mod:`sglang_speckv.srt.bounds`.
    """

    policy: str = "throughput"
    candidate_steps: tuple[int, ...] = DEFAULT_CANDIDATE_STEPS
    ema_config: Mapping[str, Any] | None = None
    signal_lag: str = "auto"
    trace: str | None = None
    artifact: str | None = None
    profile_seconds: float = DEFAULT_PROFILE_SECONDS
    stop: str = "auto"
    width: str = "auto"
    exact: str = "on"
    max_context: int | None = None
    candidate_shapes: tuple[Shape, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "candidate_steps", _checked_steps(self.candidate_steps))
        if self.candidate_shapes is None:
            _check_policy(self.policy, self.candidate_steps)
        else:
            shapes = checked_shapes(list(map(str, self.candidate_shapes)))
            object.__setattr__(self, "candidate_shapes", shapes)
            _check_tree_policy(self.policy, shapes)
        if self.ema_config is not None and not isinstance(self.ema_config, Mapping):
            raise ConfigError(f"ema_config {self.ema_config!r} is not a JSON object")
        if self.signal_lag not in SIGNAL_LAGS:
            raise ConfigError(
                f"signal lag {self.signal_lag!r} is not one of {', '.join(SIGNAL_LAGS)}"
            )
        for name, value, values in (
            ("stop", self.stop, STOPS),
            ("width", self.width, WIDTHS),
            ("exact", self.exact, EXACT),
        ):
            if value not in values:
                raise ConfigError(f"{name} {value!r} is not one of {', '.join(values)}")
        for name, path in (("trace", self.trace), ("artifact", self.artifact)):
            if path is not None and (not isinstance(path, str) or not path):
                raise ConfigError(f"{name} {path!r} is not a path")
        _check_profile_seconds(self.profile_seconds)
        most = self.max_context
        if most is not None and (type(most) is not int or most < 1):
            raise ConfigError(
                f"max context {most!r} is not a number of tokens from 1 on; "
                "leave it out for no limit"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SpecKVConfig:
        """Build from JSON; an unknown key is refused by name.  The step of ``static:K`` joins the
        default candidates; candidates that were given have to hold it."""
        if not isinstance(values, Mapping):
            raise ConfigError(f'the "speckv" settings are {values!r}, not a JSON object')
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ConfigError(
                f"unknown speckv setting {unknown[0]!r}; the settings are {', '.join(known)}"
            )
        steps = joined(DEFAULT_CANDIDATE_STEPS, static_steps(str(values.get("policy"))))
        shapes = values.get("candidate_shapes")
        if shapes is not None:
            values = {**values, "candidate_shapes": checked_shapes(shapes)}
        return cls(**{"candidate_steps": steps, **values})

    def to_dict(self) -> dict[str, Any]:
        shapes = self.candidate_shapes and list(map(str, self.candidate_shapes))
        steps = list(self.candidate_steps)
        return {**asdict(self), "candidate_steps": steps, "candidate_shapes": shapes}

    @property
    def tiers(self) -> tuple[int, ...]:
        """What a policy chooses from: depths, or the places of the shapes among the candidates."""
        if self.candidate_shapes is None:
            return self.candidate_steps
        return tuple(range(len(self.candidate_shapes)))

    def shape_of(self, tier: int) -> Shape:
        if self.candidate_shapes is None:
            return Shape(tier, tier + 1)
        return self.candidate_shapes[tier]

    @property
    def trees(self) -> bool:
        """Whether trees are drafted, not chains."""
        return self.candidate_shapes is not None

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Those of the tiers."""
        return tuple(map(self.shape_of, self.tiers))

    def tier_of(self, shape: Shape) -> int:
        if self.candidate_shapes is None:
            return shape.num_steps
        return self.candidate_shapes.index(shape)

    def name_of(self, tier: int) -> str:
        """As a user writes it: ``3``, or ``3x8`` of a tree."""
        return str(tier if self.candidate_shapes is None else self.candidate_shapes[tier])

    @property
    def pinned_tier(self) -> int | None:
        """That of a policy ``static:K`` or ``static:SxT``; None of another policy."""
        if self.candidate_shapes is None:
            return static_steps(self.policy)
        return pinned_shape(self.policy, self.candidate_shapes)


def pinned_shape(policy: str, shapes: tuple[Shape, ...]) -> int | None:
    """The place of the shape that ``static:SxT`` names; None where it is not among ``shapes``."""
    kind, _, shape = policy.partition(":")
    names = list(map(str, shapes))
    return names.index(shape) if kind == "static" and shape in names else None


def _check_tree_policy(policy: Any, shapes: tuple[Shape, ...]) -> None:
    if policy != "throughput" and pinned_shape(str(policy), shapes) is None:
        raise ConfigError(
            f"policy {policy!r} cannot choose among trees; with --speculative-eagle-topk above 1 "
            f"take throughput or one of {', '.join(f'static:{shape}' for shape in shapes)}"
        )


def _checked_steps(steps: Any) -> tuple[int, ...]:
    if not isinstance(steps, list | tuple) or not steps:
        raise ConfigError(f"candidate steps {steps!r} are not a non-empty list of integers")
    for step in steps:
        if type(step) is not int or not 0 <= step <= MAX_NUM_STEPS:
            raise ConfigError(f"candidate step {step!r} is not an integer in 0..{MAX_NUM_STEPS}")
    return tuple(sorted(set(steps)))


def _check_profile_seconds(seconds: Any) -> None:
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not number or not 0 <= seconds <= MAX_PROFILE_SECONDS:  # NaN fails both comparisons
        raise ConfigError(
            f"profile seconds {seconds!r} is not a number in 0..{MAX_PROFILE_SECONDS:.0f}; "
            "0 learns while serving"
        )


def _check_policy(policy: Any, candidate_steps: tuple[int, ...]) -> None:
    if isinstance(policy, str) and names_shape(policy):
        return  # of trees, once it is known that they are drafted
    if not isinstance(policy, str) or (
        policy not in POLICY_NAMES[:-1] and static_steps(policy) is None
    ):
        raise ConfigError(f"unknown policy {policy!r}; choose from {', '.join(POLICY_NAMES)}")
    pinned = static_steps(policy)
    if pinned is not None and pinned not in candidate_steps:
        raise ConfigError(
            f"policy {policy!r} pins a step that is not a candidate; add {pinned} to the "
            f"candidate steps {','.join(map(str, candidate_steps))}"
        )
