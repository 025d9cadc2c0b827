"""Streams of text say nothing twice.

Where tokens end inside of a character, SGLang's detokenizer sends what can be read before it and
notes how far it got. If the next tokens end where nothing can be read, its note falls back, and
what was sent is sent again. One token at a time that hardly happens. With several per round it
does, in one of five ways to cut Japanese text into rounds: "世界世界では" for "世界では". Here the
note never falls.
"""

from __future__ import annotations

from typing import Any

from sglang_speckv.srt import compat


def hook() -> None:
    """Where a detokenizer starts, or is forked."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    if compat.DETOKENIZER_STATUS.path not in HookRegistry._patched:
        compat.check_signatures([compat.DETOKENIZER_STATUS, compat.DETOKENIZE])
        HookRegistry.register(compat.DETOKENIZER_STATUS.path, keep_what_was_sent, HookType.AFTER)
        HookRegistry.apply_hooks()
        compat.check_applied([compat.DETOKENIZER_STATUS])


def keep_what_was_sent(result: None, self: Any, server_args: Any) -> None:
    """AFTER ``DetokenizerManager.init_running_status``."""
    from sglang_speckv.srt import arguments

    if not arguments.is_active(server_args):
        return
    decode = self._decode_batch_token_id_output

    def keeping(batch: Any) -> Any:
        known = self.decode_status
        sent = {rid: known[rid].sent_offset for rid in batch.rids if rid in known}
        texts = decode(batch)
        for rid, offset in sent.items():
            if rid in known:
                known[rid].sent_offset = max(known[rid].sent_offset, offset)
        return texts

    self._decode_batch_token_id_output = keeping
