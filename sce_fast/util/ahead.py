"""Work that a pool of threads does ahead of time, in order and within bounds."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
BATCHES_AHEAD = 3  # with 2, a tenth of two cores idles
BYTES_AHEAD = 2**30


@dataclass(frozen=True)
class Work(Generic[T]):
    """The tasks of one batch."""

    tasks: Sequence[Callable[[], T]]
    size: int  # bytes that their results take


def run_ahead(
    batches: Iterator[Work[T]],
    *,
    threads: int,
    name: str = "clips",
    batches_ahead: int = BATCHES_AHEAD,
    bytes_ahead: int = BYTES_AHEAD,
) -> Generator[list[T], None, None]:
    """Run the tasks of each batch in a pool of threads, and yield their results batch by batch.

    While the caller uses a batch, the pool works on the next ones: at most `batches_ahead`, and fewer if their results
    take more than `bytes_ahead` together. Closing the generator cancels tasks that have not begun, waits for those that
    have, and ends the threads. Otherwise the end of the program waits for all of them. An exception in a task is raised
    where its result would have been yielded.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    pending: deque[tuple[int, list[Future[T]]]] = deque()
    try:
        following = next(batches, None)
        while following is not None or pending:
            while following is not None and (
                not pending
                or (len(pending) <= batches_ahead and following.size + sum(size for size, _ in pending) <= bytes_ahead)
            ):
                pending.append((following.size, [pool.submit(task) for task in following.tasks]))
                following = next(batches, None)
            _, futures = pending.popleft()
            yield [future.result() for future in futures]
    finally:
        pool.shutdown(cancel_futures=True)
