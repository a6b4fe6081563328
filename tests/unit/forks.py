"""Children for tests that a process must not survive, or whose limits it must not keep. No second import of torch."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path


def forked(function: Callable[[], object]) -> tuple[int, str]:
    """Run a function in a child.

    Returns: its exit status (negative: the signal that ended it; 1: it raised), and what it returned or the traceback.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of threads, of which the child uses none
        child = os.fork()
    if child == 0:
        status = 0
        try:
            text = str(function())
        except BaseException:
            text, status = traceback.format_exc(), 1
        os.write(writing, text.encode()[:60_000])
        os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), text


def mount_small_disk(place: Path, *, mib: int) -> None:
    """Give this process alone a file system of its own at `place`. Call it in a child.

    Raises: OSError: the machine does not allow it.
    """
    new_user, new_mounts = 0x10000000, 0x00020000
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(new_user | new_mounts) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    if libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", 0, f"size={mib}m".encode()) != 0:
        raise OSError(ctypes.get_errno(), "mount")


def together(function: Callable[[int], object], *, num_processes: int = 2) -> list[tuple[int, str]]:
    """Run `function(rank)` in several children at once, each with the environment that torchrun would give it.

    Returns: as `forked`, for each rank.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results: list[tuple[int, str]] = [(0, "")] * num_processes

    def start(rank: int) -> None:
        def child() -> object:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_processes, "MASTER_PORT": port}
            os.environ.update({"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in place.items()}})
            return function(rank)

        results[rank] = forked(child)

    threads = [threading.Thread(target=start, args=(rank,)) for rank in range(num_processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
