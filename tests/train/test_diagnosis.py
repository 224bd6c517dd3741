"""What a run says of a step that was not finite."""

from types import SimpleNamespace

import pytest
import torch

from sce_fast import KeyQueue
from sce_fast.distributed import Ranks
from sce_fast.train.diagnosis import Diagnosis
from sce_fast.train.guard import Guard


def message_of(folder, queue):
    guard = Guard()
    index = SimpleNamespace(kind="images", listing=SimpleNamespace(entries=lambda: ["a.jpg"]))
    guard.guarded(torch.tensor(float("nan")))
    guard.check([torch.tensor([float("nan")])], step=4)
    with pytest.raises(RuntimeError) as error:
        Diagnosis(folder, guard, queue, index, Ranks()).require_finite()
    return str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_a_queue_of_rows_that_are_too_long_is_named(tmp_path, dtype):
    queue = KeyQueue(8, 4, dtype, normalize=False)
    queue.enqueue(torch.tensor([[0.0, 3.0, 0.0, 4.0], [3e4, 4e4, 0.0, 0.0]]))
    message = message_of(tmp_path, queue)
    assert message.startswith("step 5: the loss of rank 0 is not finite; queue rows have norms up to 5e+04, expected 1")
    queue.keys[2, 1] = float("inf")
    assert "is not finite; 1 of 8 queue rows are not finite. This step" in message_of(tmp_path, queue)


def test_a_queue_of_unit_rows_is_not_blamed(tmp_path):
    message = message_of(tmp_path, KeyQueue(64, 4, torch.bfloat16))
    assert "the loss of rank 0 is not finite. This step and all later ones were masked: weights, momentum" in message
    assert "weights, momentum encoder and queue are those after step 4" in message


def test_without_a_queue_none_is_named(tmp_path):
    assert "weights and momentum encoder are those after step 4" in message_of(tmp_path, None)
