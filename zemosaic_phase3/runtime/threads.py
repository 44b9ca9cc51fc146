"""Threads: a map over items, and crews of threads that wait for the next tile."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any, ClassVar, Final, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


MOST_IDLE: Final = 8  # crews that stay after their work; a tile on the GPU has two


class Crew:
    """Threads for one piece of work, a context: they stay for the next one, which need not wait for them to start.

    Leaving it cancels what has not begun and waits for what has. A crew belongs to one caller until then, so that the
    work of one tile never queues behind another's.

    Parameters
    ----------
    workers : int
        Threads.
    """

    _idle: ClassVar[list[tuple[int, ThreadPoolExecutor]]] = []
    _at_work: ClassVar[int] = 0
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._futures: set[Future[Any]] = set()
        with self._lock:
            free = next((k for k, (size, _) in enumerate(self._idle) if size == workers), None)
            pool = None if free is None else self._idle.pop(free)[1]
            Crew._at_work += 1
        self._pool = pool or ThreadPoolExecutor(max_workers=workers, thread_name_prefix="phase3-crew")

    def submit(self, fn: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Have a thread call ``fn(*arguments)``."""
        future = self._pool.submit(fn, *arguments)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        return future

    def __enter__(self) -> Crew:
        """Return the crew."""
        return self

    def __exit__(self, *error: object) -> None:
        """Let the threads go."""
        left = list(self._futures)
        for future in left:
            future.cancel()
        wait(left)
        with self._lock:
            Crew._at_work -= 1
            if len(self._idle) < MOST_IDLE:
                self._idle.append((self._workers, self._pool))
                return
        self._pool.shutdown()

    @classmethod
    def at_work(cls) -> int:
        """Return how many crews have not been left yet."""
        return cls._at_work

    @classmethod
    def forget_idle(cls) -> None:
        """Forget the crews that wait: in a forked process their threads are not there."""
        cls._idle.clear()
        cls._at_work = 0
        cls._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Crew.forget_idle)


def parallel_map(fn: Callable[[Item], Result], items: Iterable[Item], workers: int) -> list[Result]:
    """Apply ``fn`` to every item in threads; results in the order of the items.

    The first exception (``KeyboardInterrupt`` too) cancels what has not started, waits for what has, and propagates.

    Parameters
    ----------
    fn : callable
        Called in several threads at once; useful when it releases the interpreter lock.
    items : iterable
        Read completely before the first result.
    workers : int
        Threads; 1 or less runs in this thread.
    """
    if workers <= 1:
        return [fn(item) for item in items]
    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="zemosaic")
    try:
        futures = [pool.submit(fn, item) for item in items]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        failed = [future for future in futures if future in done and future.exception() is not None]
        return [future.result() for future in failed or futures]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
