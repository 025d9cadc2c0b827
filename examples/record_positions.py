"""What a draft would do from every position of the target's own answers, for `speckv replay`.

    python examples/record_positions.py --draft eagle3 --out mine/eagle3.safetensors
    python examples/record_positions.py --draft standalone --out mine/standalone.safetensors

The target answers each prompt greedily in float32. From every token of an answer the draft makes a
chain along its own tokens, as in a round that begins there, and each draft is compared with the
answer. So a replay can go on where a round of any depth ended. `--check TRACE` compares a walk at
the deepest depth with rounds that an engine recorded.

Answers are kept beside the result (`--answers`) and read from there when it is started again: on
one core they take about ten minutes for 96 prompts, the chains of a draft five. Works for Llama
targets with an EAGLE-3 head or a separate draft model, in Hugging Face's format.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
import torch
import typer
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from examples.train_drafts import eagle3
from examples.train_drafts.target import read_shape
from sglang_speckv.ab.comparison import chat_tokenizer
from sglang_speckv.ab.prompts import find_prompts
from sglang_speckv.ab.request import Prompt
from sglang_speckv.demo.drafts import algorithm_of, resolve_draft
from sglang_speckv.demo.target import resolve_target
from sglang_speckv.files import write_atomically
from sglang_speckv.offline.columns import read_columns
from sglang_speckv.replay.positions import Source, write_positions
from sglang_speckv.srt.reduction import reduce_torch

DEPTH = 7
BATCH = 8
"""Answers that are made at a time."""
CHUNK = 64
"""Chains of a separate draft that are made at a time."""


class Answer(msgspec.Struct):
    """Token ids of one prompt and of the target's answer to it."""

    id: str
    kind: str
    prompt: list[int]
    answer: list[int]


class Recorded(NamedTuple):
    """What :func:`write_positions` writes."""

    source: Source
    prompt_len: list[int]
    start: np.ndarray
    correct: np.ndarray
    signals: np.ndarray


class Chains(NamedTuple):
    """From each position [n]: the drafts [n, DEPTH], and their signals [n, DEPTH, 2]."""

    drafts: np.ndarray
    signals: np.ndarray


def record(
    draft: Annotated[str, typer.Option(help="eagle3, standalone or a directory.")],
    out: Annotated[Path, typer.Option(help="The file to write, *.safetensors.")],
    target: Annotated[str | None, typer.Option(help="Directory. [the demo's target]")] = None,
    prompts: Annotated[str | None, typer.Option(help="Folder or file. [the demo's]")] = None,
    answers: Annotated[
        Path | None, typer.Option(help="Kept here. [answers.jsonl beside OUT]")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Of one answer.")] = 128,
    check: Annotated[Path | None, typer.Option(help="A trace of the same pair.")] = None,
) -> None:
    """Answer, draft from everywhere, write."""
    folder = resolve_target(target)
    path = answers or out.with_name("answers.jsonl")
    answered = answered_prompts(Path(folder), find_prompts(prompts), path, max_new_tokens)
    positions = positions_of(Path(folder), resolve_draft(draft, folder), answered)
    write_positions(out, *positions)
    told = {"positions": len(positions.correct), "walked": accepted(walked(positions))}
    print(json.dumps(told | (compared(positions, check) if check else {})))


def answered_prompts(
    folder: Path, prompts: list[Prompt], path: Path, max_new_tokens: int
) -> list[Answer]:
    """The target's answers, those of an earlier run from its file."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    known = {(found := msgspec.json.decode(line, type=Answer)).id: found for line in lines}
    missing = [prompt for prompt in prompts if prompt.id not in known]
    if missing:
        path.parent.mkdir(parents=True, exist_ok=True)
        model, tokenize = load_model(folder), chat_tokenizer(str(folder))
    for begin in range(0, len(missing), BATCH):
        some = missing[begin : begin + BATCH]
        asked = [tokenize(prompt) for prompt in some]
        for prompt, ids, answer in zip(
            some, asked, greedy(model, asked, max_new_tokens), strict=True
        ):
            known[prompt.id] = Answer(prompt.id, prompt.kind, ids, answer)
        text = b"".join(msgspec.json.encode(found) + b"\n" for found in known.values())
        write_atomically(path, lambda scratch, text=text: scratch.write_bytes(text))
        say(f"answered {begin + len(some)} of {len(missing)}")
    return [known[prompt.id] for prompt in prompts]


def load_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.inference_mode()
def greedy(model: Any, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    """An answer ends with the end-of-text token, if it comes."""
    width = max(map(len, prompts))
    end = model.generation_config.eos_token_id
    ends = end if isinstance(end, list) else [end]
    found = model.generate(
        torch.tensor([[0] * (width - len(ids)) + ids for ids in prompts]),
        attention_mask=torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=ends[0],
    )
    answers = []
    for answer in found[:, width:].tolist():
        stop = next((i for i, token in enumerate(answer, 1) if token in ends), len(answer))
        answers.append(answer[:stop])
    return answers


def positions_of(folder: Path, draft: Path, answered: list[Answer]) -> Recorded:
    algorithm = algorithm_of(draft)
    chain = eagle3_chains(folder, draft) if algorithm == "EAGLE3" else standalone_chains(draft)
    requests, lengths, start, correct, signals = [], [], [0], [], []
    for number, found in enumerate(answered, 1):
        if len(found.answer) < 2:  # nothing is left to draft after the first token
            continue
        made = chain(found)
        requests.append((found.kind, found.id))
        lengths.append(len(found.prompt))
        start.append(start[-1] + len(made.drafts))
        correct.append(correct_drafts(made.drafts, found.answer))
        signals.append(made.signals)
        say(f"drafted for {number} of {len(answered)}")
    return Recorded(
        Source(folder.name, draft.name, algorithm, tuple(requests)),
        lengths,
        np.array(start),
        np.concatenate(correct),
        np.concatenate(signals),
    )


def correct_drafts(drafts: np.ndarray, answer: list[int]) -> np.ndarray:
    """How many drafts of each chain [n] equal the answer from there on, none beyond its end."""
    padded = np.concatenate([np.array(answer[1:]), np.full(DEPTH, -1)])
    wanted = np.lib.stride_tricks.sliding_window_view(padded, DEPTH)[: len(drafts)]
    return np.cumprod(drafts == wanted, axis=1).sum(axis=1)


def eagle3_chains(folder: Path, draft: Path) -> Callable[[Answer], Chains]:
    """Makes the chains of one answer: row t of a head has the target's states of token t, reads
    token t + 1 and drafts token t + 2."""
    target = load_model(folder)
    table = target.get_input_embeddings().weight
    shape = read_shape(folder)
    head, ids = eagle3.load(draft, shape, table)

    @torch.inference_mode()
    def chains(found: Answer) -> Chains:
        tokens = torch.tensor([*found.prompt, *found.answer])
        told = target(tokens[None, :-1], output_hidden_states=True).hidden_states
        states = torch.cat([told[i] for i in shape.captured], -1)
        fed = head.first(states, table[tokens[None, 1:]])
        rows = torch.arange(len(found.prompt) - 1, len(tokens) - 2)
        at = eagle3.Chain(torch.zeros_like(rows), rows)
        hidden, own, drafts, signals = fed.hidden[0, rows], [], [], []
        for step in range(DEPTH):
            logits = head.logits(hidden)
            signals.append(reduced(logits))
            drafts.append(ids[logits.argmax(-1)])
            if step + 1 < DEPTH:
                hidden, _ = head.step(at, hidden, table[drafts[-1]], fed, own)
        return Chains(torch.stack(drafts, 1).numpy(), torch.stack(signals, 1).numpy())

    return chains


def standalone_chains(draft: Path) -> Callable[[Answer], Chains]:
    """Makes the chains of one answer: the draft reads all of it once, and then goes on from every
    position beside what comes later. As in SGLang it never sees the prompt's first token: the
    prompt is shifted by one, as an EAGLE head wants it."""
    model = load_model(draft)

    @torch.inference_mode()
    def chains(found: Answer) -> Chains:
        tokens = torch.tensor([*found.prompt[1:], *found.answer])
        read = model(tokens[None], use_cache=True)
        first = len(found.prompt) - 1
        parts = [
            some(torch.arange(begin, min(begin + CHUNK, len(tokens) - 1)), read, len(tokens))
            for begin in range(first, len(tokens) - 1, CHUNK)
        ]
        return Chains(*(np.concatenate(both) for both in zip(*parts, strict=True)))

    def some(last: Tensor, read: Any, length: int) -> Chains:
        """Chains after the tokens at ``last`` [n]."""
        cache = copy.deepcopy(read.past_key_values)
        cache.batch_repeat_interleave(len(last))
        mask = (torch.arange(length) <= last[:, None]).long()
        logits, drafts, signals = read.logits[0, last], [], []
        for step in range(DEPTH):
            signals.append(reduced(logits))
            drafts.append(logits.argmax(-1))
            if step + 1 < DEPTH:
                mask = torch.cat([mask, torch.ones(len(last), 1, dtype=torch.long)], 1)
                logits = model(
                    drafts[-1][:, None],
                    attention_mask=mask,
                    position_ids=(last + step + 1)[:, None],
                    past_key_values=cache,
                    use_cache=True,
                ).logits[:, -1]
        return Chains(torch.stack(drafts, 1).numpy(), torch.stack(signals, 1).numpy())

    return chains


def reduced(logits: Tensor) -> Tensor:
    """[n, 2]: top-1 probability, and entropy over the log of the vocabulary."""
    out = torch.empty(len(logits), 2)
    reduce_torch(logits, out)
    out[:, 1] /= np.log(logits.shape[-1])
    return out


def walked(made: Recorded) -> np.ndarray:
    """Correct drafts of rounds at the deepest depth, each where the one before it ended."""
    counts = []
    for begin, end in zip(made.start[:-1].tolist(), made.start[1:].tolist(), strict=True):
        while begin < end:
            counts.append(int(made.correct[begin]))
            begin += counts[-1] + 1
    return np.array(counts)


def compared(made: Recorded, trace: Path) -> dict[str, Any]:
    """With the rounds that an engine recorded at the deepest depth: acceptance of all of them, and
    how many have a position here and the same count of correct drafts there."""
    columns = read_columns([trace])
    columns = columns.only(columns.num_steps == DEPTH)
    names = {f"{kind}:{name}": i for i, (kind, name) in enumerate(made.source.requests)}
    request = np.array([names.get(name, -1) for name in columns.prompts])[columns.prompt]
    into = columns.context_len - (np.array(made.prompt_len) + 1)[request]
    row = made.start[request] + into
    here = (request >= 0) & (into >= 0) & (row < made.start[request + 1])
    same = made.correct[row[here]] == columns.num_correct_drafts[here]
    return {
        "recorded": accepted(columns.num_correct_drafts),
        "met_here": int(here.sum()),
        "same": int(same.sum()),
    }


def accepted(counts: np.ndarray) -> dict[str, Any]:
    """How often each draft is right where those before it are."""
    reached = [int((counts >= k).sum()) for k in range(DEPTH + 1)]
    return {
        "rounds": len(counts),
        "accept_length": round(1 + float(counts.mean()), 3),
        "by_position": [round(reached[k + 1] / max(1, reached[k]), 3) for k in range(DEPTH)],
    }


_last = 0.0


def say(line: str) -> None:
    """At most one line in ten seconds."""
    global _last
    if time.monotonic() - _last > 10:
        _last = time.monotonic()
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    typer.run(record)
