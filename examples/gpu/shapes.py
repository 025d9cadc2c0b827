"""Models without weights: a config and a tokenizer are all that dummy loading needs.

SGLang fills such a model with random numbers (``--load-format dummy``), so what a round costs can
be measured without a hub. What a random draft gets accepted means nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

MAX_POSITIONS = 16384


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama. ``tied``: input and output embeddings are one."""

    layers: int
    hidden: int
    intermediate: int
    head_dim: int
    kv_heads: int
    vocab: int = 128256
    tied: bool = False

    @property
    def heads(self) -> int:
        return self.hidden // self.head_dim

    def scaled(self, layers: int, hidden: int) -> Shape:
        """The same proportions at another depth and width (a multiple of the head size)."""
        if hidden % self.head_dim:
            raise ValueError(f"hidden size {hidden} is not a multiple of {self.head_dim}")
        return replace(
            self,
            layers=layers,
            hidden=hidden,
            intermediate=self.intermediate * hidden // self.hidden,
            kv_heads=max(1, self.kv_heads * hidden // self.hidden),
        )


LLAMA_8B = Shape(32, 4096, 14336, 128, 8)
"""Llama 3 8B."""
LLAMA_1B = Shape(16, 2048, 8192, 64, 8, tied=True)
"""Llama 3.2 1B."""
EAGLE3_DRAFT_VOCAB = 32000


def write_llama(folder: Path, shape: Shape) -> Path:
    """A Llama of this shape."""
    return _write(folder, _config(shape) | {"architectures": ["LlamaForCausalLM"]})


def write_eagle3_head(folder: Path, target: Shape, draft_vocab: int = EAGLE3_DRAFT_VOCAB) -> Path:
    """A one-layer EAGLE-3 head for a target of this shape."""
    own = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "num_hidden_layers": 1,
        "draft_vocab_size": min(draft_vocab, target.vocab),
        "tie_word_embeddings": False,
    }
    return _write(folder, _config(target) | own)


def _config(shape: Shape) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "max_position_embeddings": MAX_POSITIONS,
        "tie_word_embeddings": shape.tied,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "torch_dtype": "bfloat16",
    }


def _write(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    # Dummy loading reads no weights, but SpecKV refuses a draft folder that holds none.
    save_file({"unused": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    _write_tokenizer(folder)
    return folder


def _write_tokenizer(folder: Path) -> None:
    """One token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|bos|>", "<|eos|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": "<|eos|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
