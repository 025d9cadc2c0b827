"""``Engine`` and ``Runtime`` for Python: SGLang's own, with the plugin loaded first.

SGLang's constructors reject unknown keywords, and ``sgl.Runtime`` resolves its arguments in a
parent that loads no plugins; these two take ``speckv=`` and load it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sglang_speckv.config import SpecKVConfig
from sglang_speckv.srt import carrier, compat, cpu


def prepare() -> None:
    """Switch the CPU engine on where there is no CUDA, then load SGLang's plugins.

    Raises:
        ConfigError: another SGLang, or a hook that SGLang could not apply (it only logs that).
    """
    compat.check_version()
    if cpu.wanted():
        cpu.enable()
    from sglang.srt.plugins import load_plugins

    load_plugins()
    compat.check_applied(compat.loaded_hooks())


def with_speckv(
    speckv: SpecKVConfig | Mapping[str, Any] | None, server_args: dict[str, Any]
) -> dict[str, Any]:
    """SGLang's keyword arguments for serving with ``speckv`` (None: the defaults)."""
    asked = carrier.asked_in(server_args.get("speculative_adaptive_config"))
    if isinstance(speckv, SpecKVConfig):
        asked = speckv.to_dict()
    elif speckv is not None:
        asked |= dict(speckv)
    defaults = cpu.default_server_args() if cpu.wanted() else {}
    return {
        **defaults,
        **server_args,
        "speculative_adaptive": True,
        "speculative_adaptive_config": carrier.write(SpecKVConfig.from_dict(asked)),
    }


def Engine(speckv: SpecKVConfig | Mapping[str, Any] | None = None, **server_args: Any) -> Any:
    """``sglang.Engine(**server_args)`` with SpecKV choosing the draft depth.

    ``speckv`` is a :class:`SpecKVConfig` or its fields as a mapping, such as
    ``{"policy": "ema"}``. Raises :class:`ConfigError` (a ``ValueError``) for what it cannot serve.
    """
    prepare()
    import sglang

    from sglang_speckv.srt.profile_load import profile_engine

    engine = sglang.Engine(**with_speckv(speckv, server_args))
    profile_engine(engine)
    return engine


def Runtime(speckv: SpecKVConfig | Mapping[str, Any] | None = None, **server_args: Any) -> Any:
    """``sglang.Runtime(**server_args)`` with SpecKV; see :func:`Engine`."""
    prepare()
    import sglang

    return sglang.Runtime(**with_speckv(speckv, server_args))
