"""Real servers on the CPU, one process group each, shared by as many tests as can use them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import torch

from sglang_speckv.ab import process as server_module
from sglang_speckv.ab.process import Server
from sglang_speckv.srt import cpu
from sglang_speckv.srt.patches_present import installed_package
from tests.engine.counted import counted
from tests.engine.stops import stops
from tests.engine.tiny_models import tiny_eagle2_head, tiny_eagle3_head, tiny_llama
from tests.forked import Forked, ForkedServer

# The references here are tiny, and waiting threads cost the servers a core.
torch.set_num_threads(1)
# SGLang imports every model that it knows, which takes 4 s of a core, in every process.
SERVED = {"llama", "llama_eagle", "llama_eagle3", "mimo", "mimo_mtp", "qwen2", "qwen2_eagle"}
_MODELS = {path.stem for path in (installed_package() / "srt" / "models").glob("*.py")}
os.environ["SGLANG_DISABLED_MODEL_ARCHS"] = ",".join(sorted(_MODELS - SERVED))
server_module._POLL_S = 0.1  # these servers are up in seconds
READY_S = 900 if torch.cuda.is_available() else 300
"""On a GPU the first start compiles kernels and captures graphs."""
STEPS = (0, 1, 3, 5)
"""Candidates of the shared servers."""
LAYERS = 2
"""Of the tiny target. An EAGLE-3 head sees what goes into each; every layer costs a millisecond of
every forward."""
PROFILE_S = "3"
"""Of a start-up profile: enough for the first batch sizes."""
ALL = os.environ.get("SPECKV_EXACT") == "all"
"""`make exact`: everything on every kind of draft; else each feature on a head or a draft model."""
PAIRS = {
    "eagle3": ("EAGLE3", "eagle3"),
    "standalone-self": ("STANDALONE", "target"),
    "eagle2": ("EAGLE", "eagle2"),
    "standalone-other": ("STANDALONE", "other"),
}
"""Shared servers by name: algorithm and draft."""
TOKENS = 24
"""Of an answer, unless a test says otherwise: some rounds at the greatest depth."""
PROMPTS = [
    "In the beginning was the word",
    "def add(a, b):",
    "12345 67890 12345",
    "A quick brown fox jumps over the lazy dog, then sleeps until the evening comes.",
]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A tiny target and a draft of every kind for it."""
    root = tmp_path_factory.mktemp("models")
    target = tiny_llama(root / "target", layers=LAYERS)
    return {
        "target": str(target),
        "eagle3": str(tiny_eagle3_head(root / "eagle3", target)),
        "eagle2": str(tiny_eagle2_head(root / "eagle2", target)),
        "alike": str(tiny_llama(root / "alike", layers=LAYERS, noise=0.1)),
        "other": str(tiny_llama(root / "other", layers=1, seed=7)),
    }


class Serving:
    """A running server and the few calls that tests make."""

    def __init__(self, url: str, log: Path) -> None:
        self.url = url
        self.log = log
        self.pair = ""
        self.trace = Path()
        self.stops_file = Path()

    def generate(
        self, prompts: list[str], max_new_tokens: int = TOKENS, **sampling: Any
    ) -> list[Any]:
        """Whole answers of one request that holds all ``prompts``, greedy unless told."""
        body = {
            "text": prompts,
            "sampling_params": {
                "temperature": 0,
                "max_new_tokens": max_new_tokens,
                "ignore_eos": True,
                **sampling,
            },
        }
        return self.post("/generate", body)

    def tokens(self, prompts: list[str], max_new_tokens: int = TOKENS) -> list[list[int]]:
        return [a["output_ids"] for a in self.generate(prompts, max_new_tokens)]

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self.command(path, body).json()

    def command(self, path: str, body: dict[str, Any]) -> requests.Response:
        answer = requests.post(self.url + path, json=body, timeout=120)
        answer.raise_for_status()
        return answer

    def set_state(self, **values: int) -> bool:
        return self.post("/set_internal_state", {"server_args": values}) == [True]

    def flush_cache(self) -> None:
        """Drop every cached prefix."""
        requests.post(self.url + "/flush_cache", timeout=60).raise_for_status()

    def select(self, policy: str) -> None:
        assert self.set_state(**{f"speckv_policy:{policy}": 1})

    def pin(self, num_steps: int) -> None:
        assert self.set_state(speckv_num_steps=num_steps)

    def state(self) -> dict[str, Any]:
        return requests.get(self.url + "/server_info", timeout=60).json()["internal_states"][0]

    def speckv(self) -> dict[str, Any]:
        return self.state()["speckv"]

    def rounds(self) -> int:
        """How many so far, at any depth."""
        return sum(self.speckv()["rounds"].values())

    @contextmanager
    def forced_rounds(self, depths: bool = False) -> Iterator[None]:
        """Where the plugin of ``tests/engine/stops`` is loaded: while the block runs, rounds of the
        policy `throughput` make and verify as many drafts as fixed sequences say, and with
        ``depths`` at most as many as another one says."""
        self.stops_file.write_text(stops.MOVING if depths else "")
        try:
            yield
        finally:
            self.stops_file.unlink()

    @contextmanager
    def shuffled_depths(self, steps: list[int], every_s: float = 0.02) -> Iterator[None]:
        """Pin another depth every few rounds while the block runs."""
        running = True

        def shuffle() -> None:
            turn = 0
            while running:
                self.pin(steps[turn % len(steps)])
                turn += 1
                time.sleep(every_s)

        with ThreadPoolExecutor(1) as pool:
            task = pool.submit(shuffle)
            try:
                yield
            finally:
                running = False
                task.result()
                self.pin(-1)


@contextmanager
def serving(tmp_path: Path, *args: str, command: Sequence[str] | None = None) -> Iterator[Serving]:
    """A server until the block ends."""
    server = ForkedServer("under test", args, tmp_path / "server.log", command)
    server.start()
    try:
        asyncio.run(server.wait_ready(READY_S))
        yield Serving(server.url, server.log)
    finally:
        server.stop()


@contextmanager
def plugged(*plugins: Any) -> Iterator[pytest.MonkeyPatch]:
    """Servers that start in this block load these plugins, modules of folders of their own."""
    with pytest.MonkeyPatch.context() as patch:
        folders = [str(Path(plugin.__file__).parent) for plugin in plugins]
        inherited = os.environ.get("PYTHONPATH", "")
        patch.setenv("PYTHONPATH", os.pathsep.join([*folders, *filter(None, [inherited])]))
        yield patch


@contextmanager
def serving_with_stops(
    folder: Path, *args: str, command: Sequence[str] | None = None
) -> Iterator[Serving]:
    """A server that has the plugin of ``tests/engine/stops``, which obeys a file of its own, and
    that of ``tests/engine/counted``. Servers that start later do not have them."""
    with ExitStack() as stack:
        with plugged(stops, counted) as patch:
            patch.setenv(stops.FILE, str(folder / "stops"))
            running = stack.enter_context(serving(folder, *args, command=command))
        running.stops_file = folder / "stops"
        yield running


@pytest.fixture
def forked_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that our own code starts in this process are forked too, and profiled no longer than
    the shared ones."""

    def spawn(server: Server) -> Forked:
        if "--speckv" in server.argv and "--speckv-profile" not in server.argv:
            server.argv += ["--speckv-profile", PROFILE_S]
        return Forked(server.argv, server.log)

    if cpu.wanted():
        monkeypatch.setattr(Server, "_spawn", spawn)


def flags(models: dict[str, str], algorithm: str | None = None, draft: str = "") -> list[str]:
    """Launch flags for the tiny target, with a draft where an algorithm is named."""
    args = ["--model-path", models["target"], "--max-total-tokens", "4096", "--random-seed", "1"]
    args += ["--constrained-json-disable-any-whitespace"]  # else it writes nothing but that
    args += ["--enable-custom-logit-processor", "--enable-priority-scheduling"]
    args += ["--tool-call-parser", "hermes"]
    if algorithm is not None:
        args += [
            "--speculative-algorithm",
            algorithm,
            "--speculative-draft-model-path",
            models.get(draft, draft),
        ]
    return args


@pytest.fixture(scope="session")
def plain_answers(
    models: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[list[int]]]:
    """Greedy answers of the target without speculation, alone and in a batch of four."""
    with serving(tmp_path_factory.mktemp("plain"), *flags(models)) as plain:
        return {
            "alone": [plain.tokens([prompt])[0] for prompt in PROMPTS],
            "batch": plain.tokens(PROMPTS),
        }


@pytest.fixture(scope="session")
def server(
    request: pytest.FixtureRequest,
    models: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Serving]:
    """One SpecKV server per pair for every module that names pairs with :func:`on_pairs`.

    pytest runs all tests of a pair together, whatever their module, so that one is up at a time.
    """
    folder = tmp_path_factory.mktemp(request.param)
    asked = ["--speckv", "--speckv-candidate-steps", ",".join(map(str, STEPS))]
    asked += ["--speckv-trace", str(folder / "trace"), "--enable-metrics"]
    asked += ["--speckv-profile", "6"]  # one request at every depth, however busy the machine is
    launch = flags(models, *PAIRS[request.param])
    with serving_with_stops(folder, *launch, *asked) as running:
        running.pair, running.trace = request.param, folder / "trace"
        yield running


def on_pairs(*names: str) -> pytest.MarkDecorator:
    """Run the tests of a module on the shared servers of these pairs, in the order of PAIRS: pytest
    groups tests by the position of a parameter."""
    assert names == tuple(PAIRS)[: len(names)]
    return pytest.mark.parametrize("server", names, indirect=True)
