"""Requests that would end the scheduler, or that speculation cannot answer as plain decoding does,
refused with HTTP 400.

One rule in two places: where SGLang makes a request ready for a scheduler, so that a refusal is a
clean answer on every endpoint, and where a scheduler admits it, for what comes another way (several
tokenizer workers, gRPC, sessions).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

from sglang_speckv.srt import bounds, compat, cpu, exact, usage

INT32_MAX = 2**31 - 1
MOST_SAMPLES = 4096
"""Answers to a prompt that one request may ask for: each is a request of its own in memory."""
NO_HIDDEN_STATES = (
    "return_hidden_states cannot be served with speculation, whose verification has other states: "
    "leave it out, or start the server with --speckv-exact off."
)


def hook_tokenizer() -> None:
    """Check before sending. Hooking imports the modules, so only a launcher does it."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    hooks: list[tuple[compat.HookTarget, Callable[..., Any], HookType]] = [
        (compat.NORMALIZED_REQUEST, refuse_samples, HookType.BEFORE),
        (compat.TOKENIZED_REQUEST, refuse, HookType.AFTER),
        (compat.RESERVED_TOKENS, reserved_tokens, HookType.AFTER),
        (compat.ANSWER_COUNTS, usage.say_verified, HookType.AFTER),
    ]
    if cpu.enabled():
        hooks += [(call, refuse_release, HookType.BEFORE) for call in compat.MEMORY_CALLS]
    targets = [target for target, _, _ in hooks]
    if targets[0].path in HookRegistry._patched:
        return
    compat.check_signatures(targets)
    for target, hook, kind in hooks:
        HookRegistry.register(target.path, hook, kind)
    HookRegistry.apply_hooks()
    compat.check_applied(targets)


def reserved_tokens(result: int) -> int:
    """AFTER ``compute_num_reserved_tokens``: nothing of the context is kept for a head's drafts.
    They have room behind its end, as a draft model's, for which SGLang keeps nothing either."""
    return 0 if exact.is_on(_server_args()) else result


def refuse_release(*args: Any, **kwargs: Any) -> None:
    """BEFORE the calls that release and resume memory, which need a CUDA driver."""
    raise ValueError("The CPU engine keeps its memory: there is nothing to release or resume.")


def refuse_samples(self: Any) -> None:
    """BEFORE ``GenerateReqInput.normalize_batch_and_arguments``, which makes ``n`` requests."""
    asked = self.sampling_params
    for params in asked if isinstance(asked, list) else [asked]:
        n = params.get("n", 1) if isinstance(params, dict) else 1
        if not isinstance(n, Integral) or not 1 <= int(n) <= MOST_SAMPLES:
            raise ValueError(f"n is {n!r:.40}: send a number from 1 to {MOST_SAMPLES}.")


def refuse(request: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER ``TokenizerManager._create_tokenized_object``: a ``ValueError`` becomes HTTP 400.

    A session's history is known to the scheduler alone, and images write ids of their own.
    """
    model = self.model_config
    whole = getattr(request, "session_params", None) is None and request.mm_inputs is None
    reason = problem(request, request.input_ids if whole else None, model.vocab_size)
    embeddings = getattr(request, "input_embeds", None) or ()
    if any(len(row) != model.hidden_size for row in embeddings):
        reason = f"input_embeds has to be rows of {model.hidden_size} numbers."
    if exact.is_on(self.server_args) and getattr(request, "return_hidden_states", False):
        reason = NO_HIDDEN_STATES
    if reason is not None:
        raise ValueError(reason)


def reason_to_abort(reason: str | None, req: Any, *limits: Any) -> str | None:
    """AFTER the scheduler's ``validate_input_length``: a sentence aborts ``req`` with HTTP 400."""
    if reason is not None or req.vocab_size is None:
        return reason
    ids = req.origin_input_ids if req.multimodal_inputs is None else None
    try:
        if getattr(req, "return_hidden_states", False) and exact.is_on(_server_args()):
            return NO_HIDDEN_STATES
        return problem(req, ids, req.vocab_size)
    except Exception as error:  # one request's, not the scheduler's end
        return f"The request could not be checked ({error!r:.200}): send plain numbers."


def _server_args() -> Any:
    from sglang.srt.runtime_context import get_server_args

    return get_server_args()


def problem(request: Any, input_ids: Sequence[int] | None, vocab_size: int) -> str | None:
    """Why ``request``, as SGLang sends it to a scheduler or keeps it there, cannot be served.

    ``input_ids`` is its prompt, None where that is not to be judged.
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
    reason = bounds.problem(getattr(request.sampling_params, "custom_params", None))
    if reason is not None:
        return reason
    wanted = getattr(request, "top_logprobs_num", None) or 0
    if not isinstance(wanted, int) or wanted > vocab_size:
        return f"top_logprobs_num is {wanted!r:.40}: send a number up to {vocab_size}."
    start = getattr(request, "logprob_start_len", None) or 0
    if not isinstance(start, int) or start < -1:
        return f"logprob_start_len is {start!r:.40}: send a position in the prompt, or -1."
    top_k = request.sampling_params.top_k
    if top_k > INT32_MAX:  # SGLang's tensor of them is of 32 bits
        return f"top_k is {top_k}: send a number up to {INT32_MAX}, or -1 for all tokens."
    overrides = getattr(request, "positional_embed_overrides", None)
    if overrides is not None and not hasattr(overrides, "embeds"):
        return "positional_embed_overrides takes tensors, which JSON cannot carry: leave it out."
    return None
