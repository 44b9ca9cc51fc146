"""Tests of ``runtime.threads``."""

from __future__ import annotations

import os
import threading
import time

import pytest

from zemosaic_phase3.runtime import threads as threads_module


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_results_come_in_the_order_of_the_items(workers):
    def slow_at_first(n):
        time.sleep(0.02 if n == 0 else 0)
        return n * n

    assert threads_module.parallel_map(slow_at_first, iter(range(20)), workers) == [n * n for n in range(20)]
    assert threads_module.parallel_map(slow_at_first, [], workers) == []


def test_items_run_at_the_same_time():
    meeting = threading.Barrier(3, timeout=10)
    assert sorted(threads_module.parallel_map(lambda _: meeting.wait(), range(3), 3)) == [0, 1, 2]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_exception_cancels_the_rest_and_propagates(error, workers):
    started = []

    def fails(n):
        started.append(n)
        if n == 1:
            raise error("stop")
        time.sleep(0.01)

    with pytest.raises(error, match="stop"):
        threads_module.parallel_map(fails, range(1000), workers)
    assert len(started) < 100
    assert not [t for t in threading.enumerate() if t.name.startswith("zemosaic")], "no thread is left behind"


def test_a_crew_stays_for_the_next_caller_and_serves_one_at_a_time():
    threads_module.Crew.forget_idle()
    with threads_module.Crew(3) as first:
        threads = {first.submit(threading.get_ident).result() for _ in range(20)}
        with threads_module.Crew(3) as second:
            assert second.submit(threading.get_ident).result() not in threads
    with threads_module.Crew(3) as again, threads_module.Crew(3) as once_more:
        known = {crew._pool for crew in (first, second)}  # noqa: SLF001
        assert {crew._pool for crew in (again, once_more)} == known  # noqa: SLF001


def test_leaving_a_crew_waits_for_what_has_begun_and_cancels_the_rest():
    begun, done = threading.Event(), []

    def work(n):
        begun.set()
        time.sleep(0.05)
        done.append(n)

    with pytest.raises(ValueError, match="stop"), threads_module.Crew(1) as crew:
        futures = [crew.submit(work, n) for n in range(50)]
        begun.wait()
        raise ValueError("stop")
    assert done == [0]
    assert [future.cancelled() for future in futures] == [False] + [True] * 49
    with threads_module.Crew(1) as crew:
        assert crew.submit(len, "abc").result() == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_has_crews_of_its_own():
    with threads_module.Crew(2) as crew:
        crew.submit(len, "").result()
    child = os.fork()
    if child == 0:
        with threads_module.Crew(2) as crew:
            os._exit(crew.submit(len, "abc").result(timeout=10))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
