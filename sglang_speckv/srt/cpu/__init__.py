"""SGLang on a CPU: the same scheduler and workers over reference kernels.

Cheap to import; :func:`enable` comes before anything of SGLang's runtime.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import sys
from pathlib import Path

from sglang_speckv.config import ConfigError

__all__ = ["apply_if_enabled", "default_server_args", "enable", "enabled", "wanted"]

SHIM = str(Path(__file__).parent / "shim")
"""The folder of our ``sgl_kernel``."""

TUNING = {
    # Spinning threads of several processes on few cores turn 0.1 s steps into seconds.
    "OMP_WAIT_POLICY": "passive",
    # ... but a forward has hundreds of short parallel regions: spin some 50 microseconds first.
    "GOMP_SPINCOUNT": "20000",
    # Compiled CPU code needs g++ at run time and tens of seconds at the first request.
    "TORCH_COMPILE_DISABLE": "1",
    # Keep freed tensors in the heap: with glibc's defaults each one above 128 KiB is mapped and
    # faulted in anew, which costs more than gathering the KV cache does.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    # A server of which a process died would look for CUDA's core dumps for a minute before it ends.
    "SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "0",
    "SGLANG_PYSPY_DUMP_BEFORE_CRASH": "0",
}
"""Environment of the spawned processes, where the user has not set it."""


OTHER_ACCELERATORS = {
    "/dev/kfd": "an AMD GPU",
    "+rocm": "an AMD GPU",
    "+xpu": "an Intel GPU",
    "/dev/davinci_manager": "an Ascend NPU",
    "torch_npu": "an Ascend NPU",
    "habana-torch-plugin": "a Gaudi accelerator",
    "torch_musa": "a Moore Threads GPU",
}
"""By what shows them: a file of the driver, a build of torch, or a distribution that extends it."""


def wanted() -> bool:
    """No usable CUDA device here; SPECKV_CPU=1 or 0 decides instead of looking.

    Raises:
        ConfigError: there is another accelerator, which must not idle while the CPU serves.
    """
    forced = os.environ.get("SPECKV_CPU")
    if forced is None:
        if _cuda_usable():
            return False
        other = other_accelerator()
        if other is not None:
            raise ConfigError(
                f"this machine has {other} and no CUDA device, and SpecKV was tested on CUDA and "
                "CPUs only; set SPECKV_CPU=1 to serve on the CPU, or SPECKV_CPU=0 to let SGLang "
                "choose the device"
            )
        return True
    if forced not in ("0", "1"):
        raise ConfigError(f"SPECKV_CPU={forced!r} is neither 0 nor 1; unset it to let us look")
    return forced == "1"


def enable() -> None:
    """Make this process and those it spawns run SGLang on the CPU.

    Call it before SGLang is imported; calling it again changes nothing.
    """
    if not wanted():
        raise ConfigError(
            "the CPU engine would shadow a working CUDA sgl_kernel; "
            "set SPECKV_CPU=1 to serve on the CPU all the same"
        )
    kernel = sys.modules.get("sgl_kernel")
    if kernel is not None and not (kernel.__file__ or "").startswith(SHIM):
        raise ConfigError(
            f"sgl_kernel is already imported from {kernel.__file__}; "
            "enable the CPU engine before importing sglang"
        )
    os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
    for name, value in TUNING.items():
        os.environ.setdefault(name, value)
    inherited = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    os.environ["PYTHONPATH"] = os.pathsep.join(_first(inherited))
    sys.path[:] = _first(sys.path)


def enabled() -> bool:
    """Whether :func:`enable` was called here or in the process that spawned this one."""
    return os.environ.get("SGLANG_USE_CPU_ENGINE") == "1" and SHIM in sys.path


def apply_if_enabled() -> None:
    """Adjust SGLang's runtime in this process; called once plugins are loaded."""
    if enabled():
        from sglang_speckv.srt.cpu import patches

        patches.apply()


def default_server_args() -> dict[str, object]:
    """Values for the ``ServerArgs`` fields that the user left open."""
    return {
        "device": "cpu",
        "attention_backend": "intel_amx",
        "sampling_backend": "pytorch",
        "dtype": "float32",
        "disable_cuda_graph": True,
        "mem_fraction_static": 0.3,
        "max_total_tokens": 16384,
        "max_running_requests": 16,
        "chunked_prefill_size": 1024,
        "sleep_on_idle": True,
    }


def _first(paths: list[str]) -> list[str]:
    return [SHIM, *(path for path in paths if path != SHIM)]


def other_accelerator() -> str | None:
    """The accelerator that this machine or its torch was made for, other than CUDA's; asked
    without importing torch."""
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return "an Apple GPU"
    return next((name for sign, name in OTHER_ACCELERATORS.items() if _is_here(sign)), None)


def _is_here(sign: str) -> bool:
    if sign.startswith("/"):
        return Path(sign).exists()
    return sign in _version("torch") if sign.startswith("+") else bool(_version(sign))


def _version(distribution: str) -> str:
    """As installed, with its local part (``2.9.1+rocm6.4``); empty where it is not."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cuda_usable() -> bool:
    """Ask the driver, which takes no torch and honours CUDA_VISIBLE_DEVICES."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return False
    return count.value > 0
