"""What is let through; what is refused is asked of real servers."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sglang_speckv.srt import exact, request_checks
from sglang_speckv.srt.request_checks import (
    MOST_SAMPLES,
    problem,
    reason_to_abort,
    refuse,
    refuse_samples,
    reserved_tokens,
)


def request(**fields: Any) -> SimpleNamespace:
    params = SimpleNamespace(stop_token_ids=fields.pop("stop_token_ids", None), top_k=1 << 30)
    return SimpleNamespace(sampling_params=params, **fields)


@pytest.mark.parametrize("ids", [[0], [9], [0, 9], None])
def test_every_token_of_the_model_may_be_sent(ids: list[int] | None) -> None:
    assert problem(request(stop_token_ids={0, 9}, top_logprobs_num=10), ids, 10) is None
    assert problem(request(), ids, 10) is None  # an embedding request has no such field


MANAGER = SimpleNamespace(
    model_config=SimpleNamespace(vocab_size=10, hidden_size=4), server_args=SimpleNamespace()
)


def test_images_write_ids_of_their_own() -> None:
    refuse(request(mm_inputs=object(), input_ids=[10**6]), MANAGER)
    req = request(multimodal_inputs=object(), origin_input_ids=[10**6], vocab_size=10)
    assert reason_to_abort(None, req) is None


def test_the_prompt_of_a_session_is_left_to_the_scheduler_which_knows_its_history() -> None:
    session = request(session_params=object(), mm_inputs=None, input_ids=[])
    refuse(session, MANAGER)
    req = request(multimodal_inputs=None, origin_input_ids=[], vocab_size=10)
    assert reason_to_abort(None, req) is not None
    session.logprob_start_len = -5
    with pytest.raises(ValueError, match="logprob_start_len is -5"):
        refuse(session, MANAGER)


def test_embeddings_have_the_models_width() -> None:
    refuse(request(mm_inputs=None, input_ids=None, input_embeds=[[0.5] * 4]), MANAGER)
    narrow = request(mm_inputs=None, input_ids=None, input_embeds=[[0.5] * 4, [0.5]])
    with pytest.raises(ValueError, match="rows of 4 numbers"):
        refuse(narrow, MANAGER)


@pytest.mark.parametrize("n", [1, 2, MOST_SAMPLES, np.int64(3), True])
def test_as_many_answers_as_fit(n: Any) -> None:
    for params in ({"n": n}, {}, [{"n": n}, {"n": n}], None, "?"):
        refuse_samples(SimpleNamespace(sampling_params=params))


@pytest.mark.parametrize("n", [0, -1, MOST_SAMPLES + 1, 2**31, 10**400, 2.0, "2", None, [1], {}])
def test_more_answers_than_that_or_none_are_refused(n: Any) -> None:
    for params in ({"n": n}, [{"n": 1}, {"n": n}]):
        with pytest.raises(ValueError, match="send a number from 1 to 4096"):
            refuse_samples(SimpleNamespace(sampling_params=params))


def test_the_schedulers_own_reason_comes_first() -> None:
    req = request(multimodal_inputs=None, origin_input_ids=[], vocab_size=10)
    assert reason_to_abort("too long", req, 100, False) == "too long"


def test_a_request_that_cannot_be_checked_is_the_only_one_that_ends() -> None:
    req = request(multimodal_inputs=None, origin_input_ids=["one", 2], vocab_size=10)
    assert "could not be checked" in (reason_to_abort(None, req) or "")


@pytest.mark.parametrize("asked", [True, "last"])
def test_hidden_states_are_refused_where_they_would_be_others(
    monkeypatch: pytest.MonkeyPatch, asked: bool | str
) -> None:
    server_args = SimpleNamespace()
    manager = SimpleNamespace(model_config=MANAGER.model_config, server_args=server_args)
    monkeypatch.setattr(request_checks, "_server_args", lambda: server_args)
    sent = request(mm_inputs=None, input_ids=[1], return_hidden_states=asked)
    req = request(multimodal_inputs=None, origin_input_ids=[1], vocab_size=10)
    req.return_hidden_states = asked
    refuse(sent, manager)
    assert reason_to_abort(None, req) is None and reserved_tokens(8) == 8
    exact.switch_on(server_args)
    with pytest.raises(ValueError, match="return_hidden_states cannot be served"):
        refuse(sent, manager)
    assert "--speckv-exact off" in (reason_to_abort(None, req) or "") and reserved_tokens(8) == 0
    sent.return_hidden_states = False
    refuse(sent, manager)
