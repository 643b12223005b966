"""Each case once as int16 on disk, memory-mapped: a random crop then costs its own bytes, not the decompression of a scan.

Entries are named after the bytes of the case's files and what was done to them. They are written under another name and renamed when
whole, so that any number of processes on any number of machines may build, read and delete them at once. See docs/data_scale.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm  # type: ignore[import-untyped]  # comes with lightning

from mpunet.data.cache.entry import FORMAT, CachedCase, entry_size, open_entry, write_entry
from mpunet.data.cache.limit import bookkeeping_lock, make_room, parse_bytes, sweep
from mpunet.data.case import Case
from mpunet.data.checks import examine_volumes, refuse
from mpunet.data.lung_source import LungMasks, find_lungs, lung_source
from mpunet.data.pairs import align_pair
from mpunet.geometry import grid_spacing, thin_depth
from mpunet.io.content import content_hash, file_state, known_hash
from mpunet.io.file_lock import Lease, extend_lease, locked
from mpunet.io.rplhr import reads_as_rplhr
from mpunet.io.scan_file import read_volume
from mpunet.lungs.packed import PackedMask
from mpunet.slices.in_plane import DepthAxis, turned

__all__ = ["Cache", "CachedCase", "Preparation", "default_cache_dir"]


class Preparation(NamedTuple):
    """What is done to a case's volumes before they are stored.

    Attributes:
        ratio: thick spacing / thin spacing.
        slice_axis: stored axis along which slices are stacked; found per file if None.
        lung_masks: where masks come from, see :func:`mpunet.data.lung_source.lung_source`.
        depth_axis: axis in plane that is to be depth, for cases without a thick series, see :mod:`mpunet.slices.in_plane`.
        turned_spacing: slice spacing of such volumes in mm.
        examine: refuse what :func:`mpunet.data.checks.examine_volumes` refuses.
    """

    ratio: int
    slice_axis: int | None = None
    lung_masks: LungMasks = "auto"
    depth_axis: DepthAxis | None = None
    turned_spacing: float = 1.0
    examine: bool = True


def default_cache_dir() -> Path:
    """``$MPUNET_CACHE``, else ``mpunet`` below ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if own := os.environ.get("MPUNET_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mpunet"


class Cache:
    """A folder of entries, for this and any other process.

    Args:
        folder: where; :func:`default_cache_dir` by default.
        limit: bytes that all entries may take together, or a text like "200 GB"; without one, nothing is ever deleted.
    """

    def __init__(self, folder: str | Path | None = None, *, limit: int | str | None = None) -> None:
        self.folder = Path(folder) if folder is not None else default_cache_dir()
        self.limit = None if limit is None else parse_bytes(limit)
        self._lease: Lease | None = None

    def cases(
        self, cases: Sequence[Case], preparation: Preparation, *, workers: int = 0
    ) -> list[CachedCase]:
        """The cases, in their order; those that have no entry get one. None of them is deleted while a result of this call lives.

        Args:
            workers: processes that build entries.

        Raises:
            ValueError: if a file cannot be used, the case's volumes do not match (see ``read_volume`` and ``align_pair``), or there
                is not enough space.
        """
        lease = self._hold()
        sweep(self.folder)
        known = [
            _key(case, preparation, partial(known_hash, index=self.folder / "index"))
            for case in cases
        ]
        with locked(bookkeeping_lock(self.folder)):
            lease.add(key for key in known if key is not None)
        found = [key and self._open(key, case) for key, case in zip(known, cases, strict=True)]
        missing = [i for i, entry in enumerate(found) if entry is None]
        make_room(self.folder, 0, self.limit)
        build = partial(
            _build, folder=self.folder, limit=self.limit, lease=lease.path, preparation=preparation
        )
        if preparation.lung_masks == "lungmask":
            workers = 0  # its network takes the GPU, or all cores
        for i, key in zip(
            missing, _mapped(build, [cases[i] for i in missing], workers), strict=True
        ):
            found[i] = self._open(key, cases[i])
        return [self._opened(entry, case) for entry, case in zip(found, cases, strict=True)]

    def _hold(self) -> Lease:
        if self._lease is None:
            with locked(bookkeeping_lock(self.folder)):
                self._lease = Lease(self.folder / "leases")
        return self._lease

    def _open(self, key: str, case: Case) -> CachedCase | None:
        path = _entry_path(self.folder, key)
        entry = open_entry(path, key, case.name, self._lease)
        if entry is not None:
            _touch(path)
        return entry

    def _opened(self, entry: CachedCase | str | None, case: Case) -> CachedCase:
        if not isinstance(entry, CachedCase):
            raise ValueError(
                f"The cache entry of {case.name!r} in {self.folder} was deleted as soon as it was built; start again."
            )
        return entry


def _mapped(build: Any, cases: Sequence[Case], workers: int) -> Iterator[str]:
    """Results in the order of the cases, with a bar on a terminal; the first error stops what did not begin."""
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
            f"One of {workers} processes that prepare volumes was killed, perhaps for want of memory; try fewer (num_workers)."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _build(
    case: Case, *, folder: Path, limit: int | None, lease: Path, preparation: Preparation
) -> str:
    """Key of the case's entry, which is whole when this returns."""
    key = _key(case, preparation, partial(content_hash, index=folder / "index"))
    if key is None:
        raise ValueError(f"{case.name}: its files cannot be hashed.")
    with locked(bookkeeping_lock(folder)):
        extend_lease(lease, [key])
    path = _entry_path(folder, key)
    # Who wants the same entry waits here and then finds it. 256 locks: a file for each key would stay for ever.
    with locked(folder / "locks" / key[:2]) as alone:
        if open_entry(path, key, case.name) is None:
            for left in (
                folder.glob(f"{_unfinished(key)}*") if alone else ()
            ):  # its writer held the lock, so it was killed
                left.unlink(missing_ok=True)
            _write(case, key, path, limit, preparation)
    return key


def _write(case: Case, key: str, path: Path, limit: int | None, preparation: Preparation) -> None:
    before = [file_state(file) for file in _files(case)]
    arrays, about = _prepare(case, preparation)
    if [file_state(file) for file in _files(case)] != before:
        raise ValueError(
            f"The files of {case.name!r} changed while they were read; start again when they are complete."
        )
    unfinished = path.with_name(f"{_unfinished(key)}{uuid.uuid4().hex}.partial")
    try:
        make_room(path.parent, entry_size(arrays), limit)
        write_entry(unfinished, arrays, key=key, **about)
        unfinished.replace(path)
    except OSError as error:
        raise ValueError(
            f"The cache entry of {case.name!r} cannot be written: {(error.strerror or str(error)).lower()}: {path.parent}; free space, "
            "or give another folder (cache_dir) or a limit (cache_limit)."
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


def _prepare(
    case: Case, preparation: Preparation
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """What is stored: ``thin``, perhaps ``thick``, and ``lung`` packed, each (D, H, W); and what is told beside it."""
    axis, ratio = preparation.slice_axis, preparation.ratio
    thin = read_volume(case.thin, slice_axis=axis, intensity=case.intensity)
    thick = (
        None
        if case.thick is None
        else read_volume(case.thick, slice_axis=axis, intensity=case.intensity)
    )
    if preparation.examine:
        refuse(examine_volumes(thin, thick, ratio=ratio), name=case.name)
    slab, spacing = thin.slab, grid_spacing(thin.slab_affine)
    lung = find_lungs(case, thin, preparation.lung_masks)
    if (depth_axis := preparation.depth_axis) is not None:
        slab, lung, spacing = turned(
            slab, spacing, lung, axis=depth_axis, thin_spacing=preparation.turned_spacing
        )
    if len(slab) < (needed := thin_depth(2, ratio)):
        raise ValueError(
            f"Expected at least {needed} thin slices at ratio {ratio}, got {len(slab)} in {case.thin}."
        )
    arrays: dict[str, npt.NDArray[Any]] = {}
    used = slice(None)
    if thick is not None:
        thick_used, used = align_pair(thick, thin, ratio)
        arrays["thick"] = thick.slab[thick_used]
    lung = lung[used]
    arrays |= {"thin": slab[used], "lung": PackedMask.pack(lung).bits}
    box = [_extent(np.asarray(lung.any(axis=tuple({0, 1, 2} - {axis})))) for axis in range(3)]
    return arrays, {"lung_box": box, "spacing": spacing.tolist()}


def _key(case: Case, preparation: Preparation, hash_of: Any) -> str | None:
    """Name of the case's entry: the same for the same bytes and preparation, wherever the files lie; None if a hash is None."""
    source = lung_source(case, preparation.lung_masks)
    lung = case.lung if source == "files" else None
    files = [path and hash_of(path) for path in (case.thin, case.thick, lung)]
    if any(
        path is not None and known is None
        for path, known in zip((case.thin, case.thick, lung), files, strict=True)
    ):
        return None
    made_of = {
        "format": FORMAT,
        "files": files,
        # What may differ for the same bytes. A thin volume alone is stored whole, whatever the ratio.
        "rplhr": [
            path and reads_as_rplhr(path, case.intensity) for path in (case.thin, case.thick)
        ],
        "ratio": None if case.thick is None else preparation.ratio,
        "lung": source,
        "slice_axis": preparation.slice_axis,
        "examined": preparation.examine,
        "turned": preparation.depth_axis and [preparation.depth_axis, preparation.turned_spacing],
    }
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:32]


def _files(case: Case) -> list[Path]:
    return [path for path in (case.thin, case.thick, case.lung) if path is not None]


def _extent(flags: npt.NDArray[np.bool_]) -> tuple[int, int]:
    found = np.flatnonzero(flags)
    return (int(found[0]), int(found[-1]) + 1) if len(found) else (0, len(flags))


def _entry_path(folder: Path, key: str) -> Path:
    return folder / f"{key}.safetensors"


def _unfinished(key: str) -> str:
    """How names of this machine's unfinished entries begin: locks of other machines may not reach us."""
    return f"{key}.{socket.gethostname()}."


def _touch(path: Path) -> None:
    """The time of change tells when an entry was last used: it is written only once, and the time of access is often not kept."""
    try:
        os.utime(path)
    except OSError:  # another user's, or read-only: then its owner decides
        return
