"""One request: what is asked, and what came back."""

from __future__ import annotations

from collections.abc import Callable

import msgspec


class Message(msgspec.Struct, frozen=True):
    """One turn of a chat."""

    role: str
    content: str


class Prompt(msgspec.Struct, frozen=True, rename={"kind": "class"}):
    """One request; ``kind`` is its class, such as "code". ``messages`` is a whole chat in place
    of the one user message ``prompt``, which then only shows what it is about."""

    id: str
    kind: str
    prompt: str
    messages: tuple[Message, ...] = ()

    def chat(self) -> list[dict[str, str]]:
        messages = self.messages or (Message("user", self.prompt),)
        return [{"role": message.role, "content": message.content} for message in messages]


Tokenize = Callable[[Prompt], list[int]]


class Completion(msgspec.Struct, frozen=True, array_like=True):
    """One answer. ``tokens`` as the engine counts them; ``verify_ct`` its verify rounds, 0 if not
    drafting. Times are in seconds: ``e2e_s`` (end-to-end latency) and ``ttft_s`` (time to first
    token) from sending the request, ``sent_s`` from the block's start. ``arrived`` are (time since
    sending, tokens by then), at least one."""

    output_ids: tuple[int, ...]
    verify_ct: int = 0
    num_correct_drafts: int = 0
    tokens: int = 0
    e2e_s: float = 0.0
    ttft_s: float | None = None
    sent_s: float = 0.0
    arrived: tuple[tuple[float, int], ...] = ()

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first."""
        if self.ttft_s is None or self.tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.tokens - 1)
