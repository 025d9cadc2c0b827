"""``speckv replay``: every policy on recorded rounds; no engine, no GPU, seconds.

speckv serve ... --speckv --speckv-policy static:7 --speckv-trace traces/
speckv replay traces/                              # round times as recorded
speckv replay traces/ --cost other-traces/         # ... from a trace of other depths
speckv replay traces/ --draft-cost 0.1 --regroup 16 --traffic phases
speckv replay traces/ --policy throughput --explain 120
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sglang_speckv.config import parse_steps

if TYPE_CHECKING:
    from sglang_speckv.replay.run import ReplayOptions


def replay_command(
    traces: Annotated[
        list[Path], typer.Argument(help="Directories or files (*.jsonl.gz) of --speckv-trace.")
    ],
    policy: Annotated[
        list[str] | None,
        typer.Option(help="Only this policy beside the static ones; repeatable."),
    ] = None,
    candidate_steps: Annotated[
        str | None, typer.Option(help="Depths to choose from, such as 0,1,3. [default: recorded]")
    ] = None,
    cost: Annotated[
        Path | None,
        typer.Option(
            help="Round times from another trace, an artifact, or a JSON file "
            '{"rows": [{"batch_size": 1, "num_steps": 3, "seconds": 0.05}, ...]}.'
        ),
    ] = None,
    draft_cost: Annotated[
        float | None,
        typer.Option(help="Assume this: a draft forward in target steps, such as 0.1."),
    ] = None,
    verify_width: Annotated[
        float, typer.Option(help="With --draft-cost: each further verified token, in target steps.")
    ] = 0.0,
    regroup: Annotated[
        int | None, typer.Option(help="Put the requests together anew, this many at a time.")
    ] = None,
    traffic: Annotated[
        str, typer.Option(help="With --regroup: mixed, or phases (label after label).")
    ] = "mixed",
    artifact: Annotated[
        Path | None,
        typer.Option(help="What speckv train learned from other prompts: acceptance, the MLP."),
    ] = None,
    profile: Annotated[
        bool, typer.Option(help="Tell policies round times first, as a server's start-up does.")
    ] = True,
    lag: Annotated[
        int | None,
        typer.Option(
            help="Decisions that results come late by. [default: 1 under overlap, else 0]"
        ),
    ] = None,
    complete: Annotated[
        bool, typer.Option(help="Only rounds drafted to the deepest candidate: none is dropped.")
    ] = False,
    explain: Annotated[
        int | None, typer.Option(help="Say why the policy chose what it did in this round.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture (PNG) here.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the JSON here, with versions and machine.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Only the JSON line on stdout.")] = False,
) -> None:
    """Replay recorded rounds under every policy and compare tokens per second.

    A round drafted to depth d says what every depth up to d would have brought, and deeper ones
    where a draft was rejected; other rounds are dropped for that depth, and how many is reported.
    Record with --speckv-policy static:7, so that no round is. Round times at other depths come
    from the trace if it has several depths, else from --cost or --draft-cost.
    """
    from sglang_speckv.progress import Screen
    from sglang_speckv.replay.run import ReplayOptions, run_replay

    options = ReplayOptions(
        traces=tuple(traces),
        policies=tuple(policy or ()),
        candidate_steps=parse_steps(candidate_steps) if candidate_steps else None,
        cost=cost,
        draft_cost=draft_cost,
        verify_width=verify_width,
        regroup=regroup,
        traffic=traffic,
        lag=lag,
        complete=complete,
        artifact=artifact,
        profiled=profile,
    )
    if explain is not None:
        _explain(options, explain, json)
        return
    screen = Screen()
    with screen.status("reading the trace") as say:
        replay = run_replay(options, say)
    from sglang_speckv.replay.report import print_report, to_json

    result = to_json(replay)
    if plot is not None:
        from sglang_speckv.files import write_atomically
        from sglang_speckv.replay.plot import draw

        write_atomically(plot, lambda path: draw(replay, path))
        result["picture"] = str(plot)
        screen.say(f"picture: {plot}")
    if out is not None:
        _write(result, out)
    if not json:
        from rich.console import Console

        console = Console()
        print_report(replay, console if console.is_terminal else Console(width=150))
    _print_json(result)


def _write(result: dict[str, Any], out: Path) -> None:
    import msgspec

    from sglang_speckv.files import write_atomically
    from sglang_speckv.provenance import provenance

    text = msgspec.json.encode({"provenance": provenance(), **result})
    write_atomically(out, lambda path: path.write_bytes(msgspec.json.format(text, indent=1)))


def _explain(options: ReplayOptions, number: int, as_json: bool) -> None:
    from sglang_speckv.replay.explain import explain, lines
    from sglang_speckv.replay.run import prepare

    explained = explain((options.policies or ("throughput",))[0], prepare(options), number)
    if not as_json:
        print("\n".join(lines(explained)))
    _print_json(explained)


def _print_json(result: dict[str, Any]) -> None:
    import msgspec

    print(msgspec.json.encode(result).decode())
