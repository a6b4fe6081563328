"""Making things ahead of their use, in threads: decoding and resizing release the interpreter's lock."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from queue import SimpleQueue
from typing import TypeVar

from kiln.errors import ResourceError

In = TypeVar("In")
Out = TypeVar("Out")

TIMEOUT_SECONDS = 300.0
GRACE_SECONDS = 2.0
"""How long threads that are busy when nobody wants their items any more are waited for."""


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
    tasks: SimpleQueue[tuple[Future[Out], In] | None] = SimpleQueue()
    threads = [
        threading.Thread(target=_work, args=(make, tasks), name="kiln-data", daemon=True) for _ in range(workers)
    ]
    queue: deque[Future[Out]] = deque()
    try:
        for thread in threads:
            thread.start()
        for item in wanted:
            queue.append(Future())
            tasks.put((queue[-1], item))
            if len(queue) >= max(ahead, workers):
                yield _result(queue.popleft(), timeout_seconds)
        while queue:
            yield _result(queue.popleft(), timeout_seconds)
    finally:
        for future in queue:
            future.cancel()
        _dismiss(threads, tasks)


def _work(make: Callable[[In], Out], tasks: SimpleQueue[tuple[Future[Out], In] | None]) -> None:
    while (task := tasks.get()) is not None:
        future, item = task
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(make(item))
        except BaseException as error:  # noqa: BLE001 - raised at this item's turn, in the thread that asked for it
            future.set_exception(error)


def _dismiss(threads: list[threading.Thread], tasks: SimpleQueue) -> None:
    """Let the threads end. They are daemons, so one that is stuck for ever cannot keep the process from ending."""
    for _ in threads:
        tasks.put(None)
    until = time.monotonic() + GRACE_SECONDS
    for thread in threads:
        if thread.is_alive() and thread is not threading.current_thread():
            thread.join(max(0.0, until - time.monotonic()))


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
