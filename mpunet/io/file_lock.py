"""Locks between processes, on one machine or on several that share a file system.

The locks are kernel locks (``flock``, which Linux forwards to an NFS server). They end with their
process, even if it is killed. Some file systems do not support locks, so correct results must not
depend on them: without locks, work may be done twice, and leased names count as in use forever.
"""

from __future__ import annotations

import os
import uuid
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["Lease", "leased", "locked"]

# Leases of this process and, after a fork, of its parent. If locks belong to the process (NFS), the
# lock would end when the process opens and closes its own lock file.
_OWN: set[Path] = set()


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold an exclusive lock on a file; create the file if it is missing.

    Wait while another process holds the lock.

    Yields:
        False if the file system does not support locks. Other processes may then hold the lock too.

    >>> import tempfile
    >>> with locked(Path(tempfile.mkdtemp()) / "lock"):
    ...     pass
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # No fallback: a lock that is only a file would remain after its process is killed.
    lock = FileLock(path, mode=0o666, fallback_to_soft=False)
    try:
        lock.acquire()
    except (NotImplementedError, OSError):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


class Lease:
    """Names that this process uses, published for :func:`leased` in other processes.

    The lease ends when this object is deleted, at the latest when the process ends. A process that
    is forked in the meantime holds the lease too.

    Args:
        folder: folder of the lease files. Create, extend and read leases under the same lock.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / uuid.uuid4().hex
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        _try_lock(descriptor)
        _OWN.add(self.path)
        weakref.finalize(self, _end, descriptor, self.path)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # the lease belongs to this process: others unpickle None

    def add(self, names: Iterable[str]) -> None:
        """Add names to the lease."""
        extend_lease(self.path, names)


def extend_lease(path: Path, names: Iterable[str]) -> None:
    """Add names to the lease at ``path``.

    Does the same as :meth:`Lease.add`, for a process that works for the holder of the lease.
    """
    with path.open("a") as file:
        file.writelines(f"{name}\n" for name in names)


def leased(folder: Path) -> set[str]:
    """Return all names that running processes use.

    Leases of processes that have ended are deleted.
    """
    names: set[str] = set()
    for path in folder.iterdir() if folder.is_dir() else ():
        if path in _OWN or _is_held(path):
            names.update(path.read_text().split())
        else:
            path.unlink(missing_ok=True)
    return names


def _is_held(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDWR)
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _end(descriptor: int, path: Path) -> None:
    _OWN.discard(path)
    os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    """Return whether the lock was acquired.

    False also if the file system does not support locks.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
