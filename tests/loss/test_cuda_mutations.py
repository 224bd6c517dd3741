"""Mistakes in the sm_80 kernel, each of which the emulator finds; test_cuda_sm90.py has those in the Hopper kernel."""

import re
import shutil

import pytest
import torch

from cuda_emulator import emulated
from helpers.cuda import assert_found, use
from sce_fast.loss.parity import compare, make_inputs

pytestmark = pytest.mark.usefixtures("emulated_backend")

# The right text, the wrong text, and the emulator's message; None: the numbers are wrong.
MISTAKES = {
    "no wait": ("ptx::copy_async_wait<kStages - 2>();", "", "where a copy nobody has waited for will arrive"),
    "wait for too few": (
        "ptx::copy_async_wait<kStages - 2>();", "ptx::copy_async_wait<kStages - 1>();",
        "where a copy nobody has waited for will arrive",
    ),
    "no barrier": ("ptx::barrier();  // the tile is complete", "// the tile is complete", "race|nobody has waited for"),
    "ring too small": (
        "stage > 0 ? stage - 1 : kStages - 1);", "stage);", "race|nobody has waited for|a copy will arrive",
    ),
    "transposed layout": ("load_matrices_transposed(b,", "load_matrices(b,", None),
    "candidates swapped": ("n * 16 + candidate, 2 * d, depth)", "n * 16 + (candidate ^ 1), 2 * d, depth)", None),
    "mask forgotten": ("candidate != own)", "candidate != own + 1)", None),
    "beyond the end": ("row < tile.count && chunk", "chunk", "AddressSanitizer: heap-buffer-overflow"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_kernel_is_found(mistake, tmp_path, emulator):
    right, wrong, message = MISTAKES[mistake]
    shutil.copytree(emulated.KERNELS, tmp_path / "cuda")
    for header in emulated.KERNELS.parent.glob("*.h"):
        shutil.copy(header, tmp_path)
    kernel = tmp_path / "cuda" / "sm80_forward_pass.cu"
    text = kernel.read_text()
    assert text.count(right) == 1
    # One shape is enough and compiles in a few seconds.
    text = re.sub(r"    case [1-4]: return launch_config.*\n", "", text.replace(right, wrong))
    kernel.write_text(text)
    executable = emulated.build("emulate", tmp_path / "cuda")
    use(1, 1, executable=executable)
    inputs = make_inputs("converged", n=9, d=64, k=250, m=20)
    inputs.batch_keys[3:12] = inputs.key
    assert_found(message, lambda: compare("emulated", inputs.to(torch.bfloat16), row_offset=3))
