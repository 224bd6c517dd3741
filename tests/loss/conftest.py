"""The emulated CUDA kernels as a backend of the loss."""

import pytest

from cuda_emulator import emulated
from helpers import cuda as cuda_helpers
from sce_fast.loss.backends import BACKENDS


@pytest.fixture(scope="module")
def emulator():
    """A backend "emulated" beside the others."""
    emulated.build("emulate")
    yield
    BACKENDS.pop("emulated", None)


@pytest.fixture
def emulated_backend(request):
    """The backend "emulated" for tests on a CPU; tests on a GPU do not wait for the emulator's compilation."""
    cuda_helpers.KERNEL[0] = getattr(request, "param", "sm80")
    if request.node.get_closest_marker("gpu") is None:
        request.getfixturevalue("emulator")
        cuda_helpers.use()
