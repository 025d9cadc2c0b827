"""From what a person asked of the demo to a :class:`~sglang_speckv.bench.compare.Comparison`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sglang_speckv.bench.compare import Comparison
from sglang_speckv.bench.drafts import DEMO_DRAFTS, algorithm_of, resolve_draft
from sglang_speckv.bench.models import resolve_target
from sglang_speckv.bench.plan import Draft
from sglang_speckv.bench.progress import Screen
from sglang_speckv.bench.prompts import DEMO_PROMPTS, Prompt, load_prompts
from sglang_speckv.bench.run import Tokenize
from sglang_speckv.config import ConfigError

DEFAULT_SECONDS, QUICK_SECONDS = 1140.0, 340.0
_MIN_SECONDS = 60.0
_SERVER_BYTES = 2_500_000_000  # one server's processes beside its weights


@dataclass(frozen=True)
class DemoOptions:
    """``seconds`` bounds everything after set-up; None is what quick or full implies."""

    target: str | None = None
    drafts: tuple[str, ...] = ()
    concurrencies: tuple[int, ...] = (1, 4)
    quick: bool = False
    seconds: float | None = None
    out: Path = Path("out/demo")
    prompts: Path = DEMO_PROMPTS
    dtype: str | None = None

    def __post_init__(self) -> None:
        for concurrency in self.concurrencies:
            if not 1 <= concurrency <= 256:
                raise ConfigError(f"concurrency {concurrency} is not in 1..256")
        if not self.concurrencies or len(set(self.concurrencies)) != len(self.concurrencies):
            raise ConfigError(f"concurrencies {self.concurrencies} are none, or name one twice")
        if self.seconds is not None and not _MIN_SECONDS <= self.seconds <= 86400:
            raise ConfigError(f"{self.seconds} seconds are not in {_MIN_SECONDS:.0f}..86400")

    @property
    def budget_s(self) -> float:
        return self.seconds or (QUICK_SECONDS if self.quick else DEFAULT_SECONDS)


def prepare(options: DemoOptions, screen: Screen) -> Comparison:
    """The set-up: models fetched, drafts complete, prompts read, a tokenizer loaded."""
    prompts = load_prompts(options.prompts)
    with screen.downloads() as progress:
        target = resolve_target(options.target, progress)
    drafts = find_drafts(options.drafts, target, screen)
    return Comparison(
        target=str(target),
        drafts=drafts,
        concurrencies=options.concurrencies,
        prompts=prompts,
        tokenize=chat_tokenizer(str(target)),
        server_flags=server_flags(max(options.concurrencies), options.dtype or default_dtype()),
        seconds=options.budget_s,
        rounds=4 if options.quick else 12,
        token_bounds=(16, 64),
        server_bytes=_SERVER_BYTES + 2 * _weight_bytes(target),
        logs=options.out / "logs",
    )


def find_drafts(names: Sequence[str], target: Path | str, screen: Screen) -> list[Draft]:
    """The drafts that were asked for, or the demo's own where they are present."""
    found = []
    for name in names or DEMO_DRAFTS:
        try:
            path = resolve_draft(name, target)
        except ConfigError as error:
            if names:
                raise
            screen.say(f"skipped: {error}")
            continue
        found.append(
            Draft(path.name if name not in DEMO_DRAFTS else name, path, algorithm_of(path))
        )
    if not found:
        raise ConfigError("no demo draft was found; pass --draft PATH")
    return found


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
            messages = [{"role": "user", "content": prompt.prompt}]
            known[prompt.id] = list(
                tokenizer.apply_chat_template(
                    messages, add_generation_prompt=True, return_dict=False
                )
            )
        return known[prompt.id]

    return tokenize


def _weight_bytes(target: Path | str) -> int:
    """0 for a hub id: unknown before SGLang fetches it."""
    if isinstance(target, str):
        return 0
    return sum(file.stat().st_size for file in target.glob("*.safetensors"))
