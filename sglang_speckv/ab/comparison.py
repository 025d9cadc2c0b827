"""From what a person asked to what is run: models fetched, prompts read, servers planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from sglang_speckv.ab.arms import (
    Arm,
    Draft,
    ServerSpec,
    arms_for,
    needs_draft,
    servers_for,
)
from sglang_speckv.ab.options import Options
from sglang_speckv.ab.prompts import find_prompts
from sglang_speckv.ab.request import Prompt, Tokenize
from sglang_speckv.ab.traffic import Condition, Workload
from sglang_speckv.config import MAX_NUM_STEPS, ConfigError
from sglang_speckv.demo.drafts import DEMO_DRAFTS, algorithm_of, check_demo_drafts, resolve_draft
from sglang_speckv.demo.target import resolve_target
from sglang_speckv.progress import Screen

_ALGORITHMS = ("EAGLE", "EAGLE3", "NEXTN", "STANDALONE")
_SERVER_BYTES = 3_800_000_000  # one CPU server's processes beside its weights, as measured


@dataclass(frozen=True)
class Group:
    """Servers that are up together, and the arms of one draft that they serve."""

    arms: Sequence[Arm]
    servers: Sequence[ServerSpec]


@dataclass(frozen=True)
class Comparison:
    """What to compare, group after group."""

    options: Options
    target: str
    drafts: Sequence[Draft]
    groups: Sequence[Group]
    workload: Workload
    tokenize: Tokenize
    server_flags: Sequence[str]
    dtype: str

    @property
    def arms(self) -> list[Arm]:
        return [arm for group in self.groups for arm in group.arms]

    @property
    def traffic(self) -> list[list[Condition]]:
        """The conditions of each kind of traffic."""
        rates = self.options.rate
        return [self.workload.conditions(kind, rates) for kind in self.options.traffic]

    @property
    def conditions(self) -> list[Condition]:
        return [condition for kind in self.traffic for condition in kind]

    @property
    def together(self) -> bool:
        """Whether all servers of a draft are up at the same time."""
        return len(self.groups) <= max(len(self.drafts), 1)

    @property
    def logs(self) -> Path:
        return Path(self.options.out) / "logs"


def comparison_of(options: Options, screen: Screen) -> Comparison:
    """Everything that can be refused is refused here, before a server is started.

    Raises:
        ConfigError: a model, a draft, a prompt file or a prompt's length does not do.
    """
    prompts = find_prompts(options.prompts)  # refused before anything is fetched
    if needs_draft(options.arms):
        check_demo_drafts(options.drafts)
    target = resolve_target(options.target)
    drafts = find_drafts(options.drafts, target, screen) if needs_draft(options.arms) else []
    drafts = with_artifacts(drafts, options.artifacts)
    workload = Workload(prompts, options.concurrency, options.requests_per_slot, seed=options.seed)
    tokenize = chat_tokenizer(str(target))
    longest = longest_prompt(prompts, tokenize, options.max_new_tokens, context_len(str(target)))
    dtype = options.dtype or default_dtype()
    most = most_requests(options, workload)
    tokens = None if options.own_memory else kv_tokens(most, longest + options.max_new_tokens)
    return Comparison(
        options=options,
        target=str(target),
        drafts=drafts,
        groups=grouped(options, drafts, target, screen),
        workload=workload,
        tokenize=tokenize,
        server_flags=[*server_flags(most, dtype, tokens), *options.server_flags],
        dtype=dtype,
    )


def grouped(
    options: Options, drafts: Sequence[Draft], target: Path | str, screen: Screen
) -> list[Group]:
    """One draft after the other, each with all of its servers up; or, where they cannot all be,
    server by server."""
    groups, either = [], drafts or (None,)
    for draft in either:
        arms = arms_for(draft, options.arms)
        if arms:
            groups.append(Group(arms, servers_for(draft, arms, has_cuda())))
        elif draft is not None:
            screen.say(f"skipped: none of the arms can be with the draft {draft.name}")
    if not groups:
        raise ConfigError(
            f"none of the arms {', '.join(options.arms)} can be with any of the drafts; name others"
        )
    if all(fit(group.servers, options, target) for group in groups):
        return groups
    screen.say(
        "not all servers of a draft fit at once, so they run one after another, and what the "
        "machine does meanwhile does not cancel; together: true in the file starts all at once"
    )
    return [
        Group([arm for arm in group.arms if arm.server == spec.name], [spec])
        for group in groups
        # the one without drafting comes last: the others' answers are judged while it is up
        for spec in sorted(group.servers, key=lambda spec: spec.name.endswith("none"))
    ]


def fit(servers: Sequence[ServerSpec], options: Options, target: Path | str) -> bool:
    """Whether they are to be up together: as asked, else where there is memory for all. On a GPU
    servers divide the memory among themselves as they start, and nothing here can tell."""
    if options.together is not None or options.own_memory:
        return bool(options.together)
    ours = sum(spec.url is None for spec in servers)
    if has_cuda():
        return ours <= 1
    needed = _SERVER_BYTES + 2 * _weight_bytes(target)
    return psutil.virtual_memory().available >= ours * needed


def most_requests(options: Options, workload: Workload) -> int:
    """At a time; an open loop may have all of a block's at once."""
    open_loop = workload.open_loop_requests if options.rate else 1
    return max(*options.concurrency, open_loop)


def longest_prompt(
    prompts: Sequence[Prompt], tokenize: Tokenize, max_new_tokens: int, context: int | None
) -> int:
    """Tokens of the longest prompt; refuses one whose answer would pass the model's context."""
    longest = max(prompts, key=lambda prompt: len(tokenize(prompt)))
    tokens = len(tokenize(longest))
    # SGLang ends an answer one token before the context does; a draft may reach past it
    room = None if context is None else context - MAX_NUM_STEPS - 1
    if room is not None and tokens + max_new_tokens > room:
        raise ConfigError(
            f"the prompt {longest.id!r} has {tokens} tokens, and with {max_new_tokens} new ones it "
            f"passes the model's context of {context}; leave it out or lower --max-new-tokens"
        )
    return tokens


def kv_tokens(requests: int, tokens_each: int) -> int:
    """What the KV cache must hold for all requests at their end, with room for drafts and for
    whole pages."""
    return requests * (tokens_each + MAX_NUM_STEPS + 64) + 1024


def context_len(target: str) -> int | None:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(target)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"cannot load the config of {target!r}: {reason}") from None
    return getattr(config.get_text_config(), "max_position_embeddings", None)


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
    seen = [draft.name for draft in found]
    twice = next((name for name in seen if seen.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two drafts are called {twice!r}; rename one of their folders")
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
        local = path.is_dir() or place.startswith((".", "/", "~"))
        shown = str(resolve_draft(place, target)) if local else place
        return Draft(f"{algorithm.lower()}-{path.name}", shown, algorithm)
    path = resolve_draft(name, target)
    return Draft(path.name if name not in DEMO_DRAFTS else name, str(path), algorithm_of(path))


def server_flags(max_requests: int, dtype: str, kv_tokens: int | None = None) -> list[str]:
    """The same for all servers; SGLang's own limits differ between drafting and not. Without
    ``kv_tokens`` each server fills the memory that SGLang gives it."""
    flags = [
        *("--dtype", dtype),
        *("--max-running-requests", str(max_requests)),
        *("--random-seed", "0"),
        "--sleep-on-idle",
    ]
    if kv_tokens is not None:
        flags += ["--max-total-tokens", str(kv_tokens)]
        # The fraction is of what is free at start, which servers starting together take from each
        # other; the line above is the real limit.
        flags += ["--mem-fraction-static", "0.9"]
    return flags


def has_cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def default_dtype() -> str:
    """float32 compares token by token; on a GPU its attention kernels take only 16 bits."""
    return "bfloat16" if has_cuda() else "float32"


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
