"""Switching the CPU engine on: environment, path, the stand-in package."""

from __future__ import annotations

import os
import subprocess
import sys
from types import ModuleType

import pytest

from sglang_speckv.config import ConfigError
from sglang_speckv.srt import cpu

STARTED_BY_ENABLE = ("SGLANG_USE_CPU_ENGINE", "PYTHONPATH", *cpu.TUNING)


@pytest.fixture
def clean(monkeypatch):
    for name in STARTED_BY_ENABLE:
        monkeypatch.setenv(name, "")  # registers the variable, so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != cpu.SHIM])
    monkeypatch.delitem(sys.modules, "sgl_kernel", raising=False)
    monkeypatch.setenv("SPECKV_CPU", "1")
    return monkeypatch


def test_enable_is_inherited_and_idempotent(clean):
    clean.setenv("PYTHONPATH", "/somewhere")
    clean.setenv("OMP_WAIT_POLICY", "active")
    assert not cpu.enabled()
    for _ in range(2):
        cpu.enable()
        assert cpu.enabled()
        assert sys.path[0] == cpu.SHIM and sys.path.count(cpu.SHIM) == 1
        assert os.environ["PYTHONPATH"] == f"{cpu.SHIM}{os.pathsep}/somewhere"
        assert os.environ["OMP_WAIT_POLICY"] == "active"
        assert os.environ["TORCH_COMPILE_DISABLE"] == "1"


def test_a_working_cuda_build_is_never_shadowed(clean):
    clean.setattr(cpu, "_cuda_usable", lambda: True)
    assert cpu.wanted()  # forced by SPECKV_CPU=1
    clean.delenv("SPECKV_CPU")
    assert not cpu.wanted()
    with pytest.raises(ConfigError, match="SPECKV_CPU=1"):
        cpu.enable()
    assert not cpu.enabled() and cpu.SHIM not in sys.path


@pytest.mark.parametrize("sign", cpu.OTHER_ACCELERATORS)
def test_another_accelerator_does_not_idle_unasked(clean, sign):
    """A driver's device file, a build of torch or a plugin of torch, each alone."""
    clean.setattr(cpu, "_cuda_usable", lambda: False)
    clean.setattr(cpu.Path, "exists", lambda path: str(path) == sign)
    installed = {"torch": "2.9.1+cu130", sign: "1.0"}
    if sign.startswith("+"):
        installed = {"torch": f"2.9.1{sign}6.4"}
    clean.setattr(cpu, "_version", lambda name: installed.get(name, ""))
    assert cpu.wanted()  # SPECKV_CPU=1 said so
    clean.setenv("SPECKV_CPU", "0")
    assert not cpu.wanted()
    clean.delenv("SPECKV_CPU")
    with pytest.raises(ConfigError, match=rf"{cpu.OTHER_ACCELERATORS[sign]}.*SPECKV_CPU=1"):
        cpu.wanted()
    clean.setattr(cpu, "_cuda_usable", lambda: True)
    assert not cpu.wanted()  # CUDA is what we serve on


def test_an_apple_gpu_does_not_idle_unasked(clean):
    clean.delenv("SPECKV_CPU")
    clean.setattr(cpu, "_cuda_usable", lambda: False)
    clean.setattr(cpu.platform, "system", lambda: "Darwin")
    clean.setattr(cpu.platform, "machine", lambda: "arm64")
    with pytest.raises(ConfigError, match="an Apple GPU"):
        cpu.wanted()


def test_a_cpu_is_wanted_where_cuda_devices_are_hidden(clean):
    """A driver without a visible device, as CUDA_VISIBLE_DEVICES= makes it."""
    clean.delenv("SPECKV_CPU")
    clean.setattr(cpu, "other_accelerator", lambda: None)
    for code, devices in ((0, 0), (100, 1)):
        clean.setattr(cpu.ctypes, "CDLL", lambda _, c=code, n=devices: Driver(c, n))
        assert cpu.wanted()
    clean.setattr(cpu.ctypes, "CDLL", lambda _: Driver(0, 1))
    assert not cpu.wanted()


class Driver:
    def __init__(self, code: int, devices: int) -> None:
        self.code, self.devices = code, devices

    def cuInit(self, flags: int) -> int:
        return self.code

    def cuDeviceGetCount(self, count) -> int:
        count._obj.value = self.devices
        return 0


def test_enable_after_another_sgl_kernel_is_refused(clean):
    module = ModuleType("sgl_kernel")
    module.__file__ = "/elsewhere/sgl_kernel/__init__.py"
    clean.setitem(sys.modules, "sgl_kernel", module)
    with pytest.raises(ConfigError, match=r"/elsewhere.*before importing sglang"):
        cpu.enable()
    assert not cpu.enabled()


def test_speckv_cpu_must_be_0_or_1(clean):
    clean.setenv("SPECKV_CPU", "yes")
    with pytest.raises(ConfigError, match="'yes'"):
        cpu.wanted()
    clean.setenv("SPECKV_CPU", "0")
    assert not cpu.wanted()


def test_nothing_is_patched_unless_enabled(clean):
    clean.setitem(sys.modules, "sglang_speckv.srt.cpu.patches", None)  # importing it would fail
    cpu.apply_if_enabled()


def run_python(code: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"SPECKV_CPU": "1"} | environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def test_importing_the_switch_is_cheap():
    code = (
        "import sys, sglang_speckv.srt.cpu; print('torch' in sys.modules, 'sglang' in sys.modules)"
    )
    assert run_python(code) == "False False"


def test_the_stand_in_in_a_spawned_process():
    """Found by a child; real torch ops; missing names import, and refuse when called."""
    child = """
import sgl_kernel, torch
from sgl_kernel.flash_attn import flash_attn_with_kvcache
print(sgl_kernel.__file__)
print(torch.ops.sgl_kernel.extend_attention_cpu.default.name())
print(hasattr(torch.ops.sgl_kernel, "convert_weight_packed"))
for call in (sgl_kernel.rmsnorm, flash_attn_with_kvcache, lambda: torch.ops.sgl_kernel.bmm_cpu):
    try:
        call()
    except (NotImplementedError, AttributeError) as error:
        print(error)
"""
    code = f"""
import subprocess, sys
from sglang_speckv.srt import cpu
cpu.enable()
subprocess.run([sys.executable, "-c", {child!r}], check=True)
"""
    lines = run_python(code).splitlines()
    assert lines[0] == f"{cpu.SHIM}/sgl_kernel/__init__.py"
    assert lines[1:3] == ["sgl_kernel::extend_attention_cpu", "False"]
    assert lines[3] == "sgl_kernel.rmsnorm is not supplied by the CPU engine"
    assert lines[4].startswith("sgl_kernel.flash_attn.flash_attn_with_kvcache is not supplied")
    assert "bmm_cpu" in lines[5]
