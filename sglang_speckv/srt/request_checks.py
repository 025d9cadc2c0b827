"""Requests that would end the scheduler, refused with HTTP 400.

One rule in two places: where SGLang makes a request ready for a scheduler, so that a refusal is a
clean answer on every endpoint, and where a scheduler admits it, for what comes another way (several
tokenizer workers, gRPC, sessions).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang_speckv.srt import compat


def hook_tokenizer() -> None:
    """Check before sending. Applying the hook imports the module, so only a launcher does it."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    target = compat.TOKENIZED_REQUEST
    if target.path not in HookRegistry._patched:
        compat.check_signatures([target])
        HookRegistry.register(target.path, refuse, HookType.AFTER)
        HookRegistry.apply_hooks()
        compat.check_applied([target])


def refuse(request: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER ``TokenizerManager._create_tokenized_object``: a ``ValueError`` becomes HTTP 400.

    Only the scheduler knows the history that a session's prompt continues.
    """
    if getattr(request, "session_params", None) is None and request.mm_inputs is None:
        reason = problem(request, request.input_ids, self.model_config.vocab_size)
        if reason is not None:
            raise ValueError(reason)


def reason_to_abort(reason: str | None, req: Any, *limits: Any) -> str | None:
    """AFTER the scheduler's ``validate_input_length``: a sentence aborts ``req`` with HTTP 400."""
    if reason is not None or req.multimodal_inputs is not None or req.vocab_size is None:
        return reason
    try:
        return problem(req, req.origin_input_ids, req.vocab_size)
    except Exception as error:  # one request's, not the scheduler's end
        return f"The request could not be checked ({error!r:.200}): send plain numbers."


def problem(request: Any, input_ids: Sequence[int] | None, vocab_size: int) -> str | None:
    """Why ``request``, as SGLang sends it to a scheduler or keeps it there, cannot be served.

    ``input_ids`` is its prompt, None where that is made of embeddings.
    """
    if input_ids is not None and len(input_ids) == 0:
        return "The prompt is empty: send at least one token."
    stop_ids = request.sampling_params.stop_token_ids
    for name, ids in (("The prompt", input_ids), ("stop_token_ids", stop_ids)):
        for token in (min(ids), max(ids)) if ids else ():
            if not 0 <= token < vocab_size:
                return (
                    f"{name} has token id {token}, which the model lacks: send ids from 0 to "
                    f"{vocab_size - 1}."
                )
    wanted = getattr(request, "top_logprobs_num", None) or 0
    if not isinstance(wanted, int) or wanted > vocab_size:
        return f"top_logprobs_num is {wanted!r:.40}: send a number up to {vocab_size}."
    start = getattr(request, "logprob_start_len", None) or 0
    if not isinstance(start, int) or start < -1:
        return f"logprob_start_len is {start!r:.40}: send a position in the prompt, or -1."
    return None
