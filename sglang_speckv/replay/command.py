"""``speckv replay``: every policy on the positions of real answers; no engine, no GPU, seconds.

python examples/record_positions.py --draft eagle3 --out mine.safetensors
speckv replay mine.safetensors --draft-cost 0.1 --requests 1,4,16
speckv replay mine.safetensors --cost traces/            # round times as an engine had them
speckv replay traces/                                    # rounds as recorded, which flatters
speckv replay mine.safetensors --draft-cost 0.1 --policy throughput --explain 120
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sglang_speckv.config import ConfigError, parse_steps


def replay_command(
    paths: Annotated[
        list[Path],
        typer.Argument(help="A file of positions (*.safetensors), or traces of --speckv-trace."),
    ],
    policy: Annotated[
        list[str] | None,
        typer.Option(help="Only this policy beside the fixed depths; repeatable."),
    ] = None,
    candidate_steps: Annotated[
        str | None, typer.Option(help="Depths to choose from, such as 0,1,3.")
    ] = None,
    cost: Annotated[
        Path | None,
        typer.Option(
            help="Round times from a trace, an artifact, or a JSON file "
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
    requests: Annotated[str, typer.Option(help="At a time, such as 1,4,16.")] = "1",
    traffic: Annotated[str, typer.Option(help="mixed, or phases (class after class).")] = "mixed",
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Orders of the requests.")] = 4,
    passes: Annotated[int, typer.Option(min=1, max=1000, help="Times through all of them.")] = 4,
    artifact: Annotated[
        Path | None,
        typer.Option(help="What speckv train learned from other prompts: acceptance, the MLP."),
    ] = None,
    profile: Annotated[
        bool, typer.Option(help="Tell policies round times first, as a server's start-up does.")
    ] = True,
    lag: Annotated[
        int,
        typer.Option(min=0, max=8, help="Decisions that results and signals come late by."),
    ] = 0,
    captured: Annotated[
        bool,
        typer.Option(
            help="Draft in graphs, as on CUDA: the device stops, nothing is cut. Add --lag 1."
        ),
    ] = False,
    jobs: Annotated[int, typer.Option(min=0, max=1024, help="Processes; 0: one per core.")] = 0,
    explain: Annotated[
        int | None, typer.Option(help="Say why the policy chose what it did in this round.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a chart (SVG) here.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the JSON here, with versions and machine.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Only the JSON line on stdout.")] = False,
) -> None:
    """Let every policy serve the same requests, several at a time, and compare tokens per second.

    Positions say what a draft would do from every token of the target's answers, so each round
    begins where the one before it ended. A trace holds only the rounds that were served: they are
    taken as recorded, which flatters policies that adapt.
    """
    from sglang_speckv.offline.round_cost import AssumedCost
    from sglang_speckv.progress import Screen
    from sglang_speckv.replay.explain import explain as explained
    from sglang_speckv.replay.explain import lines
    from sglang_speckv.replay.positions import SUFFIX
    from sglang_speckv.replay.report import print_report, to_json
    from sglang_speckv.replay.run import ReplayOptions, run_replay
    from sglang_speckv.replay.trees import is_of_trees, replay_trees, tree_lines

    if paths[0].suffix != SUFFIX and is_of_trees(paths[0]):
        chains = policy or artifact or cost or candidate_steps or plot or captured or lag
        if chains or traffic != "mixed" or explain is not None or draft_cost is None:
            raise ConfigError(
                f"{paths[0]} is a trace of draft trees: throughput is compared with every fixed "
                "shape, and round times are assumed; give --draft-cost and --verify-width, such as "
                "0.1 and 0.02, and of the others only --requests, --seeds, --passes, --out, --json"
            )
        assumed = AssumedCost(draft_cost, verify_width)
        told = replay_trees(paths, assumed, _counts(requests), seeds, passes)
        if out is not None:
            _write(told, out)
        if not json:
            print("\n".join(tree_lines(told)))
        _print_json(told)
        return
    options = ReplayOptions(
        paths=tuple(paths),
        policies=tuple(policy or ()),
        candidate_steps=parse_steps(candidate_steps) if candidate_steps else None,
        cost=cost,
        draft_cost=draft_cost,
        verify_width=verify_width,
        requests=_counts(requests),
        traffic=traffic,
        seeds=seeds,
        passes=passes,
        lag=lag,
        artifact=artifact,
        profiled=profile,
        captured=captured,
        jobs=jobs,
    )
    if explain is not None:
        told = explained(options, explain)
        if not json:
            print("\n".join(lines(told)))
        _print_json(told)
        return
    screen = Screen()
    with screen.status("reading") as say:
        replay = run_replay(options, say)
    result = to_json(replay)
    if plot is not None:
        _draw(result, plot)
        result["picture"] = str(plot)
        screen.say(f"picture: {plot}")
    if out is not None:
        _write(result, out)
    if not json:
        from rich.console import Console

        console = Console()
        print_report(replay, console if console.is_terminal else Console(width=150))
    _print_json(result)


def _counts(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1 or max(found) > 4096:
        raise ConfigError(f"--requests {text!r} are not numbers in 1..4096, such as 1,4,16")
    return found


def _draw(result: dict[str, Any], path: Path) -> None:
    from sglang_speckv.ab import chart
    from sglang_speckv.files import write_atomically

    source = result["source"]
    cells = [arm | {"tok_per_s": arm["rate"]} for cell in result["cells"] for arm in cell["arms"]]
    text = chart.svg(cells, f"{source['draft']}, {source['traffic']}: over the best fixed depth")
    write_atomically(path, lambda scratch: scratch.write_text(text))


def _write(result: dict[str, Any], out: Path) -> None:
    from sglang_speckv.files import write_json
    from sglang_speckv.provenance import provenance

    write_json(out, {"provenance": provenance(), **result})


def _print_json(result: dict[str, Any]) -> None:
    import msgspec

    print(msgspec.json.encode(result).decode())
