"""A server that answers like SGLang with a counting policy, and misbehaves when told to.

Run as ``python -m tests.unit.ab.fake_server [SGLang flags] --host H --port P``. What goes wrong
is read from the environment variable ``FAKE_SERVER``: ``NAME=FAULT,...``, where NAME is matched
against the flags (``plain`` is the server without speculation) and FAULT is one of FAULTS.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections import Counter

from aiohttp import web

from sglang_speckv.config import POLICY_NAMES, static_steps

FAULTS = (
    *("refuses", "crashes", "dies", "hangs", "garbage", "inactive", "unequal", "lossy"),
    "biased",
)
DIES_AFTER = 12  # requests
SAMPLED, BIASED = (0.4, 0.3, 0.2, 0.1), (0.55, 0.25, 0.15, 0.05)
"""How likely tokens 0 to 3 are at a temperature."""


def flag(name: str, default: str = "") -> str:
    argv = sys.argv
    return argv[argv.index(name) + 1] if name in argv else default


def kind() -> str:
    if "--speckv" in sys.argv:
        return "speckv"
    if "--speculative-adaptive" in sys.argv:
        return "ema"
    if "--speculative-num-steps" in sys.argv:
        return "fresh"
    return "default" if "--speculative-algorithm" in sys.argv else "plain"


def fault() -> str:
    pairs = (entry.split("=") for entry in os.environ.get("FAKE_SERVER", "").split(",") if entry)
    return dict(pairs).get(kind(), "")


class Fake:
    """Answers token t with (t * 7 + 1) % 50 after the last, so that text depends on the prompt; at
    a temperature with tokens drawn from one distribution, the same in every run of a test."""

    def __init__(self) -> None:
        self.fault = fault()
        self.policy = "throughput"
        self.rounds: Counter[str] = Counter()
        self.proposed = self.correct = self.served = 0
        self.recent: list[list[float]] = []

    @property
    def steps(self) -> int:
        if kind() == "plain":
            return 0
        held = self.policy.partition(":")[2] if kind() == "speckv" else ""
        return int(held or flag("--speculative-num-steps", "2"))

    def state(self) -> dict[str, object]:
        drafting = kind() != "plain"
        found: dict[str, object] = {
            "effective_max_running_requests_per_dp": int(flag("--max-running-requests", "48")),
            "max_total_tokens": int(flag("--max-total-tokens", "1000")),
            "dtype": flag("--dtype"),
            "disable_overlap_schedule": drafting or "--disable-overlap-schedule" in sys.argv,
            "speculative_algorithm": flag("--speculative-algorithm") or None,
            "speculative_adaptive": kind() == "ema",
            "speculative_num_steps": self.steps if drafting else None,
            "speculative_eagle_topk": int(flag("--speculative-eagle-topk", "4")),
        }
        if self.fault == "unequal":
            found["effective_max_running_requests_per_dp"] = 48
        if kind() == "speckv" and self.fault != "inactive":
            found["speckv"] = {
                "active": True,
                "policy": self.policy,
                "rounds": dict(self.rounds),
                "proposed_drafts": self.proposed,
                "correct_drafts": self.correct,
                "recent": self.recent[-1024:],
            }
        return found

    async def info(self, request: web.Request) -> web.Response:
        return web.json_response({"internal_states": [self.state()]})

    async def set_state(self, request: web.Request) -> web.Response:
        (key,) = (await request.json())["server_args"]
        name = key.removeprefix("speckv_policy:")
        base = name.removesuffix("#2")
        known = base in POLICY_NAMES or static_steps(base) is not None
        self.policy = name if known else self.policy
        return web.json_response([known])

    async def ok(self, request: web.Request) -> web.Response:
        return web.Response()

    async def generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.served += 1
        if self.served > DIES_AFTER:
            if self.fault == "dies":
                print("torch.OutOfMemoryError: out of memory", flush=True)
                os._exit(3)
            if self.fault == "hangs":
                await asyncio.sleep(600)
            if self.fault == "garbage":
                return web.Response(body=b"\xff\x00 not an answer")
        if not body["stream"]:
            return web.json_response({"meta_info": self.forced(body)})
        return await self.stream(request, body)

    def forced(self, body: dict[str, object]) -> dict[str, object]:
        """Log-probabilities of an answer that is read back: a token that is not the one it would
        have answered itself is two below that."""
        ids, start = body["input_ids"], body["logprob_start_len"]
        own, top, expected = [[None, ids[start], None]], [None], sum(ids[: start + 1]) % 50
        for token in ids[start + 1 :]:
            expected = (expected * 7 + 1) % 50
            own.append([-0.5 - 2.0 * (token != expected), token, None])
            top.append([[-0.5, expected, None]])
        return {"input_token_logprobs": own, "input_top_logprobs": top}

    async def stream(self, request: web.Request, body: dict[str, object]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        count = body["sampling_params"]["max_new_tokens"]
        sampled = body["sampling_params"]["temperature"] > 0
        weights = BIASED if self.fault == "biased" else SAMPLED
        chance = random.Random(f"{kind()}-{self.served}")
        token, ids, verifies, correct = sum(body["input_ids"]) % 50, [], 0, 0
        while len(ids) < count:
            await asyncio.sleep(0.001 * (1 + 0.1 * self.steps))
            accepted = min(self.steps, 1 + len(ids) % 2, count - len(ids) - 1)
            for _ in range(1 + accepted):
                token = chance.choices(range(4), weights)[0] if sampled else (token * 7 + 1) % 50
                ids.append(token)
            verifies, correct = verifies + 1, correct + accepted
            self.count(accepted)
            await self.send(response, ids, verifies, correct)
        if self.fault == "lossy":
            ids = [*ids[:-1], ids[-1] + 1]
            await self.send(response, ids, verifies, correct)
        await response.write(b"data: [DONE]\n\n")
        return response

    async def send(
        self, response: web.StreamResponse, ids: list[int], verifies: int, correct: int
    ) -> None:
        meta = {"completion_tokens": len(ids)}
        if self.steps:
            meta |= {"spec_verify_ct": verifies, "spec_num_correct_drafts": correct}
        event = json.dumps({"output_ids": ids, "meta_info": meta})
        await response.write(b"data: " + event.encode() + b"\n\n")

    def count(self, accepted: int) -> None:
        self.rounds[str(self.steps)] += 1
        self.proposed += self.steps
        self.correct += accepted
        self.recent.append([len(self.recent) * 0.01, self.steps, 1])


def main() -> None:
    fake = Fake()
    if fake.fault == "refuses":
        print("speckv: this is not served here")
        sys.exit(2)
    if fake.fault == "crashes":
        print("RuntimeError: no such device")
        sys.exit(1)
    app = web.Application()
    app.router.add_get("/health_generate", fake.ok)
    app.router.add_get("/server_info", fake.info)
    app.router.add_post("/set_internal_state", fake.set_state)
    app.router.add_post("/flush_cache", fake.ok)
    app.router.add_post("/generate", fake.generate)
    port = int(flag("--port"))
    web.run_app(app, host="127.0.0.1", port=port, print=None, shutdown_timeout=0.1)


if __name__ == "__main__":
    main()
