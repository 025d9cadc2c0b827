"""A Llama-shaped GGUF file -> a Hugging Face model directory that SGLang loads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from sglang_speckv.config import ConfigError

CONVERTER_VERSION = 1
"""Raised whenever the converted files would change, so that old caches are rebuilt."""

_OUTER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_BLOCK = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def convert(gguf_path: Path, out: Path) -> None:
    """Write config, weights (bfloat16), generation config and tokenizer into ``out``."""
    import gguf

    try:
        reader = gguf.GGUFReader(gguf_path)
        config = llama_config(reader)
        write_weights(reader, config, out / "model.safetensors")
    except (ValueError, KeyError, OSError) as error:
        raise ConfigError(f"{gguf_path.name} is not a Llama GGUF file ({error})") from error
    _write_json(out / "config.json", config)
    tokens = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(out / "generation_config.json", tokens)
    write_tokenizer(gguf_path, out)


def llama_config(reader: Any) -> dict[str, Any]:
    """The config.json of the model in an open ``gguf.GGUFReader``."""

    def field(name: str, default: Any = None) -> Any:
        found = reader.get_field(name)
        if found is None and default is None:
            raise KeyError(f"no field {name}")
        return default if found is None else found.contents()

    architecture = field("general.architecture")
    if architecture != "llama":
        raise ValueError(f"its architecture is {architecture!r}")
    hidden = int(field("llama.embedding_length"))
    heads = int(field("llama.attention.head_count"))
    eos = int(field("tokenizer.ggml.eos_token_id"))
    names = {tensor.name for tensor in reader.tensors}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": int(field("llama.feed_forward_length")),
        "num_hidden_layers": int(field("llama.block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(field("llama.attention.head_count_kv", heads)),
        "head_dim": hidden // heads,
        "vocab_size": len(field("tokenizer.ggml.tokens")),
        # stored as float32; seven digits give the value that was meant
        "rms_norm_eps": float(f"{field('llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": float(field("llama.rope.freq_base", 10000.0)),
        "max_position_embeddings": int(field("llama.context_length")),
        "tie_word_embeddings": "output.weight" not in names,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": int(field("tokenizer.ggml.bos_token_id")),
        "eos_token_id": eos,
        "pad_token_id": int(field("tokenizer.ggml.padding_token_id", eos)),
        "dtype": "bfloat16",
    }


def write_weights(reader: Any, config: dict[str, Any], path: Path) -> None:
    import torch
    from gguf.quants import dequantize
    from safetensors.torch import save_file

    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    weights = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype("float32")
        part = tensor.name.split(".")[-2]
        if part in heads:
            values = unpermute(values, heads[part])
        weights[hf_name(tensor.name)] = torch.tensor(values).to(torch.bfloat16)
    save_file(weights, path, metadata={"format": "pt"})


def hf_name(name: str) -> str:
    """``blk.3.attn_q.weight`` -> ``model.layers.3.self_attn.q_proj.weight``."""
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if block:
        return f"model.layers.{block[1]}.{_BLOCK[block[2]]}.weight"
    return f"{_OUTER[name.removesuffix('.weight')]}.weight"


def unpermute(rows: Any, heads: int) -> Any:
    """Undo llama.cpp's order of Q and K rows (rotary pairs side by side): [heads * d, in]."""
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def write_tokenizer(gguf_path: Path, out: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name)
    tokenizer.save_pretrained(out)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
