"""The same work for every layer, on all cores.

A thread takes a layer, and its products stay on that thread: BLAS gains little by threads of its own in eigenproblems,
and where another process takes a core, they wait for each other thousands of times. NumPy lets go of the
interpreter's lock while it works.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from trp_onnx.process.memory import SHARE, available

T = TypeVar("T")
R = TypeVar("R")

_MOST = 8
"""Threads; each holds what one layer takes."""


def each(work: Callable[[T], R], items: Sequence[T], *, bytes_each: int = 0) -> Iterator[R]:
    """Results in the order of the items, as they come; at most a few wait to be taken.

    Args:
        work: What to do with one.
        items: What to work on.
        bytes_each: What one may take while it is worked on: so many at once as fit in memory.
    """
    from threadpoolctl import threadpool_limits

    fitting = int(SHARE * available()) // bytes_each if bytes_each else _MOST
    threads = max(1, min(_MOST, cores(), fitting, len(items)))
    pool, waiting = ThreadPoolExecutor(threads), deque[Future[R]]()
    try:
        with threadpool_limits(1, user_api="blas"):
            for item in items:
                waiting.append(pool.submit(copy_context().run, work, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def cores() -> int:
    """Those that this process may use."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(bound, allowed_threads() or bound)


def allowed_threads() -> int:
    """As OMP_NUM_THREADS says, which BLAS reads and onnxruntime does not; 0 where it says nothing."""
    said = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # a list is one number for each level
    return int(said) if said.isascii() and said.isdigit() and len(said) < 10 else 0
