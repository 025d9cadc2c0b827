from collections.abc import Iterator

import pytest

from tests.rehearsal import kernels
from tests.rehearsal.device import CpuForCuda


@pytest.fixture(scope="module")
def flashinfer_on_cpu() -> Iterator[None]:
    """FlashInfer's own Python, with kernels in torch."""
    with kernels.installed(), CpuForCuda():
        yield
