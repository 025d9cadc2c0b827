"""Requests whose text speculation would change, decoded as without it: the exact lane.

SGLang verifies several tokens of a request at once, and some parameters mean something else there
than in plain decoding. :data:`TABLE` names them. A request that asks for one takes one token per
round: whatever was drafted for it, none of it is accepted, and SGLang's own sampler draws its token
from the target's logits behind its newest one. Everything else of the batch speculates. Where the
engine verifies a width per request, no draft of such a request is verified at all; a batch of such
requests alone runs at the shallowest depth.

Beside the lane, :mod:`sglang_speckv.srt.joint_cut` cuts by top-k and top-p as plain decoding does,
:mod:`sglang_speckv.srt.finish` ends answers where plain decoding ends them,
:mod:`sglang_speckv.srt.penalties` counts on after a retraction, and
:mod:`sglang_speckv.srt.request_checks` refuses hidden states.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sglang_speckv.srt.fuse import Fuse

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

ROWS = "speckv_exact_rows"
"""Attribute of a verification's input: its :class:`ExactRows`."""
ASKED = "speckv_exact_asked"
"""Attribute of a request: the parameters of :data:`TABLE` that it asks for."""

_ON = "_speckv_exact"
"""Attribute of server arguments that are served with ``--speckv-exact on``."""

_PER_ROUND = "counted once per round there, not once per token"
_NOT_APPLIED = "not applied there"


def switch_on(server_args: Any) -> None:
    setattr(server_args, _ON, True)


def is_on(server_args: Any) -> bool:
    """Survives pickling to the scheduler."""
    return bool(getattr(server_args, _ON, False))


def _always(req: Any) -> bool:
    return True


@dataclass(frozen=True)
class Parameter:
    """``asks``: whether a request has it. ``lasts``: whether it still matters in the coming round;
    asked before every round of a request that has it. ``why``: what becomes of it in verification.
    """

    name: str
    why: str
    asks: Callable[[Any], bool]
    lasts: Callable[[Any], bool] = _always


def _below_minimum(req: Any) -> bool:
    return len(req.output_ids) < req.sampling_params.min_new_tokens


def _samples(req: Any) -> bool:
    return bool(req.sampling_params.top_k != 1)  # a temperature of 0 has become this


def _draws_by_seed(req: Any) -> bool:
    if req.sampling_params.sampling_seed is None or not _samples(req):
        return False
    from sglang.srt.runtime_context import get_exec

    return bool(get_exec().deterministic.enable_deterministic_inference)


TABLE = (
    Parameter(
        "frequency_penalty", _PER_ROUND, lambda req: req.sampling_params.frequency_penalty != 0.0
    ),
    Parameter(
        "presence_penalty", _PER_ROUND, lambda req: req.sampling_params.presence_penalty != 0.0
    ),
    Parameter(
        "repetition_penalty", _PER_ROUND, lambda req: req.sampling_params.repetition_penalty != 1.0
    ),
    Parameter(
        "min_new_tokens",
        _PER_ROUND,
        lambda req: req.sampling_params.min_new_tokens > 0,
        _below_minimum,
    ),
    Parameter("min_p", _NOT_APPLIED, lambda req: req.sampling_params.min_p > 0.0 and _samples(req)),
    Parameter("custom_logit_processor", _NOT_APPLIED, lambda req: bool(req.custom_logit_processor)),
    Parameter("sampling_seed", "other random numbers are made of it there", _draws_by_seed),
)
"""In the order in which one of several is named."""


def parameter_of(req: Any) -> Parameter | None:
    """Why ``req`` takes no drafts in the coming round; None where it does."""
    asked: tuple[Parameter, ...] | None = getattr(req, ASKED, None)
    if asked is None:
        asked = tuple(parameter for parameter in TABLE if parameter.asks(req))
        setattr(req, ASKED, asked)
    return next((parameter for parameter in asked if parameter.lasts(req)), None)


class ExactLane:
    """Finds such requests. ``sampler`` is SGLang's; ``group`` are the tensor-parallel ranks, None
    where there is one."""

    def __init__(self, sampler: Any, fuse: Fuse, group: Any = None) -> None:
        self.sampler = sampler
        self.fuse = fuse
        self.group = group
        self._told: set[str] = set()

    @classmethod
    def of(cls, worker: Any, fuse: Fuse) -> ExactLane:
        from sglang.srt.runtime_context import get_parallel

        parallel = get_parallel()
        group = parallel.tp_group if parallel.tp_size > 1 else None
        return cls(worker._target_worker.model_runner.sampler, fuse, group)

    def rows(self, reqs: Sequence[Any]) -> ExactRows:
        """Those of the coming round."""
        found = [parameter_of(req) for req in reqs]
        if not any(found):
            return NOBODY
        for parameter in found:
            if parameter is not None and parameter.name not in self._told:
                self._tell(parameter)
        names = tuple(None if parameter is None else parameter.name for parameter in found)
        return ExactRows(names, self)

    def _tell(self, parameter: Parameter) -> None:
        self._told.add(parameter.name)
        logger.info(
            "SpecKV: requests with %s take no drafts, for verification would change their text "
            "(%s); --speckv-exact off lets them",
            parameter.name,
            parameter.why,
        )


class ExactRows:
    """Of one round: ``names`` [bs] of the parameters that keep requests from drafts, None where a
    request speculates; none at all where all of them do. ``rows``: the requests that do not."""

    def __init__(self, names: tuple[str | None, ...] = (), lane: ExactLane | None = None) -> None:
        self.names = names
        self.rows = [row for row, name in enumerate(names) if name is not None]
        self._lane = lane

    @property
    def alone(self) -> bool:
        """There is nothing else in the batch."""
        return bool(self.rows) and len(self.rows) == len(self.names)

    def mark(self, verify_input: Any) -> None:
        if self.rows:
            setattr(verify_input, ROWS, self)

    def sample(
        self,
        verify: Callable[[], tuple[Tensor, Tensor, Tensor]],
        verify_input: Any,
        batch: Any,
        output: Any,
        mask: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What ``verify`` returns of the batch, with one token drawn plainly in these rows; its
        logits are left in ``output`` as that draw saw them, for log-probabilities."""
        assert self._lane is not None
        sampler, group, drawn = self._lane.sampler, self._lane.group, None
        at = self._on(batch.device)
        first = at * verify_input.draft_token_num
        with self._lane.fuse.guard("drawing without speculation", holds=False):
            info = self._sampling_info(batch.sampling_info, at)
            if mask is not None:
                info.grammar_mask = mask._replace(vocab_mask=mask.vocab_mask[first])
            seen = output.next_token_logits[first]
            drawn = _draw(sampler, seen, info, verify_input.positions[first], batch.return_logprob)
        predict, accept_lens, accept_index = verify()
        tokens, logits = drawn or (predict[first], None)
        tokens = tokens.to(predict.dtype)
        if group is not None:  # also by a rank that failed: the others wait for it
            tokens = group.broadcast(tokens, src=0)
        predict[first] = tokens
        accept_lens[at] = 1
        accept_index[at] = -1
        accept_index[at, 0] = first.to(accept_index.dtype)
        if logits is not None:
            output.next_token_logits[first] = logits
        return predict, accept_lens, accept_index

    def _on(self, device: Any) -> Tensor:
        from sglang.srt.sampling.sampling_batch_info import _rows_to_device_indices

        return _rows_to_device_indices(self.rows, device)

    def _sampling_info(self, info: Any, at: Tensor) -> Any:
        """SGLang's of these rows. For a forward the penalties are summed up already, and the parts
        that keep count of them are gone."""
        own = copy.copy(info)
        own.penalizer_orchestrator = _NoPenalizers()
        own.filter_batch(self.rows, at)
        own.penalizer_orchestrator = None
        for name in ("acc_additive_penalties", "acc_scaling_penalties"):
            summed = getattr(info, name)
            setattr(own, name, None if summed is None else summed[at])
        own.grammars = own.grammar_mask = own.sampling_mask_batch_indices = None
        return own


class _NoPenalizers:
    def filter(self, keep_indices: Tensor) -> None:
        pass


def _draw(
    sampler: Any, logits: Tensor, info: Any, positions: Tensor, keeps: bool
) -> tuple[Tensor, Tensor | None]:
    """Tokens [rows] from the target's ``logits`` [rows, vocabulary], and where it ``keeps`` them
    the logits that they were drawn from."""
    from sglang.srt.layers.logits_processor import LogitsProcessorOutput

    info.apply_logits_bias(logits)
    logits = sampler._preprocess_logits(logits, info)
    info.has_custom_logit_processor = False  # it has been applied, and may count its calls
    kept = logits.clone() if keeps else None
    plain = LogitsProcessorOutput(next_token_logits=logits)
    return sampler(plain, info, False, [], [], positions), kept


NOBODY = ExactRows()


def sample(
    original: Callable[..., tuple[Tensor, Tensor, Tensor]],
    verify_input: Any,
    batch: Any,
    logits_output: Any,
    grammar_mask: Any = None,
    *args: Any,
    watermark_state: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """AROUND ``eagle_sample``. A watermark is left to SGLang's verification."""

    def verify() -> tuple[Tensor, Tensor, Tensor]:
        return original(
            verify_input,
            batch,
            logits_output,
            grammar_mask,
            *args,
            watermark_state=watermark_state,
            **kwargs,
        )

    exact: ExactRows | None = getattr(verify_input, ROWS, None)
    marked = watermark_state is not None and batch.sampling_info.has_watermark_candidates
    if exact is None or marked:
        return verify()
    return exact.sample(verify, verify_input, batch, logits_output, grammar_mask)
