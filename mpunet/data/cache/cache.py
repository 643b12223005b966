"""A disk cache that stores each case once, as memory-mapped int16 volumes.

Cutting a random crop then reads only the crop's own bytes instead of decompressing a whole scan.

An entry's name is a hash of the case's files and of the preparation. An entry is written under a
temporary name and renamed when it is complete. So any number of processes on any number of machines
can build, read and delete entries at the same time. See docs/data_scale.md.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]  # comes with lightning

from mpunet.data.cache.entry import CachedCase, entry_size, open_entry, write_entry
from mpunet.data.cache.limit import bookkeeping_lock, make_room, parse_bytes, sweep
from mpunet.data.cache.preparation import Preparation, check_depth, entry_key, prepare
from mpunet.data.case import Case
from mpunet.io.content import content_hash, file_state, known_hash
from mpunet.io.file_lock import Lease, extend_lease, locked
from mpunet.slices.in_plane import DEPTH_AXES

__all__ = ["Cache", "CachedCase", "Preparation", "default_cache_dir"]


def default_cache_dir() -> Path:
    """Return ``$MPUNET_CACHE`` if set, else ``mpunet`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if own := os.environ.get("MPUNET_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mpunet"


class Cache:
    """A cache folder, which several processes can share.

    Args:
        folder: the folder; :func:`default_cache_dir` by default.
        limit: largest total size of all entries, in bytes or as text like "200 GB". By default
            there is no limit and entries are never deleted.
    """

    def __init__(self, folder: str | Path | None = None, *, limit: int | str | None = None) -> None:
        self.folder = Path(folder) if folder is not None else default_cache_dir()
        self.limit = None if limit is None else parse_bytes(limit)
        self._lease: Lease | None = None

    def cases(
        self, cases: Sequence[Case], preparation: Preparation, *, workers: int = 0
    ) -> list[CachedCase]:
        """Return the cached cases in the given order; build the entries that do not exist yet.

        No entry is deleted while an object returned by this call exists.

        Args:
            cases: cases to look up or build.
            preparation: how the volumes are processed.
            workers: number of processes that build entries.

        Raises:
            ValueError: if a file cannot be used, the volumes of a case do not match (see
                ``read_volume`` and ``align_pair``), or there is not enough space.
        """
        lease = self._hold()
        sweep(self.folder)
        known = [
            entry_key(case, preparation, partial(known_hash, index=self.folder / "index"))
            for case in cases
        ]
        with locked(bookkeeping_lock(self.folder)):
            lease.add(key for key in known if key is not None)
        found = [
            key and self._open(key, case, preparation.ratio)
            for key, case in zip(known, cases, strict=True)
        ]
        missing = [i for i, entry in enumerate(found) if entry is None]
        make_room(self.folder, 0, self.limit)
        build = partial(
            _build, folder=self.folder, limit=self.limit, lease=lease.path, preparation=preparation
        )
        if preparation.lung_masks == "lungmask":
            workers = 0  # its network uses the GPU or all cores
        for i, key in zip(
            missing, _mapped(build, [cases[i] for i in missing], workers), strict=True
        ):
            found[i] = self._open(key, cases[i], preparation.ratio)
        return [self._opened(entry, case) for entry, case in zip(found, cases, strict=True)]

    def turned_cases(
        self, cases: Sequence[Case], preparation: Preparation, *, spacing: float, workers: int = 0
    ) -> list[CachedCase]:
        """Return the thin volumes of cases twice: with height and with width as the depth axis.

        Args:
            cases: cases to look up or build; their thick series are ignored.
            preparation: how the volumes are processed otherwise.
            spacing: slice spacing of the turned volumes in mm.
            workers: number of processes that build entries.

        Raises:
            ValueError: as :meth:`cases`.
        """
        thin_only = [case._replace(thick=None) for case in cases]
        turned = (
            preparation._replace(depth_axis=axis, turned_spacing=spacing) for axis in DEPTH_AXES
        )
        return [case for each in turned for case in self.cases(thin_only, each, workers=workers)]

    def _hold(self) -> Lease:
        if self._lease is None:
            with locked(bookkeeping_lock(self.folder)):
                self._lease = Lease(self.folder / "leases")
        return self._lease

    def _open(self, key: str, case: Case, ratio: int) -> CachedCase | None:
        path = _entry_path(self.folder, key)
        entry = open_entry(path, key, case.name, self._lease)
        if entry is not None:
            # It may have been built for a smaller ratio.
            check_depth(entry.layout["thin"][1][0], ratio, case.thin)
            _touch(path)
        return entry

    def _opened(self, entry: CachedCase | str | None, case: Case) -> CachedCase:
        if not isinstance(entry, CachedCase):
            raise ValueError(
                f"The cache entry of {case.name!r} in {self.folder} was deleted as soon as it was "
                "built; start again."
            )
        return entry


def _mapped(build: Any, cases: Sequence[Case], workers: int) -> Iterator[str]:
    """Yield the results in the order of the cases, with a progress bar on a terminal.

    After the first error, builds that have not started are cancelled.
    """
    bar = partial(
        tqdm,
        total=len(cases),
        desc="Preparing volumes",
        unit="volume",
        disable=None if len(cases) > 1 else True,
    )
    workers = min(workers, len(cases))
    if workers < 2:
        yield from bar(map(build, cases))
        return
    pool = ProcessPoolExecutor(workers)
    try:
        yield from bar(pool.map(build, cases))
    except BrokenProcessPool as error:
        raise ValueError(
            f"One of {workers} processes that prepare volumes was killed, perhaps because memory "
            "ran out; use fewer processes (num_workers)."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _build(
    case: Case, *, folder: Path, limit: int | None, lease: Path, preparation: Preparation
) -> str:
    """Build the case's entry if it does not exist, and return its key."""
    key = entry_key(case, preparation, partial(content_hash, index=folder / "index"))
    if key is None:
        raise ValueError(f"{case.name}: its files cannot be hashed.")
    with locked(bookkeeping_lock(folder)):
        extend_lease(lease, [key])
    path = _entry_path(folder, key)
    # Another process that needs the same entry waits here and then finds it. There are only 256
    # lock files, because lock files are never deleted and one per key would accumulate.
    with locked(folder / "locks" / key[:2]) as exclusive:
        if open_entry(path, key, case.name) is None:
            # The writer of an unfinished file holds this lock, so what is found here was left by a
            # process that was killed.
            for left in folder.glob(f"{_unfinished(key)}*") if exclusive else ():
                left.unlink(missing_ok=True)
            _write(case, key, path, limit, preparation)
    return key


def _write(case: Case, key: str, path: Path, limit: int | None, preparation: Preparation) -> None:
    before = [file_state(file) for file in _files(case)]
    arrays, about = prepare(case, preparation)
    if [file_state(file) for file in _files(case)] != before:
        raise ValueError(
            f"The files of {case.name!r} changed while they were read; "
            "start again when they are complete."
        )
    unfinished = path.with_name(f"{_unfinished(key)}{uuid.uuid4().hex}.partial")
    try:
        make_room(path.parent, entry_size(arrays), limit)
        write_entry(unfinished, arrays, key=key, **about)
        unfinished.replace(path)
    except OSError as error:
        raise ValueError(
            f"The cache entry of {case.name!r} cannot be written: "
            f"{(error.strerror or str(error)).lower()}: {path.parent}; free space, "
            "or give another folder (cache_dir) or a limit (cache_limit)."
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


def _files(case: Case) -> list[Path]:
    return [path for path in (case.thin, case.thick, case.lung) if path is not None]


def _entry_path(folder: Path, key: str) -> Path:
    return folder / f"{key}.safetensors"


def _unfinished(key: str) -> str:
    """Return the prefix of the names of unfinished entries that this machine writes.

    It contains the host name because locks held on other machines may not be visible here.
    """
    return f"{key}.{socket.gethostname()}."


def _touch(path: Path) -> None:
    """Set the file's modification time, which records when the entry was last used.

    Entries are written only once, so it has no other use. Access times are often disabled.
    """
    try:
        os.utime(path)
    except OSError:  # owned by another user, or read-only: only the owner updates the time
        return
