"""Servers on a CUDA device, started like those of the CPU tests; skipped where there is none.

``SPECKV_REHEARSE=1`` (``make test`` sets it) runs the same tests there on a CPU, under SGLang's
overlap scheduler, its FlashInfer backend and its CUDA graph runners (:mod:`tests.rehearsal.serve`).
What needs a device itself stays skipped. ``all`` (``make rehearse``) has more kinds of servers.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from sglang_speckv.ab.client import Client
from tests.engine.conftest import (
    PAIRS,
    PROMPTS,
    TOKENS,
    Serving,
    flags,
    models,
    serving,
    serving_with_stops,
)
from tests.rehearsal import serve

__all__ = ["models"]

CUDA = torch.cuda.is_available()
REHEARSAL = not CUDA and os.environ.get("SPECKV_REHEARSE") in ("1", "all")
WHOLE = REHEARSAL and os.environ["SPECKV_REHEARSE"] == "all"
SHORT = REHEARSAL and not WHOLE
at_length = pytest.mark.skipif(SHORT, reason="make rehearse runs it")
needs_engine = pytest.mark.skipif(not (CUDA or REHEARSAL), reason="needs a CUDA device")
on_gpu = [pytest.mark.gpu, needs_engine, pytest.mark.timeout(1800)]
"""What every module here says of itself: the first start on a GPU compiles for minutes."""
needs_device = pytest.mark.skipif(not CUDA, reason="needs a CUDA device")

STEPS = (0, 1, 3, 5)
PREFILL_TOKENS = 1024
"""At once; what the CPU engine sets."""
LARGEST_GRAPH = serve.GRAPH_SIZES[-1] if REHEARSAL else 8
"""Requests up to which decoding is captured."""
BACKENDS = ("triton", "flashinfer")
DTYPE = "float32" if REHEARSAL else "bfloat16"
"""SGLang's norms and FlashInfer take 16 bits only on CUDA."""
TIE_GAP = {"float32": 5e-3, "bfloat16": 0.25}[DTYPE]
"""The target's two best tokens may swap below this."""
SIGNAL_TOLERANCE = {"float32": (5e-3, 5e-2, True), "bfloat16": (5e-2, 0.3, False)}[DTYPE]
"""Of a probability and of an entropy in nats, against Transformers in float32; and whether past a
rejected draft as well."""


@dataclass(frozen=True)
class Kind:
    """What a server is started with."""

    pair: str
    backend: str
    overlap: bool = True
    lag: str = "auto"
    ranks: int = 1

    @property
    def sleeps(self) -> bool:
        """At depth 0. Under overlap FA3 and Triton leave lengths on the device."""
        lengths_on_host = self.backend == "flashinfer" or not self.overlap
        return self.pair.startswith("standalone") and lengths_on_host

    def __str__(self) -> str:
        ranks = f"-tp{self.ranks}" if self.ranks > 1 else ""
        schedule = "overlap" if self.overlap else "plain"
        return f"{self.pair}-{self.backend}-{schedule}-{self.lag}{ranks}"


DEVICE_KINDS = [
    Kind(pair, backend) for backend in BACKENDS for pair in PAIRS if pair != "standalone-other"
]
"""EAGLE3, EAGLE and STANDALONE on every attention backend."""
REHEARSED_KINDS = [Kind(pair, "flashinfer") for pair in ("eagle3", "standalone-self")]
if WHOLE:
    REHEARSED_KINDS += [Kind("standalone-self", backend) for backend in ("fa3", "triton")]
KINDS = REHEARSED_KINDS if REHEARSAL else DEVICE_KINDS
PROFILE_S = "3" if REHEARSAL else "20"
COMMAND = serve.COMMAND if REHEARSAL else None
"""What serves; None is ``speckv serve``."""


def device_flags(backend: str, rehearsal: bool = REHEARSAL) -> list[str]:
    if rehearsal:
        return [*serve.FLAGS, "--attention-backend", backend, "--decode-log-interval", "1"]
    return [
        *("--dtype", DTYPE, "--attention-backend", backend),
        *("--sampling-backend", "pytorch", "--grammar-backend", "none"),
        *("--mem-fraction-static", "0.5", "--max-running-requests", "8"),
        *("--chunked-prefill-size", str(PREFILL_TOKENS)),
        *("--cuda-graph-max-bs-decode", str(LARGEST_GRAPH), "--decode-log-interval", "1"),
    ]


def second_flags(backend: str) -> list[str]:
    """Of a server that stands beside another one."""
    small = [] if REHEARSAL else ["--mem-fraction-static", "0.2"]
    return [*device_flags(backend), *small]


def server_flags(
    models: dict[str, str], kind: Kind, trace: Path, rehearsal: bool = REHEARSAL
) -> list[str]:
    schedule = [] if kind.overlap else ["--disable-overlap-schedule"]
    return [
        *flags(models, *PAIRS[kind.pair]),
        *device_flags(kind.backend, rehearsal),
        *schedule,
        *("--tp-size", str(kind.ranks)),
        *("--speckv", "--speckv-candidate-steps", ",".join(map(str, STEPS))),
        *("--speckv-signal-lag", kind.lag, "--speckv-trace", str(trace)),
        *("--speckv-profile", PROFILE_S if kind.lag == "auto" else "0"),
    ]


@pytest.fixture(scope="session")
def gpu_server(
    request: pytest.FixtureRequest,
    models: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Kind, Serving]]:
    """One server per :class:`Kind`, shared by every test that names it, one up at a time."""
    kind: Kind = request.param
    folder = tmp_path_factory.mktemp(str(kind))
    args = server_flags(models, kind, folder / "trace")
    with serving_with_stops(folder, *args, command=COMMAND) as running:
        running.pair, running.trace = kind.pair, folder / "trace"
        yield kind, running


def on_kinds(*kinds: Kind) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("gpu_server", kinds, indirect=True, ids=str)


class Reference:
    """Greedy answers of the target alone, which reads back those of others."""

    def __init__(self, server: Serving, path: str) -> None:
        self._server = server
        self._tokenizer = AutoTokenizer.from_pretrained(path)
        self.answers = self._ask(PROMPTS, TOKENS)

    def _ask(self, prompts: list[str], tokens: int) -> list[tuple[list[int], list[int]]]:
        answers = self._server.tokens(prompts, tokens)
        ids = [self._tokenizer(prompt)["input_ids"] for prompt in prompts]
        return list(zip(ids, answers, strict=True))

    def losses(
        self, answers: list[list[int]], prompts: list[str] = PROMPTS
    ) -> list[tuple[str, float]]:
        """Prompts whose answer is not the target's beyond ties, with the largest gap of a token."""
        found = []
        own = self.answers if prompts == PROMPTS else self._ask(prompts, len(answers[0]))
        for text, (prompt, expected), answer in zip(prompts, own, answers, strict=True):
            if answer != expected:
                gap = max(asyncio.run(self._gaps(prompt, answer)))
                if gap >= TIE_GAP:
                    found.append((text, gap))
        return found

    async def _gaps(self, prompt: list[int], answer: list[int]) -> list[float]:
        async with Client("reference", self._server.url) as client:
            return await client.gaps(prompt, answer)


class References(dict[str, Reference]):
    """By attention backend, each started when it is first asked for; they stay up for their answers
    to be questioned."""

    def __init__(self, path: str, folders: pytest.TempPathFactory, stack: ExitStack) -> None:
        self._path, self._folders, self._stack = path, folders, stack

    def __missing__(self, backend: str) -> Reference:
        folder = self._folders.mktemp(f"reference-{backend}")
        args = [*flags({"target": self._path}), *second_flags(backend)]
        server = self._stack.enter_context(serving(folder, *args, command=COMMAND))
        self[backend] = Reference(server, self._path)
        return self[backend]


@pytest.fixture(scope="session")
def references(
    models: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[References]:
    with ExitStack() as stack:
        yield References(models["target"], tmp_path_factory, stack)
