"""Tiny random Llamas and draft heads on disk, for tests in which the text does not matter.

Weights are seeded, so every engine that loads them sees the same model.  The layers add little
to the embeddings, so the next token depends mostly on the last one: a draft that knows the
embeddings and the output head is right often, though not always.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

Weights = dict[str, Tensor]
SPECIAL_TOKENS = ("<|bos|>", "<|eos|>")
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def tiny_llama(
    directory: Path,
    *,
    layers: int = 2,
    hidden: int = 128,
    heads: int = 2,
    kv_heads: int = 1,
    head_dim: int = 64,
    vocab: int = 320,
    seed: int = 0,
    mixing: float = 0.3,
    noise: float = 0.0,
) -> Path:
    """A Llama checkpoint with a byte-level tokenizer.

    ``mixing`` is the weight of the layers against the embeddings.  ``noise`` perturbs the weights
    of ``seed``: a draft that resembles the target of that seed.
    """
    config = _llama_config(layers, hidden, heads, kv_heads, head_dim, vocab)
    random = torch.Generator().manual_seed(seed)
    weights = {
        "model.embed_tokens.weight": torch.randn(vocab, hidden, generator=random),
        "lm_head.weight": _linear(vocab, hidden, random) * 4,
        "model.norm.weight": torch.ones(hidden),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        weights |= _named(prefix, _layer(config, hidden, mixing, random))
    if noise:
        extra = torch.Generator().manual_seed(seed + 1)
        for name, weight in weights.items():
            weights[name] = weight + noise * weight.std() * _like(weight, extra)
    return _write(directory, config, weights)


def tiny_eagle3_head(directory: Path, target: Path, *, draft_vocab: int = 256) -> Path:
    """A one-layer EAGLE-3 head for the checkpoint in ``target``, over its first ``draft_vocab``
    tokens.  Its attention looks at the token itself and hands on half of its embedding."""
    base = json.loads((target / "config.json").read_text())
    hidden, vocab, dim = base["hidden_size"], base["vocab_size"], base["head_dim"]
    heads, kv_heads = base["num_attention_heads"], base["num_key_value_heads"]
    captured = list(range(-1, base["num_hidden_layers"] - 1))[:3]
    random = torch.Generator().manual_seed(3)
    half = torch.linalg.qr(torch.randn(hidden, kv_heads * dim, generator=random)).Q.T
    spread = half.view(kv_heads, dim, hidden).repeat_interleave(heads // kv_heads, 0)
    layer = _layer(base, 2 * hidden, 0.1, random) | {
        "self_attn.q_proj.weight": _embedding_only(spread.flatten(0, 1)) * 4,
        "self_attn.k_proj.weight": _embedding_only(half) * 4,
        "self_attn.v_proj.weight": _embedding_only(half),
        "self_attn.o_proj.weight": spread.flatten(0, 1).T / (heads // kv_heads),
        "hidden_norm.weight": torch.ones(hidden),
    }
    weights = _named("midlayer.", layer) | {
        "fc.weight": _linear(hidden, len(captured) * hidden, random) * 0.1,
        "norm.weight": torch.ones(hidden),
        "lm_head.weight": load_file(target / "model.safetensors")["lm_head.weight"][:draft_vocab],
        "d2t": torch.zeros(draft_vocab, dtype=torch.int64),
        "t2d": torch.arange(vocab) < draft_vocab,
    }
    config = base | {
        "architectures": ["LlamaForCausalLMEagle3"],
        "num_hidden_layers": 1,
        "draft_vocab_size": draft_vocab,
        "eagle_config": {
            "use_aux_hidden_state": True,
            "eagle_aux_hidden_state_layer_ids": captured,
        },
    }
    return _write(directory, config, weights)


def tiny_eagle2_head(directory: Path, target: Path) -> Path:
    """A one-layer EAGLE-2 head: the target's embeddings through a weak random layer."""
    base = json.loads((target / "config.json").read_text())
    hidden = base["hidden_size"]
    random = torch.Generator().manual_seed(4)
    layer = _layer(base, hidden, 0.1, random)
    del layer["input_layernorm.weight"]
    keep = torch.cat([torch.eye(hidden), _linear(hidden, hidden, random) * 0.1], dim=1)
    weights = _named("layers.0.", layer) | {
        "embed_tokens.weight": load_file(target / "model.safetensors")["model.embed_tokens.weight"],
        "fc.weight": keep,
        "fc.bias": torch.zeros(hidden),
    }
    config = base | {"architectures": ["LlamaForCausalLMEagle"], "num_hidden_layers": 1}
    return _write(directory, config, weights)


def tiny_successors(directory: Path, successors: Sequence[int], *, layers: int) -> Path:
    """A Llama in which ``successors[t]`` follows token ``t``, nearly for certain and whatever came
    before: its layers cost what layers cost and add nothing."""
    config = _llama_config(layers, 128, 2, 1, 64, len(successors))
    random = torch.Generator().manual_seed(0)
    embeddings = torch.randn(len(successors), 128, generator=random)
    weights = {
        "model.embed_tokens.weight": embeddings,
        "lm_head.weight": torch.zeros_like(embeddings),
        "model.norm.weight": torch.ones(128),
    }
    weights["lm_head.weight"][torch.tensor(successors)] = embeddings * 0.1
    for layer in range(layers):
        weights |= _named(f"model.layers.{layer}.", _layer(config, 128, 0.0, random))
    return _write(directory, config, weights)


def tiny_mimo(directory: Path, *, layers: int = 2, mixing: float = 0.3) -> Path:
    """A MiMo checkpoint, which is a Qwen2 with a layer that predicts the token after the next one.

    That layer looks mostly at the newest token, as the target does. MiMo's own config class comes
    with its checkpoints as code; Qwen2's, which it extends, needs none.
    """
    hidden, vocab = 128, 320
    config = _llama_config(layers, hidden, 2, 1, 64, vocab) | {
        "architectures": ["MiMoForCausalLM"],
        "model_type": "qwen2",
        "num_nextn_predict_layers": 1,
    }
    random = torch.Generator().manual_seed(5)
    weights = {
        "model.embed_tokens.weight": torch.randn(vocab, hidden, generator=random),
        "lm_head.weight": _linear(vocab, hidden, random) * 4,
        "model.norm.weight": torch.ones(hidden),
    }
    for layer in range(layers):
        weights |= _named(f"model.layers.{layer}.", _qwen2_layer(config, mixing, random))
    keep = torch.cat([_linear(hidden, hidden, random) * 0.1, torch.eye(hidden)], dim=1)
    predictor = _qwen2_layer(config, 0.1, random) | {
        "input_proj.weight": keep,
        "token_layernorm.weight": torch.ones(hidden),
        "hidden_layernorm.weight": torch.ones(hidden),
        "final_layernorm.weight": torch.ones(hidden),
    }
    return _write(directory, config, weights | _named("model.mtp_layers.0.", predictor))


def _qwen2_layer(config: dict[str, Any], mixing: float, random: torch.Generator) -> Weights:
    """As a Llama's, with biases for queries, keys and values."""
    layer = _layer(config, config["hidden_size"], mixing, random)
    return layer | {
        f"self_attn.{name}_proj.bias": torch.randn(
            len(layer[f"self_attn.{name}_proj.weight"]), generator=random
        )
        for name in "qkv"
    }


def _llama_config(
    layers: int, hidden: int, heads: int, kv_heads: int, head_dim: int, vocab: int
) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocab,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "torch_dtype": "float32",
    }


def _layer(config: dict[str, Any], inputs: int, mixing: float, random: torch.Generator) -> Weights:
    """Weights of one decoder layer whose attention reads ``inputs`` features."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    query = config["num_attention_heads"] * config["head_dim"]
    key = config["num_key_value_heads"] * config["head_dim"]
    return {
        "self_attn.q_proj.weight": _linear(query, inputs, random),
        "self_attn.k_proj.weight": _linear(key, inputs, random),
        "self_attn.v_proj.weight": _linear(key, inputs, random),
        "self_attn.o_proj.weight": _linear(hidden, query, random) * mixing,
        "mlp.gate_proj.weight": _linear(inner, hidden, random),
        "mlp.up_proj.weight": _linear(inner, hidden, random),
        "mlp.down_proj.weight": _linear(hidden, inner, random) * mixing,
        "input_layernorm.weight": torch.ones(hidden),
        "post_attention_layernorm.weight": torch.ones(hidden),
    }


def _linear(outputs: int, inputs: int, random: torch.Generator) -> Tensor:
    return torch.randn(outputs, inputs, generator=random) / math.sqrt(inputs)


def _like(weight: Tensor, random: torch.Generator) -> Tensor:
    return torch.randn(weight.shape, generator=random)


def _embedding_only(weight: Tensor) -> Tensor:
    """For an input of embedding and hidden state side by side: ignore the latter."""
    return torch.cat([weight, torch.zeros_like(weight)], dim=1)


def _named(prefix: str, weights: Weights) -> Weights:
    return {prefix + name: weight for name, weight in weights.items()}


def _write(directory: Path, config: dict[str, Any], weights: Weights) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    contiguous = {name: weight.contiguous() for name, weight in weights.items()}
    save_file(contiguous, directory / "model.safetensors", metadata={"format": "pt"})
    _write_tokenizer(directory)
    return directory


def _write_tokenizer(directory: Path) -> None:
    """One token per byte, then the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL_TOKENS[0],
        "eos_token": SPECIAL_TOKENS[1],
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
