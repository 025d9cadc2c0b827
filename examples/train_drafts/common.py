"""What every stage shares: its arguments, the device, progress on stderr."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer


def add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", type=Path, required=True, help="folder of the target model")
    parser.add_argument("--out", type=Path, required=True, help="folder or file this stage writes")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--seed", type=int, default=0)


def pick_device(args: argparse.Namespace) -> torch.device:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    if args.device != "auto":
        return torch.device(args.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def chat_ids(tokenizer: AutoTokenizer, prompt: str) -> list[int]:
    """Token ids of one user turn as a chat endpoint would send it."""
    turns = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(text, add_special_tokens=False)


def system_prefix(target: Path) -> list[int]:
    """What the chat template puts before the first user turn, as token ids."""
    tokenizer = AutoTokenizer.from_pretrained(target)
    ids = chat_ids(tokenizer, "x")
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    user_turn = [i for i, t in enumerate(ids) if t == start][-2]
    return ids[:user_turn]


class Progress:
    """One line on stderr every ten seconds."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.start = name, total, time.monotonic()
        self.last = self.start

    def show(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        if now - self.last > 10 or done == self.total:
            self.last = now
            line = f"{self.name}: {done}/{self.total} in {now - self.start:.0f} s {note}"
            print(line, file=sys.stderr, flush=True)
