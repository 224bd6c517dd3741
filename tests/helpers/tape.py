"""A stand-in for a CUDA graph on a CPU: it records the operators of a step, refuses host reads, and repeats them.

As in a graph, the operators run again with the same arguments on the same memory: numbers of the host are those of the
recording, and recording changes nothing. Work of our C++ kernels is not recorded: tests take backend="reference".
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Functions of Python, and operators, for whose results the host waits for the device.
READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__", "__contains__")
WAITS = ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim",
         "unique_consecutive", "bincount", "allclose", "_assert_async")  # fmt: skip
COPIES = ("lift_fresh", "lift_fresh_copy")  # tensors made from numbers of the host, which a GPU would have to copy


class HostRead(RuntimeError):
    """A recorded step has read a tensor on the host."""


class _Calls(TorchFunctionMode):
    """Refuses functions of Python that leave no operator behind on a CPU."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in READS:
            raise HostRead(f"the step calls {function.__name__} of a tensor")
        return function(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    """Records operators with their arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[tuple[int, Tensor]]]] = []
        self.before: dict[
            int, tuple[torch.UntypedStorage, torch.UntypedStorage]
        ] = {}  # memory from outside, and a copy
        self._own: dict[int, Tensor] = {}  # tensors made inside, by their memory

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to skip it would import it, which takes seconds

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        mask = name in ("index", "index_put", "index_put_") and any(t.dtype == torch.bool for t in given)
        if name in WAITS or mask or (name == "repeat_interleave" and "Tensor" in str(function)):
            raise HostRead(f"the step waits for the device: {function}")
        if name in COPIES:
            raise HostRead(f"the step copies numbers of the host: {function}")
        for tensor in given:
            self._remember(tensor)
        result = function(*args, **kwargs)
        places = {tensor.untyped_storage().data_ptr() for tensor in given}
        made = [
            (i, leaf)
            for i, leaf in enumerate(tree_leaves(result))
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in places
        ]
        self._own |= {leaf.untyped_storage().data_ptr(): leaf for _, leaf in made}
        self.calls.append((function, args, kwargs, made))
        return result

    def _remember(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._own and storage.data_ptr() not in self.before:
            self.before[storage.data_ptr()] = storage, storage.clone()


class Tape:
    """A recorder for CapturedStep.

    Args:
        waits: what the warm-up finds.

    Attributes:
        replays: number of replays so far.
    """

    def __init__(self, waits: tuple[str, ...] = ()) -> None:
        self._waits, self.replays = waits, 0

    def aside(self) -> Any:
        return nullcontext()

    @contextmanager
    def waits(self) -> Iterator[list[str]]:
        yield list(self._waits)

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        random = torch.get_rng_state()
        # as on a GPU, where no mode is active: operators of the loss are recorded one by one
        direct = mock.patch("sce_fast.loss.api.is_in_torch_dispatch_mode", return_value=False)
        with direct, _Calls(), _Operators() as tape:
            run()
        torch.set_rng_state(random)
        for storage, before in tape.before.values():
            storage.copy_(before)

        @torch.no_grad()
        def replay() -> None:
            self.replays += 1
            for function, args, kwargs, made in tape.calls:
                results = tree_leaves(function(*args, **kwargs))
                for i, tensor in made:
                    tensor.copy_(results[i])

        return replay
