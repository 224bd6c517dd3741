"""The pool of threads that works ahead: order, bounds, errors and the end."""

import threading
import time

import pytest

from sce_fast.util.ahead import Work, run_ahead


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())  # other tests may have left theirs to the garbage collector
    yield
    assert not set(threading.enumerate()) - before


def test_results_come_in_order_whatever_the_order_in_which_they_are_done():
    def task(number):
        time.sleep(0.002 * (7 - number % 8))
        return number

    batches = (Work([lambda n=8 * b + i: task(n) for i in range(8)], 1) for b in range(4))
    assert list(run_ahead(batches, threads=4)) == [list(range(8 * b, 8 * b + 8)) for b in range(4)]


@pytest.mark.parametrize(("size", "ahead"), [(1, 2), (40, 2), (60, 1), (200, 0)])
def test_work_ahead_is_bounded_by_batches_and_bytes(size, ahead):
    begun = []

    def batches():
        for number in range(10):
            begun.append(number)
            yield Work([lambda n=number: n], size)

    results = run_ahead(batches(), threads=2, batches_ahead=2, bytes_ahead=120)
    for used in range(6):
        assert next(results) == [used]
        assert len(begun) == used + 1 + ahead + 1  # one more is looked at for its size
    results.close()


def test_closing_cancels_what_has_not_begun_and_waits_for_what_has():
    begun, ended, may_end = [], [], threading.Event()

    def task(number):
        begun.append(number)
        if number:
            may_end.wait()
        ended.append(number)

    results = run_ahead((Work([lambda n=n: task(n)], 1) for n in range(10)), threads=1)
    next(results)
    while 1 not in begun:
        time.sleep(0.001)
    threading.Timer(0.05, may_end.set).start()
    results.close()
    assert begun == ended == [0, 1]


def test_an_exception_comes_where_the_result_would_have_come():
    tasks = [lambda: 1, lambda: 2, lambda: 1 // 0, lambda: 4]
    results = run_ahead((Work([task], 1) for task in tasks), threads=2)
    assert [next(results), next(results)] == [[1], [2]]
    with pytest.raises(ZeroDivisionError):
        next(results)
