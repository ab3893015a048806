"""What fits into this machine's memory, asked before it is taken.

A process that takes more than there is, is killed without a word; so whoever is about to take much says how much.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from pathlib import Path

from trp_onnx.errors import ModelError, TrpOnnxError

SHARE = 0.8
"""Part of the free memory that one step may take."""

_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """No search for garbage meanwhile: of millions of objects that stay it would look at each again and again."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def available() -> int:
    """Bytes that this process can still take: of the machine, its container and its own limit; 2**62 if unknown."""
    return max(0, min(_of_machine(), _of_container(), _of_process()))


def check_room(wanted: int, what: str, error: type[TrpOnnxError] = ModelError) -> None:
    """Refuse what would not fit.

    Args:
        wanted: Bytes.
        what: What they are for, as the subject of a sentence.
        error: What is raised.

    Raises:
        TrpOnnxError: Of the given kind.
    """
    if wanted < 64 << 20:  # not worth asking
        return
    free = int(SHARE * available())
    if wanted > free:
        raise error(f"{what} takes {_size(wanted)} of memory, and {_size(free)} are free for it here")


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _of_machine() -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024
    with contextlib.suppress(OSError, ValueError, AttributeError):  # macOS knows the whole, not the free
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 2**62


def _of_container() -> int:
    for limit, used in _CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number: there is no limit
            return int(Path(limit).read_text(encoding="ascii")) - int(Path(used).read_text(encoding="ascii"))
    return 2**62


def _of_process() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 2**62
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return 2**62
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        return limit - pages * os.sysconf("SC_PAGE_SIZE")
    return limit
