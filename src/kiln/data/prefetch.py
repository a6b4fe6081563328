"""Making things ahead of their use, in threads: decoding and resizing release the interpreter's lock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TypeVar

from kiln.errors import ResourceError

In = TypeVar("In")
Out = TypeVar("Out")

TIMEOUT_SECONDS = 300.0


def prefetched(
    make: Callable[[In], Out],
    wanted: Iterable[In],
    *,
    workers: int,
    ahead: int,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Iterator[Out]:
    """`make(item)` for each wanted item, in order, with up to `ahead` made before they are asked for.

    Args:
        make: called from several threads at once.
        wanted: may be endless.
        workers: threads; 0 makes each item when it is asked for.
        ahead: items in flight, at least the number of workers.
        timeout_seconds: how long to wait for one item.
    Raises: ResourceError: an item did not come in time. Whatever `make` raises comes at that item's turn.
    """
    if workers == 0:
        yield from map(make, wanted)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="kiln-data")
    queue: deque[Future[Out]] = deque()
    try:
        for item in wanted:
            queue.append(pool.submit(make, item))
            if len(queue) >= max(ahead, workers):
                yield _result(queue.popleft(), timeout_seconds)
        while queue:
            yield _result(queue.popleft(), timeout_seconds)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _result(future: Future[Out], timeout_seconds: float) -> Out:
    try:
        return future.result(timeout_seconds)
    except FutureTimeoutError as error:
        if future.done():
            raise
        raise ResourceError(
            "E403",
            f"a batch was not ready after {timeout_seconds:.0f} s",
            hint="is the disk or the network drive stuck? --workers 0 shows at which file",
        ) from error
