"""The columns of every table, once: for the terminal, the report and the README."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table

from sglang_speckv.ab.answer import Record, shown
from sglang_speckv.ab.traffic import MOVING


@dataclass(frozen=True)
class Column:
    """``text`` shows one record of a table; ``left`` aligns it."""

    heading: str
    text: Callable[[Record], str]
    left: bool = False


def value(key: str, form: str = "", scale: float = 1.0) -> Callable[[Record], str]:
    """One value of a record, or "-"."""

    def text(record: Record) -> str:
        found = record.get(key)
        if found is None:
            return "-"
        return format(scale * found if form else found, form)

    return text


def pair(key: str, form: str = ".2f", scale: float = 1.0) -> Callable[[Record], str]:
    """The 50th and the 99th percentile."""

    def text(record: Record) -> str:
        found = record[key]
        return f"{scale * found['p50']:{form}} / {scale * found['p99']:{form}}" if found else "-"

    return text


def steps(record: Record) -> str:
    shares = (record["steps"] or {}).items()
    return "  ".join(f"{k}:\N{NO-BREAK SPACE}{share:.0%}" for k, share in shares) or "-"


def of_best_fixed(record: Record) -> str:
    if record["best_fixed"] == record["arm"]:
        return "best"
    return shown(record["vs_best_fixed"], record["interval"])


def over(arm: str) -> Callable[[Record], str]:
    return lambda record: shown(**record["over"].get(arm, {"ratio": None}))


CELL = (
    Column("arm", value("arm"), left=True),
    Column("tok/s", value("tok_per_s", ".1f")),
    Column("of the best fixed", of_best_fixed),
    Column("of every fixed, at least", value("lower_bound", ".2f")),
    Column("tok/s, whole block", value("whole_tok_per_s", ".1f")),
    Column("accept length", value("accept_length", ".2f")),
    Column("TPOT ms", pair("tpot_s", ".0f", 1e3)),
    Column("rounds by depth", steps, left=True),
    Column("text", value("text"), left=True),
)
DETAIL = (
    Column("arm", value("arm"), left=True),
    Column("blocks", value("blocks")),
    Column("TTFT s", pair("ttft_s")),
    Column("end to end s", pair("e2e_s")),
    Column("accept rate", value("accept_rate", ".0%")),
)
GOODPUT = Column("goodput req/s", value("goodput_per_s", ".2f"))
SWEEP = (
    Column("arm", value("arm"), left=True),
    Column("tok/s (geo. mean)", value("tok_per_s", ".1f")),
    Column("of the best fixed", of_best_fixed),
    Column("of every fixed, at least", value("lower_bound", ".2f")),
    Column("of ema", over("ema")),
    Column("of none", over("none")),
    Column("as good as the best at", lambda record: "{not_inferior} of {loads}".format(**record)),
)
SERVER = (
    Column("server", value("arm"), left=True),
    Column("start-up s", value("ready_s")),
    Column("host memory GB", value("memory_gb")),
    Column("max running", value("effective_max_running_requests_per_dp")),
    Column("KV tokens", value("max_total_tokens")),
    Column("steps", value("speculative_num_steps")),
    Column("topk", value("speculative_eagle_topk")),
    Column("attention", value("attention_backend")),
)
NOTES = (
    "A block is as many requests as run at a time, sent at once; every arm answers the same ones. "
    "tok/s is counted while all of them decode, from the last first token to the first finished "
    "request (SGLang's own window); prefill is in TTFT. Requests that advance slowly have little "
    "part in that window, so beyond one request it flatters arms whose requests differ in speed: "
    "'whole block' counts all tokens from the first request to the last answer. Percentiles are "
    "p50 / p99.",
    "Ratios are raw ratios of tok/s with 95 % intervals, paired by block; they count both the "
    "blocks' and the prompts' variance. A fixed setting is no drafting, SGLang's default, a number "
    "of steps or a tree of one shape. The best one is the one that came out fastest, which "
    "flatters it. 'At least' is the lowest lower bound against all fixed settings. An arm is as "
    "good as the best where that is 0.95 or more.",
    "Text: greedy answers that equal those without drafting token by token. The server without "
    "drafting reads all others back. A tie: no token scores below the likeliest by more than "
    "rounding explains.",
)
OPEN_LOOP = (
    "Under a rate, tok/s is output tokens over the time that requests took, since the arrivals set "
    "the wall time."
)


def tables(results: Record) -> Iterator[tuple[str, Sequence[Column], list[Record]]]:
    """(title, columns, records) of each: every load of a sweep, then all of them."""
    for draft, by_traffic in results["sweep"].items():
        for traffic, sweep in by_traffic.items():
            for load, cells in by_load(results["cells"], draft, traffic):
                yield f"{draft}, {traffic}: {load}", CELL, cells
            yield f"{draft}, {traffic}: all loads", SWEEP, rows(sweep)


def rows(sweep: Record) -> list[Record]:
    """Of the table over all loads."""
    return [arm | {"loads": sweep["loads"]} for arm in sweep["arms"].values()]


def detail(results: Record) -> Sequence[Column]:
    """What is said of each load further down the page."""
    return (*DETAIL, GOODPUT) if results["options"]["goodput"] else DETAIL


def by_load(cells: Sequence[Record], draft: str, traffic: str) -> list[tuple[str, list[Record]]]:
    """The cells of one draft and kind of traffic, load by load."""
    ours = [cell for cell in cells if (cell["draft"], cell["traffic"]) == (draft, traffic)]
    loads = dict.fromkeys(cell["load"] for cell in ours)
    return [(load, [cell for cell in ours if cell["load"] == load]) for load in loads]


def rich_table(title: str, columns: Sequence[Column], records: Sequence[Record]) -> Table:
    table = Table(title=title, title_style="bold")
    for column in columns:
        table.add_column(column.heading, justify="left" if column.left else "right")
    for record in records:
        style = "bold cyan" if record.get("arm", "").startswith("speckv") else ""
        table.add_row(*(column.text(record) for column in columns), style=style)
    return table


def markdown(columns: Sequence[Column], records: Sequence[Record]) -> str:
    lines = [
        [column.heading for column in columns],
        [":--" if column.left else "--:" for column in columns],
        *([column.text(record) for column in columns] for record in records),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def notes(results: Record) -> list[str]:
    return [*NOTES, OPEN_LOOP] if any(cell["rate"] for cell in results["cells"]) else list(NOTES)


def odd(results: Record) -> list[str]:
    """What a reader has to know before any figure."""
    lines = list(results["lossy"])
    if results["interrupted"]:
        lines.append("interrupted: fewer blocks than planned, and answers that were not checked")
    if not results["servers_together"]:
        lines.append(
            "the servers ran one after another: what the machine did meanwhile does not cancel"
        )
    if results["code_changed"]:
        lines.append("the code changed while it was measured")
    for name, reason in results["failures"].items():
        lines.append(f"out of the comparison, {name}: {reason}")
    for key, values in results["settings_that_differ"].items():
        told = ", ".join(f"{server} {value}" for server, value in values.items())
        lines.append(f"servers differ in {key}: {told}")
    for cell in results["cells"]:
        if cell["fallbacks"]:
            at = cell["traffic"] if cell["traffic"] in MOVING else cell["load"]
            lines.append(
                f"{cell['draft']} {cell['arm']}, {at}: the policy failed in {cell['fallbacks']} "
                "rounds, which served the launch depth"
            )
    return list(dict.fromkeys(lines))


def checks(results: Record) -> list[str]:
    """How far apart came out what is the same, and what the sampled answers say."""
    said = {True: "within noise", False: "NOT within noise", None: "too few blocks to say"}
    lines = []
    for check in results["checks"]:
        level = check["concurrency"] or f"{check['rate']:g} per second"
        lines.append(
            f"{check['kind']}: {check['draft']} {check['arm']} over {check['against']}, "
            f"{check['traffic']} at {level}: {shown(check['ratio'], check['interval'])} "
            f"({said[check['within_noise']]})"
        )
    return lines + [
        f"sampled answers, {arm}: p = {told['p_value']:.3g} of the target's distribution; a shift "
        f"of {told['detectable_shift']:.0%} of the probability would have been found nine times "
        "out of ten"
        for arm, told in results["sampled"].items()
    ]
