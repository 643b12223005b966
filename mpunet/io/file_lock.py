"""Locks between processes, on one machine or on several that share a file system.

The locks are kernel locks (``flock``, which Linux forwards to an NFS server; on Windows, those of
filelock). They end with their process, even if it is killed. Some file systems do not support
locks, so correct results must not depend on them: without locks, work may be done twice, and leased
names and temporary files count as in use forever.
"""

from __future__ import annotations

import sys
import uuid
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedWriter
from pathlib import Path
from typing import Any

from filelock import FileLock

if sys.platform != "win32":
    import fcntl

__all__ = ["Lease", "extend_lease", "held_file", "leased", "locked", "remove_unless_held"]

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


def held_file(path: Path) -> BufferedWriter:
    """Create a file that :func:`remove_unless_held` keeps until it is closed.

    Windows needs no lock for that: it does not remove a file that is open.

    Raises:
        FileExistsError: if there is such a file.
    """
    while True:
        file = path.open("xb")
        if sys.platform != "win32":
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        if path.exists():
            return file
        file.close()  # another process removed it before it was locked


def remove_unless_held(path: Path) -> bool:
    """Remove a file if no process holds it, and return whether it was removed.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "file"
    >>> with held_file(path):
    ...     remove_unless_held(path)
    False
    >>> remove_unless_held(path)
    True
    """
    try:
        with path.open("rb+") as file:  # an exclusive lock over NFS needs write access
            if sys.platform != "win32":
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        if sys.platform == "win32":
            path.unlink()
    except OSError:
        return False
    return True


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
        file = held_file(self.path)
        _OWN.add(self.path)
        weakref.finalize(self, _end, file, self.path)

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
        if path in _OWN or not remove_unless_held(path):
            names.update(path.read_text().split())
    return names


def _end(file: BufferedWriter, path: Path) -> None:
    _OWN.discard(path)
    file.close()
