"""``docs/exactness.md``: ``python -m tests.exact.page > docs/exactness.md``."""
# ruff: noqa: E501

from __future__ import annotations

import textwrap

from sglang_speckv.srt.exact import TABLE
from tests.exact.features import FEATURES

PAGE = """\
# The text does not change

Made by `python -m tests.exact.page` from the tables that serve and test it.

SGLang's own speculation changes some texts: it counts penalties once per round instead of once per token, leaves
some parameters out of verification, and looks at the end of an answer once per round. With `--speckv-exact on`,
the default, SpecKV serves the text that the target has without speculation, whatever the depth.

## What is not exact

- Sampled requests that take drafts follow the target's distribution. Single texts differ, as they do between two runs
  without speculation.
- Under the overlap scheduler SGLang counts a token for penalties one round late, without speculation too. The CPU
  engine does not overlap where it speculates: there a penalised text is that of `--disable-overlap-schedule`.
- Log-probabilities in streamed chats: SGLang drops those of a piece that has no text, without speculation too, and
  with it pieces are cut elsewhere.
- Watermarked requests are left to SGLang's verification.
- Ties: where two tokens are equally likely within rounding, the shape of a batch may decide.
- Nothing of this has run on a CUDA device.

## Requests that take no drafts

A request with one of these parameters gets one token per round, drawn by SGLang's own sampler from the target's
logits. Other requests of its batch speculate. `exact_rounds` in `/server_info` and `speckv:exact_rounds_total` in `/metrics`
count such rounds of requests by parameter. If a request has several of them, the first in this table is counted.

| parameter | in SGLang's verification |
|---|---|
{parameters}

`min_new_tokens` keeps a request from drafts until the minimum is reached, `min_p` only where the temperature is not
0, and `sampling_seed` where `--enable-deterministic-inference` makes SGLang follow it.

## What else is done

- An answer ends at the token that ends it in plain decoding: every token of an accepted run is looked at by itself.
- Penalties of a request that was retracted go on counting. (SGLang starts anew, without speculation too.)
- Where a sampled request sets both `top_k` and `top_p`, verification cuts by both at once, as SGLang's plain sampler
  does. (SGLang's own verification cuts by one after the other, which leaves fewer tokens.)
- A repetition penalty scales logits after the other penalties were taken off. (So does SGLang under the overlap
  scheduler. Without it the order differs from one start of SGLang to the next, and now and then so does the text.)
- Where the KV cache is nearly full, rounds run at the shallowest candidate, and no request is retracted or aborted for the room that
  drafts would take. An answer may use the whole context. (The first holds with `--speckv-exact off` as well.)
- `return_hidden_states` is refused with HTTP 400: verification has other states than decoding, or none.

## What is compared

Tests compare a server whose depth and widths are made to move from round to round with one without speculation, on tiny
models in float32. For each of these {count} features, ids, texts, token counts, finish reasons and usage have to be
equal, and log-probabilities within 1e-3:

{features}.

[`tests/exact/features.py`](../tests/exact/features.py) says what each one asks. `make test` compares each on an EAGLE-3
head or a STANDALONE draft, `make exact` all of them on EAGLE-3, EAGLE-2 and two STANDALONE drafts. In one of them the two
servers are not asked alike: for "retraction with penalty" the one without speculation gets half of the requests at a
time, so that its KV cache holds them. There SGLang forgets what a retracted request has to be penalised for.
"""


def page() -> str:
    parameters = (f"| `{parameter.name}` | {parameter.why} |" for parameter in TABLE)
    features = textwrap.fill(", ".join(name.replace("_", " ") for name in FEATURES), 120)
    return PAGE.format(parameters="\n".join(parameters), features=features, count=len(FEATURES))


if __name__ == "__main__":
    print(page(), end="")
