"""Work on many requests at a time, with nothing begun that nobody waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from pixlex.eval.llm.faults import RequestFailed

_K = TypeVar("_K")
_J = TypeVar("_J")
_A = TypeVar("_A")


def in_parallel(
    jobs: Iterable[tuple[_K, _J]], work: Callable[[_J, threading.Event], _A], at_once: int
) -> Iterator[tuple[_K, _A | RequestFailed]]:
    """Yield what comes of each job, as soon as it is there.

    A job is begun when there is room for it. After a fault that concerns them all no other one is begun;
    those under way end, for their answers are paid, and are yielded before the fault is raised.

    Args:
        jobs: what to do, each under its own name.
        work: does it, in a thread; the event tells it that nothing more should be sent.
        at_once: how many at a time.

    Yields:
        The name of a job, and its result or why it has none.

    Raises:
        ValueError: as `work` raises it.
    """
    stopping, fault = threading.Event(), None
    under_way: dict[Future[_A], _K] = {}
    left = iter(jobs)
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="pixlex-requests")
    try:
        while True:
            while fault is None and len(under_way) < at_once and (job := next(left, None)) is not None:
                under_way[pool.submit(work, job[1], stopping)] = job[0]
            if not under_way:
                break
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                name = under_way.pop(future)
                try:
                    result: _A | RequestFailed = future.result()
                except RequestFailed as failure:
                    if fault is not None:
                        continue  # given up because of the fault, not because of itself
                    result = failure
                except ValueError as reason:
                    fault = fault or reason
                    stopping.set()
                    continue
                yield name, result
    finally:
        stopping.set()
        pool.shutdown(cancel_futures=True)
    if fault is not None:
        raise fault
