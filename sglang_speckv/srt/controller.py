"""The adapter between SGLang's ``AdaptiveSpecPolicy`` and a :class:`StepPolicy`.

Whatever a policy does wrong becomes the launch depth for that round, a count and one log line.
Where what a policy follows from can no longer be trusted, the launch depth is held.
"""

from __future__ import annotations

import logging
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from sglang_speckv.config import POLICY_NAMES, SWITCHES, Shape, SpecKVConfig, without_switches
from sglang_speckv.offline.artifact import load_artifact
from sglang_speckv.policy import Prior, create_policy
from sglang_speckv.policy.base import Batch, Decision, Round, StepPolicy
from sglang_speckv.policy.cost import TimedRound
from sglang_speckv.policy.ema import EmaPolicy
from sglang_speckv.policy.stopping import StopRule
from sglang_speckv.policy.throughput import ThroughputPolicy
from sglang_speckv.srt.counters import Counters
from sglang_speckv.srt.fit import DraftFit
from sglang_speckv.srt.fuse import Fuse
from sglang_speckv.srt.lag import SETTLE_ROUNDS, SignalLag
from sglang_speckv.srt.policy_checks import checked_decision, checked_widths
from sglang_speckv.srt.profile import ProfileRun, summary
from sglang_speckv.srt.trace import TraceWriter

logger = logging.getLogger(__name__)
SECOND = "#2"
"""Behind a policy's name, last: the same policy once more, which learns for itself. A comparison of
a policy with itself measures the noise."""


class EnginePolicy:
    """Implements SGLang's ``AdaptiveSpecPolicy`` over the configured step policy.

    Policies can be switched while serving; each keeps what it learned for when it is asked again.
    """

    def __init__(self, config: SpecKVConfig, launch_steps: int, overlap: bool = False) -> None:
        self.candidate_steps = list(config.tiers)
        self.launch_steps = launch_steps
        self.num_steps = launch_steps
        self.pinned: int | None = None
        self.held = False
        """The launch depth is served until a policy is selected again."""
        self.fuse = Fuse(self.hold)
        self.kept_awake = False
        """The draft reads every token, whatever the policy says of it."""
        self.short_of_kv = False
        """The coming round has KV memory for the shallowest depth alone."""
        self.undrafted = False
        """No request of the coming batch takes drafts."""
        self.most_steps: int | None = None
        """How deep the coming batch's requests let the round be; None for any depth."""
        self.coming: Batch | None = None
        """What the worker knows of the batch that :meth:`get_steps_for_batch` is about to see."""
        self.decision: Decision | None = None
        """The newest one; None where a pinned depth was served instead."""
        self.no_stops: str | None = "the engine has not started"
        """Why rounds do not stop by what their own drafts say; None where they may."""
        self.no_widths: str | None = self.no_stops
        """Why they do not verify a width per request."""
        self._on_device = False
        self.draft_sleeps = False
        """Whether the draft can sleep at depth 0 at all."""
        self.counters = Counters(config)
        self._fit = DraftFit(self.counters)
        lag = config.signal_lag
        if config.trees and lag == "auto":
            lag = "late"  # of trees it is not learned what the coming round's signal is worth
        self.lag = SignalLag(lag, overlap)
        self.trace: TraceWriter | None = None
        self._profile: ProfileRun | None = None
        self._profile_began = False
        self._profiled: list[TimedRound] = []
        self._config = config
        self._prior = _prior(config.artifact)
        self._policies: dict[str, StepPolicy] = {}
        self._cuda_graph_bs: list[int] | None = None
        self._warned = False
        self._observed = 0
        self.select(config.policy)

    # -- SGLang's protocol

    def set_cuda_graph_bs(self, cuda_graph_bs: list[int] | None) -> None:
        self._cuda_graph_bs = sorted(cuda_graph_bs) if cuda_graph_bs else None
        for policy in self._policies.values():
            self._tell_graph_sizes(policy)

    def _tell_graph_sizes(self, policy: StepPolicy) -> None:
        """A round takes as long as one of the batch size that its graph was captured for."""
        if isinstance(policy, EmaPolicy | ThroughputPolicy):
            policy.set_cuda_graph_bs(self._cuda_graph_bs)

    def cuda_graph_bs_for_step(self, step: int) -> list[int] | None:
        """Every tier may be chosen at every batch size, so every tier captures them all."""
        return self._cuda_graph_bs

    def get_steps_for_batch(self, batch_size: int) -> int:
        coming = self.coming
        if coming is None or coming.size != batch_size:
            coming = Batch(batch_size)
        self.decision = None
        if self.short_of_kv:  # whatever else was asked for
            return self._shallowest("kv")
        num_steps = self.launch_steps
        with self.fuse.guard("choosing a depth"):
            num_steps = self._decide(coming)
        self.num_steps = num_steps
        return num_steps

    def on_verify_complete(
        self, num_correct_drafts_per_req: list[int], batch_size: int
    ) -> int | None:
        """Unused: the worker hands whole rounds to :meth:`observe`, and decisions are taken when
        a round starts."""
        return None

    # -- the worker's side

    @property
    def awake(self) -> bool:
        """Whether the draft is to read the coming round's tokens if it is one of depth 0."""
        return self.kept_awake or (self.decision is not None and self.decision.awake)

    @property
    def digest(self) -> int:
        """24 bits, exact in a float, that differ between ranks whose newest decisions differ or
        follow from different beliefs."""
        decision = self.decision
        expected = rate = None
        if decision is not None:
            expected, rate = decision.expected_accept_length, decision.tokens_per_s
        beliefs = struct.pack("<idd", self.num_steps, expected or 0.0, rate or 0.0)
        return zlib.crc32(beliefs) & 0xFFFFFF

    @property
    def watches(self) -> bool:
        """Whether the round's own drafts may change it."""
        return self.decision is not None and self.decision.watched and not self.held

    def asks_after(self, drafts: int) -> bool:
        """Whether :meth:`goes_on` is to be asked after so many drafts of the round."""
        if not self.watches:
            return False
        assert self.decision is not None
        return drafts < self.decision.num_steps and drafts in self.candidate_steps

    def goes_on(self, probs: np.ndarray) -> bool:
        """Whether the round goes on to the next tier; ``probs`` [size, drafts] of those made."""
        assert isinstance(self.policy, ThroughputPolicy)
        started = time.perf_counter()
        try:
            going = bool(self.policy.goes_on(probs))
        except Exception as error:
            self._fall_back("stop a round", error)
            return probs.shape[1] < self.launch_steps
        self.counters.decision_seconds += time.perf_counter() - started
        return going

    def stop_rule(self) -> StopRule | None:
        """By which the device stops the round that was decided last; None: it does not."""
        if not self.watches:
            return None
        assert self.decision is not None and isinstance(self.policy, ThroughputPolicy)
        if self.decision.num_steps < 2:
            return None
        started = time.perf_counter()
        try:
            rule = self.policy.stop_rule()
        except Exception as error:
            self._fall_back("stop a round", error)
            return None
        self.counters.decision_seconds += time.perf_counter() - started
        return rule

    def widths(self, probs: np.ndarray) -> np.ndarray | None:
        """How many of each request's drafts are to be verified, ``probs`` [size, drafts] of those
        made; None for all of them."""
        assert isinstance(self.policy, ThroughputPolicy)
        started = time.perf_counter()
        try:
            widths = checked_widths(self.policy.widths(probs), probs)
        except Exception as error:
            self._fall_back("choose widths", error)
            return None
        self.counters.decision_seconds += time.perf_counter() - started
        return widths

    def hold(self) -> None:
        """Serve the launch depth from now on; :meth:`select` releases."""
        if not self.held:
            logger.error(
                "SpecKV: serving %s steps until a policy is selected again: a part of it failed, "
                "or the ranks no longer decide alike",
                self.name_of(self.launch_steps),
            )
        self.held = True
        self._profile = None

    def observe(self, outcome: Round, host_waited: bool = False) -> None:
        """Learn from a finished round; ``outcome`` has live requests only. ``host_waited``: for
        the signals of this round's launch, before the next one."""
        if self._profile is not None:
            self._profile.observe(outcome, host_waited)
            if self._profile.ended:
                self.finish_profile()
            return
        self.counters.count(outcome)
        self._fit.round_done()
        if self.pinned is not None:
            return
        try:
            self.policy.observe(outcome)
            self._settle_lag(outcome)
        except Exception as error:
            self._fall_back("observe", error)

    def _settle_lag(self, outcome: Round) -> None:
        """Now and then: whether the host is to wait for signals. Follows from what all ranks share,
        as decisions do."""
        self._observed += 1
        if not self.lag.open or not isinstance(self.policy, ThroughputPolicy):
            return
        if self._observed % SETTLE_ROUNDS == 0:
            self.lag.settle(outcome.batch_size, self.policy.worth_of_fresh_signals())
            self.policy.use_late_signals(not self.lag.waits)

    def select(self, name: str) -> None:
        """Switch to the policy called ``name``; what it learned before is kept.

        Raises:
            ConfigError: see :meth:`prepare`.
        """
        self.prepare(name)
        self.policy = self._policies[name]
        self.policy_name = name
        self.held = False

    def prepare(self, name: str) -> None:
        """Build the policy called ``name`` if it is new.

        Raises:
            ConfigError: unknown name, or one that these candidate steps cannot serve.
        """
        if name not in self._policies:
            self._policies[name] = create_policy(
                without_switches(name.removesuffix(SECOND))[0],
                self.candidate_steps,
                self.launch_steps,
                adaptive_config=self._config.ema_config,
                prior=self._prior,
                candidate_shapes=self._config.candidate_shapes,
            )
            self._tell_graph_sizes(self._policies[name])
            self._tell_profile(self._policies[name])
            self._tell_sleep(self._policies[name])
            self._tell_lag(self._policies[name])
            self._tell_watch(name)

    @property
    def profiling(self) -> bool:
        return self._profile is not None

    @property
    def may_profile(self) -> bool:
        """Once, where a start-up profile was asked for: later it would take the depth away from
        the requests that are served."""
        asked = self._config.profile_seconds > 0 and len(self.candidate_steps) > 1
        return asked and not self._profile_began

    def start_profile(self) -> None:
        """Walk through the tiers instead of serving the policy; see :mod:`srt.profile`."""
        self._profile_began = True
        self._profile = ProfileRun(self.candidate_steps, self.lag, self.draft_sleeps)

    def finish_profile(self) -> None:
        """Hand what the rounds took to every policy that learns from it."""
        if self._profile is None:
            return
        self._profiled, self._profile = self._profile.finish(), None
        for policy in self._policies.values():
            self._tell_profile(policy)

    def _tell_profile(self, policy: StepPolicy) -> None:
        learn = getattr(policy, "profiled", None)
        if learn is None or not self._profiled:
            return
        try:
            learn(self._profiled)
        except Exception as error:
            self._fall_back("learn its profile", error)

    def selectable(self) -> list[str]:
        """Names that :meth:`select` takes."""
        pinned = [f"static:{self.name_of(tier)}" for tier in self.candidate_steps]
        if self._config.trees:
            return ["throughput", *pinned]
        trained = self._prior is not None and self._prior.mlp is not None
        names = [name for name in POLICY_NAMES[:-1] if trained or not name.startswith("paper")]
        without = [f"throughput{switches}" for switches in SWITCHES]
        return [*names, *without, *pinned]

    def shape_of(self, tier: int) -> Shape:
        return self._config.shape_of(tier)

    def name_of(self, tier: int) -> str:
        return self._config.name_of(tier)

    def keep_awake(self, on: bool) -> None:
        """Let the draft read every token, or let it sleep where the policy has no need of it."""
        self.kept_awake = on
        for policy in self._policies.values():
            self._tell_sleep(policy)

    def _tell_sleep(self, policy: StepPolicy) -> None:
        """A policy that prices sleep has to know where there is none."""
        if isinstance(policy, ThroughputPolicy):
            policy.allow_sleep(not self.kept_awake)

    def watch_rounds(
        self, no_stops: str | None, no_widths: str | None, on_device: bool = False
    ) -> None:
        """Say why rounds do not stop by what their own drafts say and do not verify a width per
        request, or None: they may. ``on_device``: by :meth:`stop_rule`."""
        self.no_stops, self.no_widths, self._on_device = no_stops, no_widths, on_device
        for name in self._policies:
            self._tell_watch(name)

    def _tell_watch(self, name: str) -> None:
        policy = self._policies[name]
        if isinstance(policy, ThroughputPolicy):
            _, stops, widths = without_switches(name.removesuffix(SECOND))
            stops, widths = stops and self.no_stops is None, widths and self.no_widths is None
            policy.watch(stops, widths, self._on_device)

    def _tell_lag(self, policy: StepPolicy) -> None:
        if self.lag.open and isinstance(policy, ThroughputPolicy):
            policy.use_late_signals(not self.lag.waits)

    def pin(self, num_steps: int | None) -> None:
        """Hold one depth whatever the policy says; None releases."""
        assert num_steps is None or num_steps in self.candidate_steps
        self.pinned = num_steps

    def snapshot(self) -> dict[str, Any]:
        """What ``/server_info`` shows: JSON builtins."""
        shapes = self._config.candidate_shapes
        trees = shapes and {
            "candidate_shapes": list(map(str, shapes)),
            "launch_shape": self.name_of(self.launch_steps),
            "shape": self.name_of(self.num_steps),
        }
        return {
            "active": True,
            "policy": self.policy_name,
            "policies": self.selectable(),
            "pinned": self.pinned,
            "held": self.held,
            "draft_sleeps": self.draft_sleeps,
            "kept_awake": self.kept_awake,
            "candidate_steps": self.candidate_steps,
            "launch_steps": self.launch_steps,
            "exact": self._config.exact,
            "max_context": self._config.max_context,
            "stops": on_or_off(self.no_stops),
            "widths": on_or_off(self.no_widths),
            "num_steps": self.num_steps,
            **(trees or {}),
            "signal_lag": self.lag.describe(),
            **self.counters.snapshot(),
            "failures": dict(self.fuse.failures),
            "trace": self.trace.snapshot() if self.trace is not None else None,
            "profile": summary(self._profiled),
            "policy_state": self.policy.snapshot(),
            "decision": self._explanation(),
        }

    def _explanation(self) -> dict[str, Any]:
        """The newest decision of a policy that can say why."""
        explain = getattr(self.policy, "explain", dict)
        told: dict[str, Any] = explain()
        return told

    def _decide(self, batch: Batch) -> int:
        if self._profile is not None:
            self.decision = self._profile.decide(batch)
            return self.decision.num_steps
        if self.pinned is not None:
            return self.pinned
        if self.undrafted:
            return self._shallowest("exact")
        if self.held:
            return self._launch_depth()
        if self.most_steps == 0:  # the policy is not to learn of a depth that it cannot have
            return self._shallowest("bounded")
        started = time.perf_counter()
        try:
            decision = checked_decision(self.policy.decide(batch), self.candidate_steps)
        except Exception as error:
            self._fall_back("decide", error)
            return self._launch_depth()
        self.counters.decided(time.perf_counter() - started)
        self.decision = self._bounded(decision)
        return self.decision.num_steps

    def _bounded(self, decision: Decision) -> Decision:
        """No deeper than the coming round's requests allow."""
        most = self.most_steps
        if most is None or self.shape_of(decision.num_steps).num_steps <= most:
            return decision
        smaller = [tier for tier in self.candidate_steps if tier < decision.num_steps]
        allowed = [tier for tier in smaller if self.shape_of(tier).num_steps <= most]
        return Decision(max(allowed, default=self.candidate_steps[0]), "bounded")

    def _shallowest(self, reason: str) -> int:
        self.decision = Decision(self.candidate_steps[0], reason)
        self.num_steps = self.decision.num_steps
        return self.num_steps

    def _launch_depth(self) -> int:
        self.decision = Decision(self.launch_steps, "fallback")
        return self.launch_steps

    def _fall_back(self, what: str, error: Exception) -> None:
        self.counters.fallbacks += 1
        if not self._warned:
            self._warned = True
            logger.error(
                "SpecKV: policy %s failed to %s (%r); serving %s steps instead, further failures "
                "are only counted in /server_info",
                self.policy_name,
                what,
                error,
                self.name_of(self.launch_steps),
            )


def on_or_off(reason: str | None) -> str:
    return "on" if reason is None else f"off: {reason}"


def _prior(artifact: str | None) -> Prior | None:
    return load_artifact(Path(artifact)).prior if artifact is not None else None
