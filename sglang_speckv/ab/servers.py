"""The servers of one group: brought up, checked, taken out when they fail, gone at the end.

A server must be what its arms claim and have the same limits as the others, or it is taken out.
Other settings that decide how fast a server can be are compared, and the report names those that
differ.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sglang_speckv.ab.arms import NO_DRAFTING, Arm, ServerFacts, ServerSpec
from sglang_speckv.ab.client import Client, ServerError
from sglang_speckv.ab.openai_client import OpenAIClient
from sglang_speckv.ab.options import Options
from sglang_speckv.ab.process import Server, last_lines, running
from sglang_speckv.config import ConfigError

LIMITS = ("effective_max_running_requests_per_dp", "max_total_tokens")
"""The first is what SGLang sets to 48 under speculation and not otherwise."""
COMPARED = (
    *LIMITS,
    *("chunked_prefill_size", "max_prefill_tokens", "dtype", "kv_cache_dtype", "page_size"),
    *("tp_size", "quantization", "schedule_policy", "disable_radix_cache", "attention_backend"),
    "disable_overlap_schedule",
)
SHOWN = (
    *("speculative_algorithm", "speculative_num_steps", "speculative_eagle_topk"),
    *("speculative_num_draft_tokens", "speculative_adaptive"),
)
_READY_TIMEOUT_S = 600.0


@dataclass
class Fleet:
    """``failures`` say in a few lines why a server is out; its arms end with it."""

    servers: dict[str, Server]
    clients: dict[str, Client | OpenAIClient] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    facts: dict[str, ServerFacts] = field(default_factory=dict)

    def fail(self, name: str, error: Exception) -> None:
        """Take a server out, with what it said last if it is ours."""
        self.clients.pop(name, None)
        self.failures[name] = str(error)
        server = self.servers.get(name)
        if server is None:
            return
        try:
            server.check_alive()
            tail = last_lines(server.log, 8)
            self.failures[name] += f"; the end of {server.log}:\n{tail}" if tail else ""
        except (ServerError, ConfigError) as reason:  # says more than a refused connection
            self.failures[name] = str(reason)
        server.stop()

    def note_memory(self) -> None:
        for name, server in self.servers.items():
            server.measure_memory()
            if server.peak_memory:
                self.facts[name].peak_memory = server.peak_memory

    async def prove(
        self,
        arms: Sequence[Arm],
        expected: dict[str, Any] | None = None,
        own_memory: bool = False,
    ) -> None:
        """Take out the servers that are not what their arms claim, or are set otherwise than
        ``expected``, the settings of the first one. With ``own_memory`` each may hold as much as it
        can."""
        for name, client in list(self.clients.items()):
            if isinstance(client, OpenAIClient):
                continue
            try:
                state = await client.internal_state()
            except ServerError as error:
                self.fail(name, error)
                continue
            settings = {key: state.get(key) for key in (*COMPARED, *SHOWN)}
            self.facts[name].settings = settings
            ours = [arm for arm in arms if arm.server == name]
            doubts = [doubt(arm, state) for arm in ours]
            expected = expected or settings
            limits = LIMITS[:1] if own_memory else LIMITS
            reason = next(filter(None, doubts), None) or _differs(settings, expected, limits)
            if reason:
                self.fail(name, ServerError(f"server {name} is not reported: {reason}"))


@asynccontextmanager
async def fleet_of(
    specs: Sequence[ServerSpec], flags: Sequence[str], logs: Path, options: Options
) -> AsyncIterator[Fleet]:
    """All servers up that come up, with a client for each; ours end on any exit."""
    servers = {
        spec.name: Server(spec.name, (*flags, *spec.flags), logs / f"{spec.name}.log")
        for spec in specs
        if spec.url is None
    }
    fleet = Fleet(servers, facts={spec.name: ServerFacts() for spec in specs})
    async with AsyncExitStack() as stack:
        failures = await stack.enter_async_context(
            running(list(servers.values()), _READY_TIMEOUT_S)
        )
        fleet.failures |= {name: str(error) for name, error in failures.items()}
        for spec in specs:
            if spec.name not in failures:
                await _connect(fleet, spec, stack, options)
        yield fleet


async def _connect(fleet: Fleet, spec: ServerSpec, stack: AsyncExitStack, options: Options) -> None:
    if spec.url is None:
        server = fleet.servers[spec.name]
        fleet.facts[spec.name].ready_s = server.ready_s
        ours = Client(spec.name, server.url, options.timeout_s)
        fleet.clients[spec.name] = await stack.enter_async_context(ours)
        return
    theirs = OpenAIClient(spec.name, spec.url, options.timeout_s, options.flush_urls)
    await stack.enter_async_context(theirs)
    try:
        await theirs.find_model()
        fleet.clients[spec.name] = theirs
    except ServerError as error:
        fleet.failures[spec.name] = str(error)


def doubt(arm: Arm, state: Mapping[str, Any]) -> str | None:
    """Why this server is not serving ``arm``; None where its ``/server_info`` proves it is."""
    algorithm = state.get("speculative_algorithm")
    speckv = state.get("speckv")
    active = isinstance(speckv, Mapping) and speckv.get("active") is True
    if arm.name.startswith("url:"):
        return None
    if arm.base in NO_DRAFTING:
        return f"it drafts ({algorithm})" if algorithm else None
    if not algorithm:
        return "speculative decoding is off"
    if arm.policy is not None:
        if not active or not isinstance(speckv, Mapping):
            return "SpecKV is not active"
        known = speckv.get("policies")
        has = arm.learns or not isinstance(known, Sequence) or arm.policy in known
        return None if has else f"it has no policy {arm.policy}"
    if active:
        return "SpecKV is active"
    if arm.base == "ema":
        return None if state.get("speculative_adaptive") else "SGLang's adaptive rule is off"
    if arm.base.startswith("fresh:"):
        steps, topk = state.get("speculative_num_steps"), state.get("speculative_eagle_topk")
        wanted = int(arm.base.partition(":")[2])
        return None if (steps, topk) == (wanted, 1) else f"it runs {steps} steps, topk {topk}"
    return None


def unequal(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Settings that have to agree and do not: key -> server -> value."""
    found: dict[str, dict[str, Any]] = {}
    for key in COMPARED:
        values = {server: of.get(key) for server, of in settings.items()}
        if len({str(value) for value in values.values()}) > 1:
            found[key] = values
    return found


def _differs(settings: Mapping[str, Any], expected: Mapping[str, Any], keys: Sequence[str]) -> str:
    for key in keys:
        if settings[key] != expected[key]:
            return f"its {key} is {settings[key]} where another's is {expected[key]}: unfair"
    return ""
