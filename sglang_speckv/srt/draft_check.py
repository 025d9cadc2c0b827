"""Is the draft there, whole, made for the algorithm, and does it speak the target's vocabulary?
Asked in the launcher."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sglang_speckv.config import ConfigError

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


def check_draft(cfg: Any) -> None:
    """Raise :class:`ConfigError` for a missing, broken or foreign draft.

    ``cfg`` is the resolving view of the server arguments. A target that carries its own draft
    layers (NEXTN / MTP) has no draft path and nothing to compare.
    """
    target, draft = cfg.model_path, cfg.speculative_draft_model_path
    if draft is None:
        if cfg.speculative_algorithm in ("EAGLE3", "STANDALONE"):
            raise ConfigError(
                f"{cfg.speculative_algorithm} needs a draft; "
                "add --speculative-draft-model-path DRAFT"
            )
        return
    if draft == target:
        return
    check_files(draft)
    config = _config(draft, cfg, "draft")
    check_head(config, cfg.speculative_algorithm, draft)
    _check_vocab_size(
        config.get_text_config(), _config(target, cfg, "target").get_text_config(), cfg
    )
    _check_token_strings(target, draft, cfg)


def check_files(draft: str) -> None:
    """A local draft must hold a config and readable weights (headers only are read)."""
    folder = Path(draft)
    if not folder.exists():
        if draft.startswith((".", "/", "~")) or draft.count("/") != 1:
            raise ConfigError(
                f"draft {draft!r} does not exist; give a model folder or a hub id as "
                "--speculative-draft-model-path"
            )
        return  # a hub id: SGLang downloads it
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ConfigError(f"draft {draft!r} has no config.json; it is not a model folder")
    from safetensors import SafetensorError, safe_open

    shards = sorted(folder.glob("*.safetensors"))
    others = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.gguf")]
    if folder.is_dir() and not shards and not others:
        raise ConfigError(f"draft {draft!r} holds no weights (*.safetensors); copy them there")
    for shard in shards:
        try:
            with safe_open(os.fspath(shard), framework="np"):
                pass
        except (SafetensorError, OSError) as error:
            raise ConfigError(
                f"draft weights {str(shard)!r} are broken ({error}); copy them again"
            ) from error


def check_head(config: Any, algorithm: str, draft: str) -> None:
    """Refuse an EAGLE head under an algorithm for which SGLang hands it other hidden states, or
    other token ids, than it was trained on, and a whole model under EAGLE3, which would draft
    without looking at any. ``config``: the head's, whose first architecture names
    the class that SGLang loads."""
    architecture = (getattr(config, "architectures", None) or [""])[0]
    if architecture == "LlamaForCausalLM" and getattr(config, "draft_vocab_size", None):
        raise ConfigError(
            f"draft {draft!r} has a draft_vocab_size, as EAGLE-3 heads have, and its config.json "
            f"names {architecture}, a whole model; write LlamaForCausalLMEagle3 there"
        )
    if "Eagle3" in architecture:
        kind, served = "an EAGLE-3 head", ["EAGLE3"]
    elif architecture.endswith("Eagle"):
        kind, served = "an EAGLE head of the first kind", ["EAGLE", "NEXTN"]
    elif architecture and algorithm == "EAGLE3":
        # not under EAGLE and NEXTN, which also take MTP layers, of many names
        kind, served = "a whole model", ["STANDALONE"]
    else:
        return
    if algorithm not in served:
        raise ConfigError(
            f"draft {draft!r} is {kind} ({architecture}), which {algorithm} cannot use; "
            f"set --speculative-algorithm {served[0]} or use another draft"
        )


def _config(path: str, cfg: Any, role: str) -> Any:
    from sglang.srt.utils.hf_transformers_utils import get_config

    try:
        return get_config(path, trust_remote_code=cfg.trust_remote_code)
    except Exception as error:  # transformers raises whatever the file made it raise
        raise ConfigError(f"{role} {path!r} cannot be read: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """Of messages that run over many lines, the one that says what is wrong."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else repr(error)


def _check_vocab_size(draft: Any, target: Any, cfg: Any) -> None:
    if draft.vocab_size != target.vocab_size:
        raise ConfigError(
            f"draft {cfg.speculative_draft_model_path!r} has {draft.vocab_size} tokens and target "
            f"{cfg.model_path!r} has {target.vocab_size}; use a draft made for this target"
        )
    own = getattr(draft, "draft_vocab_size", None) or draft.vocab_size
    if cfg.speculative_use_rejection_sampling and own != target.vocab_size:
        raise ConfigError(
            f"draft {cfg.speculative_draft_model_path!r} drafts from {own} of {target.vocab_size} "
            "tokens, and rejection sampling compares whole distributions; remove "
            "--speculative-use-rejection-sampling"
        )


def _check_token_strings(target: str, draft: str, cfg: Any) -> None:
    """Same size is not same vocabulary: compare every string, where the draft has a tokenizer."""
    folder = Path(draft)
    has_tokenizer = any((folder / name).is_file() for name in _TOKENIZER_FILES)
    if cfg.skip_tokenizer_init or (folder.is_dir() and not has_tokenizer):
        return
    if not folder.is_dir() and cfg.speculative_algorithm != "STANDALONE":
        return  # heads on a hub rarely ship a tokenizer, and never another one
    ours, theirs = _vocabulary(target, cfg), _vocabulary(draft, cfg)
    if ours == theirs:
        return
    by_id = {index: token for token, index in theirs.items()}
    token, index = min(
        ((t, i) for t, i in ours.items() if by_id.get(i) != t),
        key=lambda item: item[1],
        default=("<none>", len(ours)),
    )
    raise ConfigError(
        f"draft {draft!r} names token {index} {by_id.get(index)!r} where target {target!r} names "
        f"it {token!r}; use a draft with the target's tokenizer"
    )


def _vocabulary(path: str, cfg: Any) -> dict[str, int]:
    from sglang.srt.utils.hf_transformers_utils import get_tokenizer

    tokenizer = get_tokenizer(path, trust_remote_code=cfg.trust_remote_code)
    return dict(tokenizer.get_vocab())
