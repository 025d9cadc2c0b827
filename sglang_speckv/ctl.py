"""``speckv ctl``: see and steer a running server, by names. It is known by HTTP only.

    speckv ctl http://localhost:30000 show                 how it does
    speckv ctl http://localhost:30000 policy static:3      decide by another policy
    speckv ctl http://localhost:30000 pin 2                one depth, whatever the policy says
    speckv ctl http://localhost:30000 off                  no drafts
    speckv ctl http://localhost:30000 release              the policy decides again

What is sent changes how fast the server is and never its text. A restart forgets it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import typer

from sglang_speckv.ab.client import Client, ServerError
from sglang_speckv.config import ConfigError

RELEASED = -1


class Shown(msgspec.Struct):
    """What is told of ``internal_states[].speckv``."""

    policy: str
    policies: list[str]
    candidate_steps: list[int]
    num_steps: int
    pinned: int | None
    held: bool
    rounds: dict[str, int]
    accept_rate: float | None
    stops: str
    widths: str
    fallbacks: int
    failures: dict[str, int]
    candidate_shapes: list[str] = []

    @property
    def depths(self) -> dict[str, int]:
        """What a server with trees or chains can be pinned to, and the number that it knows it by:
        a depth, or the place of a shape."""
        if self.candidate_shapes:
            return {shape: place for place, shape in enumerate(self.candidate_shapes)}
        return {str(steps): steps for steps in self.candidate_steps}

    def name_of(self, number: int) -> str:
        return next((name for name, own in self.depths.items() if own == number), str(number))


ctl = typer.Typer(
    help=(
        "See and steer a running server: which policy decides, or one depth for all. Nothing here "
        "changes a text, and a restart forgets it."
    ),
    rich_markup_mode=None,
)


@dataclass(frozen=True)
class Keys:
    """``admin`` falls back to ``api``, as it does where a server has no admin key."""

    url: str
    api: str | None
    admin: str | None


@ctl.callback()
def _server(
    context: typer.Context,
    url: Annotated[str, typer.Argument(help="Where it listens: http://HOST:PORT.")],
    api_key: Annotated[
        str | None, typer.Option(envvar="SPECKV_API_KEY", help="Its --api-key, if it has one.")
    ] = None,
    admin_key: Annotated[
        str | None,
        typer.Option(envvar="SPECKV_ADMIN_KEY", help="Its --admin-api-key, if it has one."),
    ] = None,
) -> None:
    if not url.startswith(("http://", "https://")):
        raise ConfigError(
            f"{url!r} is no server's address; give one such as http://localhost:30000"
        )
    context.obj = Keys(url, api_key, admin_key or api_key)


@ctl.command()
def show(
    context: typer.Context,
    as_json: Annotated[
        bool, typer.Option("--json", help="All that the server says of SpecKV, as JSON.")
    ] = False,
) -> None:
    """Which policy decides, at which depths, and how much is accepted."""
    state = _run(_state(context.obj))
    if as_json:
        print(json.dumps(state))
    else:
        _tell(context.obj, state)


@ctl.command()
def policy(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="throughput, ema, static:3, ...")],
) -> None:
    """Let this policy decide from now on; releases a pinned depth."""
    _steer(context.obj, lambda client, _: client.set_policy(name), policy=name)


@ctl.command()
def pin(
    context: typer.Context,
    depth: Annotated[
        str, typer.Argument(help="One of the server's candidate steps, or of its shapes: 3x8.")
    ],
) -> None:
    """Serve every round at one depth, whatever the policy says."""
    _pin(context.obj, depth)


@ctl.command()
def off(context: typer.Context) -> None:
    """Draft nothing: the same as `pin 0`."""
    _pin(context.obj, "0")


@ctl.command()
def release(context: typer.Context) -> None:
    """Let the policy decide again."""
    _pin(context.obj, None)


def _pin(keys: Keys, depth: str | None) -> None:
    def send(client: Client, shown: Shown) -> Coroutine[Any, Any, None]:
        key, value = "speckv_num_steps", RELEASED if depth is None else shown.depths[depth]
        return client.set_state(key, value, f"{key} = {value}; its log says why")

    _steer(keys, send, depth=depth)


def _steer(
    keys: Keys,
    send: Callable[[Client, Shown], Coroutine[Any, Any, None]],
    policy: str | None = None,
    depth: str | None = None,
) -> None:
    """Send it, once it is clear that the server has that policy and that depth."""

    async def run() -> dict[str, Any]:
        shown = _checked(keys, await _state(keys))
        if policy is not None:
            _check("policy", policy, shown.policies)
        if depth is not None:
            _check("depth", depth, shown.depths)
        async with Client(keys.url, keys.url, 60.0, keys.admin) as client:
            await send(client, shown)
        return await _state(keys)

    _tell(keys, _run(run()))


def _run(asked: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    try:
        return asyncio.run(asked)
    except ServerError as error:
        raise ConfigError(str(error)) from None


async def _state(keys: Keys) -> dict[str, Any]:
    """All that the server says of SpecKV; of several data-parallel ranks the first one."""
    async with Client(keys.url, keys.url, 60.0, keys.api or keys.admin) as client:
        state = (await client.internal_states())[0].get("speckv")
    if state is None:
        raise ConfigError(f"{keys.url} serves without SpecKV; start it with --speckv to steer it")
    if not isinstance(state, dict):
        raise ConfigError(f"{keys.url} answered something unexpected about SpecKV")
    return state


def _checked(keys: Keys, state: dict[str, Any]) -> Shown:
    try:
        return msgspec.convert(state, Shown)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"{keys.url} answered something unexpected about SpecKV ({error})"
        ) from None


def _check(what: str, value: object, known: Collection[object]) -> None:
    if value not in known:
        names = ", ".join(map(str, known))
        raise ConfigError(f"the server has no {what} {value}; it has {names}")


def _tell(keys: Keys, state: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _rows(_checked(keys, state)).items():
        table.add_row(name, value)
    Console(markup=False, highlight=False).print(table)


def _rows(shown: Shown) -> dict[str, str]:
    """What an operator asks first, in words."""
    rounds = ", ".join(f"{steps}: {n}" for steps, n in shown.rounds.items() if n)
    decides = (
        "the policy" if shown.pinned is None else f"nobody: pinned to {shown.name_of(shown.pinned)}"
    )
    if shown.held:
        decides = "nobody: the launch depth is held, see the server's log"
    rate = shown.accept_rate
    rows = {
        "policy": shown.policy,
        "who decides": decides,
        "depth now": shown.name_of(shown.num_steps),
        "candidate steps": ", ".join(shown.depths),
        "rounds by depth": rounds or "none yet",
        "drafts accepted": "none judged yet" if rate is None else f"{rate:.1%} of those verified",
        "rounds stop": shown.stops,
        "widths per request": shown.widths,
        "fall-backs": str(shown.fallbacks),
    }
    if shown.failures:
        rows["failures"] = ", ".join(f"{where}: {n}" for where, n in shown.failures.items())
    return rows
