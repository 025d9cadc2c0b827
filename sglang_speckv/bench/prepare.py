"""From what a person asked to a :class:`~sglang_speckv.bench.compare.Comparison`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sglang_speckv.bench.arms import Draft, arms_for, needs_draft, servers_for
from sglang_speckv.bench.compare import Comparison, fit_together
from sglang_speckv.bench.drafts import DEMO_DRAFTS, algorithm_of, check_demo_drafts, resolve_draft
from sglang_speckv.bench.models import resolve_target
from sglang_speckv.bench.options import Options
from sglang_speckv.bench.progress import Screen
from sglang_speckv.bench.prompts import Prompt, find_prompts
from sglang_speckv.bench.run import Tokenize
from sglang_speckv.bench.traffic import Workload
from sglang_speckv.config import ConfigError

PLANNED_ROUNDS = 8
_ALGORITHMS = ("EAGLE", "EAGLE3", "NEXTN", "STANDALONE")
_SERVER_BYTES = 3_800_000_000  # one CPU server's processes beside its weights, as measured


def prepare(options: Options, screen: Screen, planned_rounds: int = PLANNED_ROUNDS) -> Comparison:
    """The set-up: models fetched, drafts complete, prompts read, a tokenizer loaded."""
    if options.prompts is None or not options.prompts.startswith("sglang:"):
        find_prompts(options.prompts, "")  # refused before anything is fetched
    if needs_draft(options.all_arms):
        check_demo_drafts(options.drafts)
    with screen.downloads() as progress:
        target = resolve_target(options.target, progress)
    drafts = find_drafts(options.drafts, target, screen) if needs_draft(options.all_arms) else []
    drafts = with_artifacts(drafts, options.artifacts)
    dtype = options.dtype or default_dtype()
    workload = Workload(
        find_prompts(options.prompts, str(target)),
        options.concurrency,
        options.requests_per_slot,
        seed=options.seed,
    )
    server_bytes = needed_bytes(options.together, target)
    arms = arms_for(drafts, options.all_arms)
    apart = arms_for(drafts, options.all_arms, shared=False)
    if not fit_together(servers_for(drafts, arms), server_bytes) and all(
        fit_together(servers_for(drafts, [a for a in apart if a.draft == draft.name]), server_bytes)
        for draft in drafts
    ):
        screen.say("no memory for all servers at once: one draft after the other")
        arms = apart
    return Comparison(
        options=options,
        target=str(target),
        drafts=drafts,
        arms=arms,
        workload=workload,
        tokenize=chat_tokenizer(str(target)),
        server_flags=server_flags(most_requests(options, workload), dtype),
        dtype=dtype,
        server_bytes=server_bytes,
        planned_rounds=options.rounds or planned_rounds,
    )


def most_requests(options: Options, workload: Workload) -> int:
    """At a time; an open loop may have all of a block's at once."""
    open_loop = workload.open_loop_requests if options.rate else 1
    return max(*options.concurrency, open_loop)


def needed_bytes(together: bool | None, target: Path | str) -> int:
    """Memory that a server is taken to need, 0 or more than there is where the user decided."""
    if together is not None:
        return 0 if together else 1 << 60
    import torch

    return 1 << 60 if torch.cuda.is_available() else _SERVER_BYTES + 2 * _weight_bytes(target)


def find_drafts(names: Sequence[str], target: Path | str, screen: Screen) -> list[Draft]:
    """The drafts that were asked for, or the demo's own where they are present."""
    found = []
    for name in names or DEMO_DRAFTS:
        try:
            found.append(_draft(name, target))
        except ConfigError as error:
            if names:
                raise
            screen.say(f"skipped: {error}")
    if not found:
        raise ConfigError("no demo draft was found; pass --draft PATH")
    return found


def with_artifacts(drafts: Sequence[Draft], artifacts: Sequence[str]) -> list[Draft]:
    """``artifacts`` are ``DRAFT=FILE``, or a file for the only draft."""
    found = {draft.name: draft for draft in drafts}
    for entry in artifacts:
        name, _, place = entry.rpartition("=")
        if not name and len(drafts) == 1:
            name = drafts[0].name
        if name not in found:
            raise ConfigError(
                f"the artifact {entry!r} names no draft; write DRAFT=FILE with one of "
                f"{', '.join(found) or 'no drafts'}"
            )
        if not Path(place).expanduser().is_file():
            raise ConfigError(
                f"the artifact {place!r} is not a file; check the path or train it again "
                "(speckv train)"
            )
        found[name] = replace(found[name], artifact=str(Path(place).expanduser()))
    return list(found.values())


def _draft(name: str, target: Path | str) -> Draft:
    """A demo draft, a directory, or ``ALGORITHM=PATH-OR-HUB-ID``."""
    algorithm, _, place = name.partition("=")
    if algorithm in _ALGORITHMS and place:
        path = Path(place).expanduser()
        shown = str(resolve_draft(place, target)) if path.is_dir() else place
        return Draft(f"{algorithm.lower()}-{path.name}", shown, algorithm)
    path = resolve_draft(name, target)
    return Draft(path.name if name not in DEMO_DRAFTS else name, str(path), algorithm_of(path))


def server_flags(max_concurrency: int, dtype: str) -> list[str]:
    """The same for all servers; SGLang's own limits differ between drafting and not."""
    return [
        *("--dtype", dtype),
        *("--max-running-requests", str(max_concurrency)),
        *("--max-total-tokens", str(4096 + 1024 * max_concurrency)),
        # the fraction is of what is free at start, which servers starting together take from each
        # other; the line above is the real limit
        *("--mem-fraction-static", "0.9"),
        *("--random-seed", "0"),
        "--sleep-on-idle",
    ]


def default_dtype() -> str:
    """float32 compares token by token; on a GPU its attention kernels take only 16 bits."""
    import torch

    return "bfloat16" if torch.cuda.is_available() else "float32"


def chat_tokenizer(target: str) -> Tokenize:
    """Prompt -> token ids of a chat with one user message, remembered."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(target)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"cannot load the tokenizer of {target!r}: {reason}") from None
    known: dict[str, list[int]] = {}

    def tokenize(prompt: Prompt) -> list[int]:
        if prompt.id not in known:
            known[prompt.id] = list(
                tokenizer.apply_chat_template(
                    prompt.chat(), add_generation_prompt=True, return_dict=False
                )
            )
        return known[prompt.id]

    return tokenize


def _weight_bytes(target: Path | str) -> int:
    """0 for a hub id: unknown before SGLang fetches it."""
    if isinstance(target, str):
        return 0
    return sum(file.stat().st_size for file in target.glob("*.safetensors"))
