"""The ``speckv`` command. Verbs import what they need inside, so that ``--help`` is quick."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from sglang_speckv import __version__
from sglang_speckv.ab.command import ab_command, demo_command
from sglang_speckv.calibrate.command import calibrate_command
from sglang_speckv.config import ConfigError
from sglang_speckv.ctl import ctl
from sglang_speckv.offline.train_command import train_command
from sglang_speckv.replay.command import replay_command

app = typer.Typer(
    name="speckv",
    help="Serve with SGLang and let the draft depth follow the load and the text.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
_PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def _version(show: bool) -> None:
    if show:
        print(f"speckv {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command(context_settings=_PASS_THROUGH, add_help_option=False)
def serve(context: typer.Context) -> None:
    """Serve a model: `sglang serve` with the same flags, --speckv, and a CPU engine."""
    from sglang_speckv.srt import serve as launcher

    if {"-h", "--help"} & set(context.args):
        launcher.print_help()
    else:
        launcher.serve(context.args)


app.command("ab")(ab_command)
app.command("calibrate")(calibrate_command)
app.command("demo")(demo_command)
app.command("replay")(replay_command)
app.command("train")(train_command)
app.add_typer(ctl, name="ctl")


@app.command(context_settings=_PASS_THROUGH, add_help_option=False)
def doctor(context: typer.Context) -> None:
    """Say what `speckv serve` with these flags would do here; exit code 0 if it would adapt.

    Add --json for one JSON object.
    """
    if {"-h", "--help"} & set(context.args):
        print("Usage: speckv doctor [--json] FLAGS-OF-SPECKV-SERVE\n\n" + (doctor.__doc__ or ""))
        raise typer.Exit()
    from sglang_speckv.srt.serve import diagnose

    as_json = "--json" in context.args
    report = diagnose([arg for arg in context.args if arg != "--json"])
    if as_json:
        print(json.dumps(report))
    else:
        _print_report(report)
    raise typer.Exit(0 if report["adaptive"] else 1)


def _print_report(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    for key, value in report.items():
        if value is not None and key not in ("adaptive", "problem"):
            table.add_row(key.replace("_", " "), str(value))
    console = Console()
    console.print(table)
    verdict = "would adapt the draft depth" if report["adaptive"] else report["problem"]
    console.print(f"\nserving: {verdict}", markup=False, highlight=False)


def main() -> None:
    """Console script: user errors become one sentence on stderr and exit code 2."""
    try:
        app()
    except ConfigError as error:
        print(f"speckv: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
