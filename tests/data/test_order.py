"""The order of samples: the same global batches for any number of ranks."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sce_fast.data.order import batch_of_rank, epoch_order


@given(samples=st.integers(1, 300), batch=st.integers(1, 40), ranks=st.integers(1, 4))
def test_ranks_share_the_batch_of_one_process(samples, batch, ranks):
    order = epoch_order(0, 3, samples)
    assert sorted(order) == list(range(samples))
    for step in range(samples // (batch * ranks)):
        together = np.concatenate([batch_of_rank(order, step, batch, rank, ranks) for rank in range(ranks)])
        assert np.array_equal(together, batch_of_rank(order, step, batch * ranks))


def test_epochs_have_different_orders():
    assert not np.array_equal(epoch_order(0, 0, 100), epoch_order(0, 1, 100))
    assert not np.array_equal(epoch_order(0, 0, 100), epoch_order(1, 0, 100))
