"""Datasets that SGLang's own benchmark knows, by its names: ``sglang:NAME`` or
``sglang:NAME=PATH``. Text only; some are fetched from a hub when no path is given."""

from __future__ import annotations

import random
import sys
from argparse import Namespace
from contextlib import redirect_stdout
from typing import Any

import msgspec
import numpy as np

from sglang_speckv.bench.prompts import Message, Prompt, chat_prompt
from sglang_speckv.config import ConfigError

COUNT = 200
_NAMES = ("sharegpt", "custom", "openai", "random", "random-ids", "generated-shared-prefix")
# what SGLang's loaders read of its own command line, at its defaults or at a small size
_SETTINGS = {
    "num_prompts": COUNT,
    "prompt_suffix": "",
    "apply_chat_template": False,
    "tokenize_prompt": False,
    "sharegpt_output_len": None,
    "sharegpt_context_len": None,
    "random_input_len": 256,
    "random_output_len": 256,
    "random_range_ratio": 0.5,
    "gsp_num_groups": 8,
    "gsp_prompts_per_group": 16,
    "gsp_system_prompt_len": 512,
    "gsp_question_len": 64,
    "gsp_output_len": 64,
    "gsp_range_ratio": 1.0,
    "gsp_fast_prepare": True,
    "gsp_send_routing_key": False,
    "gsp_num_turns": 1,
    "gsp_ordered": False,
    "gsp_group_distribution": "uniform",
    "gsp_zipf_alpha": None,
    "backend": "sglang",
    "seed": 1,
}


def sglang_prompts(spec: str, target: str) -> list[Prompt]:
    """Prompts of the dataset, all of one class."""
    name, _, path = spec.partition("=")
    if name not in _NAMES:
        raise ConfigError(f"unknown dataset {name!r}; SGLang's text datasets are {_NAMES}")
    try:
        from sglang.benchmark.datasets import get_dataset
        from transformers import AutoTokenizer

        random.seed(1)
        np.random.seed(1)
        settings = Namespace(dataset_name=name, dataset_path=path, model=target, **_SETTINGS)
        with redirect_stdout(sys.stderr):  # its statistics; stdout is for our results
            rows = get_dataset(settings, AutoTokenizer.from_pretrained(target), target)
        prompts = [_prompt(f"{name}-{i}", name, row.prompt) for i, row in enumerate(rows, 1)]
    except Exception as error:  # third-party loaders fail in every way: one sentence for all
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ConfigError(f"SGLang cannot load its dataset {spec!r}: {reason[:300]}") from error
    if not prompts:
        raise ConfigError(f"SGLang's dataset {spec!r} holds no prompts")
    return prompts


def _prompt(name: str, kind: str, content: Any) -> Prompt:
    """``content`` is a text, or a chat as a list of messages."""
    if isinstance(content, str):
        return Prompt(name, kind, content)
    return chat_prompt(name, kind, msgspec.convert(content, list[Message]))
