"""Slices on disk: written as they come, with the header of the volume that they were made from, whole or not at all."""

from __future__ import annotations

import os
import re
import sys
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import BufferedIOBase, BufferedWriter, BytesIO
from pathlib import Path
from typing import Any, Literal, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import igzip

from mpunet.geometry import Affine, thin_affine, thin_depth
from mpunet.intensity import round_hu
from mpunet.io.volume import VolumeInfo, nifti_suffix

if sys.platform != "win32":
    import fcntl

__all__ = [
    "Dtype",
    "regridded_header",
    "remove_partials",
    "thin_header",
    "thin_image",
    "write_planes",
    "write_slices",
    "write_volume",
]

Dtype = Literal["int16", "float32"]

_PARTIAL = re.compile(r"\..*\.[0-9a-f]{8}\.partial\.nii(\.gz)?", re.IGNORECASE)
_MAX_WAITING = 4


def thin_header(like: VolumeInfo, ratio: float, *, dtype: Dtype = "int16") -> nib.Nifti1Header:
    """Header of the thin volume made from the thick one ``like``: its header, with the thin grid and no scaling."""
    depth = thin_depth(like.shape[0], ratio)
    return regridded_header(
        like, depth, lambda affine: thin_affine(affine, like.slice_axis, ratio), dtype=dtype
    )


def regridded_header(
    like: VolumeInfo,
    depth: int,
    regrid: Callable[[npt.ArrayLike], Affine],
    *,
    dtype: Dtype = "int16",
) -> nib.Nifti1Header:
    """Header of a volume with ``depth`` slices made from ``like``: its header, each transform changed by ``regrid``, no scaling."""
    header_class = (
        nib.Nifti2Header if isinstance(like.header, nib.Nifti2Header) else nib.Nifti1Header
    )
    header = header_class.from_header(like.header)
    shape = list(like.stored_shape)
    shape[like.slice_axis] = depth
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header.set_data_offset(0)  # as soon as the header and its extensions end
    header.set_slope_inter(1, 0)
    # Each transform is changed on its own, since the two may name different spaces. A code of 0 stays 0, so that a file without
    # a position does not gain one. The qform comes last: it sets the spacing in pixdim, which belongs to it.
    for get, set_form in (
        (like.header.get_sform, header.set_sform),
        (like.header.get_qform, header.set_qform),
    ):
        form, code = get(coded=True)
        set_form(regrid(like.affine if form is None else form), int(code))
    return header


def thin_image(
    slab: npt.NDArray[Any], like: VolumeInfo, ratio: float, *, dtype: Dtype = "int16"
) -> nib.Nifti1Image:
    """NIfTI image of thin slices, in the orientation and with the header of the thick volume that they were made from.

    Args:
        slab: ((D - 1) * ratio + 1, H, W) in HU.
        like: the thick volume, (D, H, W).
        ratio: thick spacing / thin spacing. Where it is no whole number the slice that comes first in the file keeps its position.
        dtype: ``int16`` rounds and clips to [-1024, 3071] HU; ``float32`` keeps the values.
    """
    (slab,) = _checked([slab], like, ratio)
    header = thin_header(like, ratio, dtype=dtype)
    image_class = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    return image_class(
        like.frame.to_stored(_convert(slab, dtype)), header.get_best_affine(), header
    )


def write_volume(
    path: str | Path,
    slab: npt.NDArray[Any],
    like: VolumeInfo,
    ratio: float,
    *,
    dtype: Dtype = "int16",
) -> None:
    """Write thin slices, ``slab`` and the other arguments as for :func:`thin_image`, as :func:`write_slices` does."""
    last_first = like.frame.flipped[0]  # the order of the file, so that no copy is made
    step = 8  # slices at a time, so that converting them takes no memory to speak of
    slices = slab[::-1] if last_first else slab
    chunks = (slices[start : start + step] for start in range(0, len(slices), step))
    write_slices(path, chunks, like, ratio, dtype=dtype, last_first=last_first)


def write_slices(
    path: str | Path,
    chunks: Iterable[npt.NDArray[Any]],
    like: VolumeInfo,
    ratio: float,
    *,
    dtype: Dtype = "int16",
    last_first: bool = False,
) -> None:
    """Write thin slices while they come, so that ``path`` is at any time absent, as before, or whole.

    Compression and writing go on in a thread while ``chunks`` makes the next ones, at most four of which wait. All are held in
    memory only if the file cannot be written in their order: if the slice axis is not the last stored one or ``last_first`` is not
    ``like.frame.flipped[0]``. The file is written under a hidden temporary name beside its place and renamed when it is on disk;
    nothing stays of a write that fails, and :func:`remove_partials` removes what a killed one leaves.

    Args:
        path: the file, ``.nii`` or ``.nii.gz``, in a folder that exists.
        chunks: (k, H, W) in HU, consecutive thin slices, which must not change afterwards; (D - 1) * ratio + 1 slices in all.
        like: the thick volume that they were made from, (D, H, W).
        ratio: thick spacing / thin spacing.
        dtype: ``int16`` rounds and clips to [-1024, 3071] HU; ``float32`` keeps the values.
        last_first: slices come from the last to the first, within chunks too.

    Raises:
        ValueError: if there are more or fewer slices, or of another size.
        OSError: as it came from the system, such as a full disk.
    """
    parts = _checked(chunks, like, ratio)
    write_planes(
        path, parts, like, thin_header(like, ratio, dtype=dtype), dtype=dtype, last_first=last_first
    )


def write_planes(
    path: str | Path,
    chunks: Iterable[npt.NDArray[Any]],
    like: VolumeInfo,
    header: nib.Nifti1Header,
    *,
    dtype: Dtype = "int16",
    last_first: bool = False,
) -> None:
    """Write slices (k, H, W) as :func:`write_slices` does, as many as ``header`` says, in the orientation of ``like``."""
    path = Path(path)
    head = BytesIO()
    header.write_to(head)
    with (
        _partial_file(path) as file,
        _compressed(file, path) as stream,
        ThreadPoolExecutor(1) as thread,
    ):

        def write(part: npt.NDArray[Any]) -> None:
            voxels = np.asfortranarray(_convert(part, dtype), header.get_data_dtype())
            stream.write(voxels.T.data)

        stream.write(head.getvalue().ljust(header.get_data_offset(), b"\0"))
        depth = header.get_data_shape()[like.slice_axis]
        waiting: deque[Future[None]] = deque()
        for part in _in_file_order(iter(chunks), like, depth, dtype=dtype, last_first=last_first):
            waiting.append(thread.submit(write, part))
            if len(waiting) > _MAX_WAITING:
                waiting.popleft().result()
        for future in waiting:
            future.result()


def remove_partials(folder: str | Path) -> list[Path]:
    """Remove what killed processes left of :func:`write_slices` in a folder and its subfolders; returns what was removed.

    A file that a living process writes is locked, and stays. So does every file on a file system that knows no locks.
    """
    found = [path for path in Path(folder).rglob(".*.partial.*") if _PARTIAL.fullmatch(path.name)]
    return [path for path in sorted(found) if _remove_if_left(path)]


def _checked(
    chunks: Iterable[npt.NDArray[Any]], like: VolumeInfo, ratio: float
) -> Iterator[npt.NDArray[Any]]:
    depth, height, width = thin_depth(like.shape[0], ratio), *like.shape[1:]
    come = 0
    shape: tuple[int, ...] = (0, height, width)
    for chunk in chunks:
        come += len(chunk)
        shape = (come, *chunk.shape[1:])
        if come > depth or shape[1:] != (height, width):
            break
        yield chunk
    if shape != (depth, height, width):
        raise ValueError(
            f"Expected {(depth, height, width)} thin slices for a thick slab of {like.shape} at ratio {ratio}, got {shape}."
        )


def _convert(slices: npt.NDArray[Any], dtype: Dtype) -> npt.NDArray[Any]:
    if dtype == "float32":
        return slices.astype(np.float32, copy=False)
    return slices if slices.dtype == np.int16 else round_hu(slices)


def _in_file_order(
    chunks: Iterator[npt.NDArray[Any]],
    like: VolumeInfo,
    depth: int,
    *,
    dtype: Dtype,
    last_first: bool,
) -> Iterator[npt.NDArray[Any]]:
    """Consecutive parts of the file, with the stored axes."""
    frame = like.frame
    if like.slice_axis == 2 and frame.flipped[0] == last_first:
        for chunk in chunks:
            yield frame.to_stored(chunk[::-1] if last_first else chunk)
        return
    slab = np.empty((depth, *like.shape[1:]), dtype)
    arriving = slab[::-1] if last_first else slab
    come = 0
    for chunk in chunks:
        arriving[come : come + len(chunk)] = _convert(chunk, dtype)
        come += len(chunk)
    stored = frame.to_stored(slab)
    for index in range(stored.shape[2]):
        yield stored[..., index : index + 1]


@contextmanager
def _compressed(file: BufferedIOBase, path: Path) -> Iterator[BufferedIOBase]:
    if path.suffix.lower() != ".gz":
        yield file
        return
    # Level 3 of igzip takes a quarter of the time of zlib's level 1, for the same size. No name and no time: the same voxels give
    # the same bytes.
    with igzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=3, mtime=0) as stream:
        yield cast(BufferedIOBase, stream)


@contextmanager
def _partial_file(path: Path) -> Iterator[BufferedIOBase]:
    """A file under a temporary name that takes the place of ``path`` when it is written, or is gone."""
    suffix = nifti_suffix(path)
    if suffix is None:
        raise ValueError(f"Expected a file name ending in .nii or .nii.gz, got {path.name}.")
    partial = path.with_name(f".{path.name[: -len(suffix)]}.{uuid.uuid4().hex[:8]}.partial{suffix}")
    try:
        with _open_locked(partial) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if sys.platform != "win32":
                partial.replace(path)  # while it is locked
        if sys.platform == "win32":  # which does not rename open files
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _open_locked(path: Path) -> BufferedWriter:
    """A new file, locked where the system can do that."""
    while True:
        file = path.open("xb")
        if sys.platform != "win32":
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        if path.exists():
            return file
        file.close()  # remove_partials came between creation and lock


def _remove_if_left(path: Path) -> bool:
    try:
        with path.open("rb+") as file:  # an exclusive lock over NFS needs write access
            if sys.platform != "win32":
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        if sys.platform == "win32":  # which does not remove open files
            path.unlink()
    except OSError:
        return False
    return True
