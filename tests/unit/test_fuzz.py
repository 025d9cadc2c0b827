"""Whatever stands in what users, clients and other machines hand us, it is taken or refused with
the error that is documented, and with no other one."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from sglang_speckv.ab.journal import read_journal
from sglang_speckv.ab.options import options_from, read_options
from sglang_speckv.ab.prompts import find_prompts
from sglang_speckv.config import ConfigError, SpecKVConfig
from sglang_speckv.offline.artifact import load_artifact
from sglang_speckv.offline.columns import read_columns
from sglang_speckv.policy import Batch, create_policy
from sglang_speckv.replay.cost import _prior_from
from sglang_speckv.replay.positions import read_positions
from sglang_speckv.srt import carrier
from sglang_speckv.srt.request_checks import problem, reason_to_abort

OFTEN = settings(
    max_examples=int(os.environ.get("SPECKV_EXAMPLES", "30")),
    suppress_health_check=list(HealthCheck),
)
numbers = st.integers(-3, 20) | st.integers() | st.floats() | st.sampled_from([10**400, -0.0])
words = st.text(max_size=6) | st.sampled_from(["throughput", "static:3", "1", "²", "\ud800", "\0"])
leaves = st.none() | st.booleans() | numbers | words
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4)
)


def taken_or_refused(read: Callable[[], Any]) -> Any:
    """What is read, None where it is refused in one sentence."""
    try:
        return read()
    except ConfigError as error:
        assert "\n" not in str(error)
        return None


def records(**fields: Any) -> st.SearchStrategy[Any]:
    """Objects with some of the fields that a reader knows, each of a value that may be right."""
    known = {name: st.just(value) | values for name, value in fields.items()}
    return st.fixed_dictionaries({}, optional=known) | st.dictionaries(words, values, max_size=3)


SLOT = records(candidate_steps=[0, 3], ema_alpha=0.2, update_interval=5, up_hysteresis=0.1)
SETTINGS = records(
    policy="ema",
    candidate_steps=[0, 1, 3],
    ema_config={"1": {"candidate_steps": [0, 3]}},
    signal_lag="late",
    trace="x",
    artifact="x",
    profile_seconds=3,
    stop="off",
    width="off",
)
CARRIER = records(speckv={}) | st.fixed_dictionaries(
    {"speckv": SETTINGS}, optional={"1": SLOT, "8": SLOT, "warmup_batches": values}
)


@given(CARRIER | values)
@OFTEN
def test_an_adaptive_config(tmp_path: Path, asked: Any) -> None:
    """What the launcher takes, the engine's policies can be made of, and its file is the same."""
    path = tmp_path / "carrier.json"
    path.write_text(json.dumps(asked))
    config = taken_or_refused(lambda: carrier.read(str(path)))
    if config is None:
        return
    again = json.loads(json.dumps(config.to_dict()))
    assert SpecKVConfig.from_dict(again) == config or "NaN" in json.dumps(again)
    for name in ("ema", "throughput", f"static:{config.candidate_steps[0]}"):
        policy = taken_or_refused(
            lambda name=name: create_policy(  # type: ignore[misc]
                name, config.candidate_steps, 3, adaptive_config=config.ema_config
            )
        )
        if policy is not None:
            assert policy.decide(Batch(2)).num_steps in config.candidate_steps


@given(st.integers(1, 100_000), st.sampled_from(['{"a":', "[", '{"speckv":', '{"1":[']))
@OFTEN
def test_a_deep_adaptive_config(tmp_path: Path, levels: int, bracket: str) -> None:
    """Whole and cut off, before our own key and inside of it."""
    path = tmp_path / "deep.json"
    closing = "".join({"{": "}", "[": "]"}[c] for c in reversed(bracket) if c in "{[")
    inside = bracket * levels + "1" + closing * levels
    for text in (inside, f'{{"a": {inside}, "speckv": {{}}}}', f'{{"speckv": {{"a": {inside}'):
        path.write_text(text)
        config = taken_or_refused(lambda: carrier.read(str(path)))
        assert config is None or levels <= 16


FIELDS = {
    "round": 1,
    "request": "code:1:a",
    "batch_size": 2,
    "context_len": 9,
    "num_steps": 2,
    "num_correct_drafts": 1,
    "top1_prob": [0.5, -1.0],
    "entropy": [0.1, 2.0],
    "first_prob": 0.5,
    "seconds": 0.01,
    "num_verified": 1,
}
HEADER = {
    "target": "t",
    "draft": "d",
    "algorithm": "EAGLE3",
    "draft_vocab_size": 100,
    "candidate_steps": [0, 2],
}
sane = st.just(FIELDS)
record = sane | st.builds(lambda new: {**FIELDS, **new}, records(**FIELDS)) | values
header = st.just(HEADER) | st.builds(lambda new: {**HEADER, **new}, records(**HEADER)) | values


@given(header, st.lists(record, max_size=4), st.integers(0, 400), st.integers(0, 255))
@OFTEN
def test_a_trace(tmp_path: Path, first: Any, rows: list[Any], place: int, byte: int) -> None:
    path = tmp_path / "trace.jsonl.gz"
    content = b"".join(json.dumps(line).encode() + b"\n" for line in [first, *rows])
    packed = bytearray(gzip.compress(content))
    for damaged in (False, True):
        if damaged:
            packed[place % len(packed)] = byte
        path.write_bytes(packed)
        columns = taken_or_refused(lambda: read_columns([path]))
        if columns is not None:
            assert len(columns) == len(columns.signals) > 0
            assert (columns.num_correct_drafts <= columns.num_verified).all()
            assert (columns.num_verified <= columns.num_steps).all()
            assert not (columns.seconds <= 0).any()


def test_a_trace_that_unpacks_to_far_more_than_it_is(tmp_path: Path) -> None:
    path = tmp_path / "bomb.jsonl.gz"
    pack = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    with path.open("wb") as file:
        for _ in range(64):
            file.write(pack.compress(bytes(1 << 20)))
        file.write(pack.flush())
    assert taken_or_refused(lambda: read_columns([path])) is None


PROMPT = st.one_of(
    records(id="a", prompt="x", **{"class": "code"}),
    records(messages=[{"role": "user", "content": "x"}], body={"messages": []}),
    records(conversations=[{"from": "human", "value": "x"}], conversation=[{"role": "user"}]),
    records(turns=["a", "b"], question_id=3, category="writing"),
    values,
)


@given(st.lists(PROMPT, max_size=3), st.booleans())
@OFTEN
def test_a_file_of_prompts(tmp_path: Path, entries: list[Any], as_list: bool) -> None:
    path = tmp_path / f"prompts.{'json' if as_list else 'jsonl'}"
    lines = "\n".join(map(json.dumps, entries))
    path.write_text(json.dumps(entries) if as_list else lines)
    prompts = taken_or_refused(lambda: find_prompts(str(path)))
    for prompt in prompts or []:
        assert prompt.id and prompt.kind and prompt.chat()


OPTIONS = records(target="a", drafts=["a=b"], arms=["speckv"], concurrency=[1], minutes=3)


@given(OPTIONS | values, st.binary(max_size=40))
@OFTEN
def test_a_file_of_options(tmp_path: Path, asked: Any, text: bytes) -> None:
    path = tmp_path / "ab.yaml"
    for content in (json.dumps(asked).encode(), text):
        path.write_bytes(content)
        found = taken_or_refused(lambda: read_options(path))
        if found is not None:
            taken_or_refused(lambda found=found: options_from(found, "ab.yaml"))  # type: ignore[misc]


ROWS = records(rows=[{"batch_size": 1, "num_steps": 3, "seconds": 0.05}])
row = st.builds(
    lambda new: {"batch_size": 1, "num_steps": 3, "seconds": 0.05, **new},
    records(batch_size=1, num_steps=3, seconds=0.05),
)


@given(ROWS | values | st.builds(lambda found: {"rows": found}, st.lists(row, max_size=4)))
@OFTEN
def test_a_file_of_round_times(tmp_path: Path, asked: Any) -> None:
    path = tmp_path / "cost.json"
    path.write_text(json.dumps(asked))
    prior = taken_or_refused(lambda: _prior_from(path))
    if prior is not None:
        assert np.isfinite(prior.seconds).all() and (prior.seconds > 0).all()


@given(st.lists(records(arm=0, index=0, seconds=1.0) | values, max_size=3), st.binary(max_size=9))
@OFTEN
def test_a_journal(tmp_path: Path, lines: list[Any], rest: bytes) -> None:
    path = tmp_path / "blocks.jsonl"
    path.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines) + rest)
    taken_or_refused(lambda: read_journal(path))


SOURCE = {"target": "t", "draft": "d", "algorithm": "EAGLE3", "requests": [["code", "1"]]}
ARRAYS = {
    "prompt_len": np.array([3]),
    "start": np.array([0, 4]),
    "correct": np.array([1, 0, 2, 1], dtype=np.uint8),
    "signals": np.full((4, 2, 2), 0.5, dtype=np.float16),
}
array = st.builds(
    lambda shape, kind, fill: np.full(shape, fill, dtype=kind),
    st.lists(st.integers(0, 5), max_size=4),
    st.sampled_from(["int64", "uint8", "float16", "float64", "bool"]),
    st.integers(0, 5),
)


@given(
    st.fixed_dictionaries({}, optional={name: array for name in (*ARRAYS, "other")}),
    st.just(SOURCE) | st.builds(lambda new: {**SOURCE, **new}, records(**SOURCE)) | values,
    st.integers(0, 500),
    st.integers(0, 255),
)
@OFTEN
def test_a_file_of_positions(
    tmp_path: Path, arrays: dict[str, Any], source: Any, place: int, byte: int
) -> None:
    path = tmp_path / "positions.safetensors"
    content = bytearray(save({**ARRAYS, **arrays}, {"speckv": json.dumps(source)}))
    for damaged in (False, True):
        if damaged:
            content[place % len(content)] = byte
        path.write_bytes(content)
        found = taken_or_refused(lambda: read_positions(path))
        if found is not None:
            assert len(found.signals) == len(found.context) == len(found) == found.start[-1]


@given(st.binary(max_size=200))
@OFTEN
def test_an_artifact_of_any_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "artifact.safetensors"
    path.write_bytes(content)
    assert taken_or_refused(lambda: load_artifact(path)) is None


@given(
    ids=st.none() | st.lists(values, max_size=3) | values,
    stop_ids=st.none() | st.lists(values, max_size=3) | values,
    top_k=values,
    fields=records(top_logprobs_num=2, logprob_start_len=-1, positional_embed_overrides=None),
)
@OFTEN
def test_a_request_at_a_scheduler(ids: Any, stop_ids: Any, top_k: Any, fields: Any) -> None:
    params = SimpleNamespace(stop_token_ids=stop_ids, top_k=top_k)
    req = SimpleNamespace(
        sampling_params=params,
        origin_input_ids=ids,
        multimodal_inputs=None,
        vocab_size=10,
        **{name: value for name, value in fields.items() if name.isidentifier()},
    )
    reason = reason_to_abort(None, req)
    assert reason is None or (isinstance(reason, str) and "\n" not in reason)
    if reason is None and isinstance(ids, list):
        assert ids and problem(req, ids, 10) is None
