"""The servers of one group: brought up, checked, taken out when they fail, gone at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sglang_speckv.bench import proof
from sglang_speckv.bench.arms import Arm, ServerSpec
from sglang_speckv.bench.client import Client
from sglang_speckv.bench.connection import ServerError
from sglang_speckv.bench.openai_client import OpenAIClient
from sglang_speckv.bench.server import Server, last_lines, running
from sglang_speckv.config import ConfigError

_READY_TIMEOUT_S = 600.0


@dataclass
class ServerFacts:
    """What is reported of a server beside its arms."""

    ready_s: float | None = None
    peak_memory: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)


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

    async def prove(self, arms: Sequence[Arm], expected: dict[str, Any] | None = None) -> None:
        """Take out the servers that are not what their arms claim, or are limited otherwise than
        ``expected``, the settings of the first one."""
        for name, client in list(self.clients.items()):
            if isinstance(client, OpenAIClient):
                continue
            try:
                state = await client.internal_state()
            except ServerError as error:
                self.fail(name, error)
                continue
            settings = self.facts[name].settings = proof.settings_of(state)
            expected = expected or settings
            doubts = [proof.doubt(arm, state) for arm in arms if arm.server == name]
            reason = next(filter(None, doubts), _limits_differ(settings, expected))
            if reason:
                self.fail(name, ServerError(f"server {name} is not reported: {reason}"))


@asynccontextmanager
async def fleet_of(
    specs: Sequence[ServerSpec], flags: Sequence[str], logs: Path, timeout_s: float
) -> AsyncIterator[Fleet]:
    """All servers up that come up, with a client for each; all end on any exit."""
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
                await _connect(fleet, spec, stack, timeout_s)
        yield fleet


async def _connect(fleet: Fleet, spec: ServerSpec, stack: AsyncExitStack, timeout_s: float) -> None:
    if spec.url is None:
        server = fleet.servers[spec.name]
        fleet.facts[spec.name].ready_s = server.ready_s
        ours = Client(spec.name, server.url, timeout_s)
        fleet.clients[spec.name] = await stack.enter_async_context(ours)
        return
    theirs = await stack.enter_async_context(OpenAIClient(spec.name, spec.url, timeout_s))
    try:
        await theirs.find_model()
        fleet.clients[spec.name] = theirs
    except ServerError as error:
        fleet.failures[spec.name] = str(error)


def _limits_differ(settings: dict[str, Any], expected: dict[str, Any]) -> str:
    for key in proof.MUST_BE_SAME:
        if settings[key] != expected[key]:
            return f"its {key} is {settings[key]} where another's is {expected[key]}: unfair"
    return ""
