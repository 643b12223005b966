"""Write slices to disk while they are produced, with the header of their source volume.

The file appears only when it is complete.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any, Literal, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import igzip
from nibabel.spatialimages import HeaderDataError

from mpunet.geometry import Affine, thin_affine, thin_depth
from mpunet.intensity import round_hu
from mpunet.io.partial_file import partial_file
from mpunet.io.volume import VolumeInfo

__all__ = [
    "Dtype",
    "checked_chunks",
    "in_file_order",
    "regridded_header",
    "thin_header",
    "thin_image",
    "write_planes",
    "write_slices",
    "write_volume",
]

Dtype = Literal["int16", "float32"]

_MAX_WAITING = 4  # chunks


def thin_header(like: VolumeInfo, ratio: float, *, dtype: Dtype = "int16") -> nib.Nifti1Header:
    """Create the header of the thin volume made from the thick volume ``like``.

    It is the header of ``like`` with the thin grid and without scaling.
    """
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
    """Create the header of a volume with ``depth`` slices made from ``like``.

    It is the header of ``like`` with each transform changed by ``regrid`` and without scaling.
    """
    header_class = (
        nib.Nifti2Header if isinstance(like.header, nib.Nifti2Header) else nib.Nifti1Header
    )
    header = header_class.from_header(like.header)
    shape = list(like.stored_shape)
    shape[like.slice_axis] = depth
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header.set_data_offset(0)  # directly after the header and its extensions
    header.set_slope_inter(1, 0)
    # Each transform is changed separately because the two may refer to different spaces. A code of
    # 0 stays 0, so that a file without a position does not gain one. The qform comes last because
    # it sets the spacing in pixdim, which is part of it.
    for (form, code), set_form in (
        (like.header.get_sform(coded=True), header.set_sform),
        (_qform(like.header), header.set_qform),
    ):
        set_form(regrid(like.affine if form is None else form), int(code))
    return header


def _qform(header: nib.Nifti1Header) -> tuple[Affine | None, int]:
    """Return the qform and its code; one that cannot be computed counts as absent."""
    with suppress(ValueError, HeaderDataError):
        form, code = header.get_qform(coded=True)
        if form is not None and np.isfinite(form).all():
            return form, int(code)
    return None, 0


def thin_image(
    slab: npt.NDArray[Any], like: VolumeInfo, ratio: float, *, dtype: Dtype = "int16"
) -> nib.Nifti1Image:
    """Create a NIfTI image of thin slices, with the orientation and header of their thick volume.

    Args:
        slab: thin slices ((D - 1) * ratio + 1, H, W) in HU.
        like: thick volume, (D, H, W).
        ratio: thick spacing / thin spacing. If it is not a whole number, the first slice in the
            file keeps its position.
        dtype: ``int16`` (default) rounds and clips to [-1024, 3071] HU; ``float32`` keeps the
            values.
    """
    (slab,) = checked_chunks([slab], like, ratio)
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
    """Write a slab of thin slices as :func:`write_slices` does.

    The arguments after ``path`` are those of :func:`thin_image`.
    """
    last_first = like.frame.flipped[0]  # the order of the file needs no copy
    step = 8  # slices per chunk, so that their conversion needs little memory
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
    """Write thin slices while they are produced; the file appears only when it is complete.

    A background thread compresses and writes slices while ``chunks`` produces the next ones; at
    most four chunks wait for it. If slices do not come in the order of the file, all are held in
    memory first: this happens if the slice axis is not the last stored one, or if ``last_first``
    differs from ``like.frame.flipped[0]``.

    The slices are written to a hidden temporary file in the same folder, which is renamed to
    ``path`` once it is on disk; an existing file at ``path`` stays unchanged until then. After an
    error the temporary file is removed. If the process is killed, it remains until
    :func:`mpunet.io.partial_file.remove_partials` removes it.

    Args:
        path: file to write, ``.nii`` or ``.nii.gz``, in an existing folder.
        chunks: consecutive thin slices, arrays (k, H, W) in HU with (D - 1) * ratio + 1 slices in
            total. The arrays must not be changed afterwards.
        like: thick volume that the slices were made from, (D, H, W).
        ratio: thick spacing / thin spacing.
        dtype: ``int16`` (default) rounds and clips to [-1024, 3071] HU; ``float32`` keeps the
            values.
        last_first: whether slices come in order from last to first, also within chunks.

    Raises:
        ValueError: if the number or the size of the slices is wrong.
        OSError: if the system reports an error, for example a full disk.
    """
    parts = checked_chunks(chunks, like, ratio)
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
    """Write slices (k, H, W) as :func:`write_slices` does, in the orientation of ``like``.

    The number of slices is that of ``header``.
    """
    path = Path(path)
    head = BytesIO()
    header.write_to(head)
    with (
        partial_file(path) as file,
        _compressed(file, path) as stream,
        ThreadPoolExecutor(1) as thread,
    ):

        def write(part: npt.NDArray[Any]) -> None:
            voxels = np.asfortranarray(_convert(part, dtype), header.get_data_dtype())
            stream.write(voxels.T.data)

        stream.write(head.getvalue().ljust(header.get_data_offset(), b"\0"))
        depth = header.get_data_shape()[like.slice_axis]
        waiting: deque[Future[None]] = deque()
        for part in in_file_order(iter(chunks), like, depth, dtype=dtype, last_first=last_first):
            waiting.append(thread.submit(write, part))
            if len(waiting) > _MAX_WAITING:
                waiting.popleft().result()
        for future in waiting:
            future.result()


def checked_chunks(
    chunks: Iterable[npt.NDArray[Any]], like: VolumeInfo, ratio: float
) -> Iterator[npt.NDArray[Any]]:
    """Yield chunks of thin slices; raise ValueError if their number or size is wrong."""
    depth, height, width = thin_depth(like.shape[0], ratio), *like.shape[1:]
    received = 0
    shape: tuple[int, ...] = (0, height, width)
    for chunk in chunks:
        received += len(chunk)
        shape = (received, *chunk.shape[1:])
        if received > depth or shape[1:] != (height, width):
            break
        yield chunk
    if shape != (depth, height, width):
        raise ValueError(
            f"Expected {(depth, height, width)} thin slices for a thick slab of {like.shape} "
            f"at ratio {ratio}, got {shape}."
        )


def _convert(slices: npt.NDArray[Any], dtype: Dtype) -> npt.NDArray[Any]:
    if dtype == "float32":
        return slices.astype(np.float32, copy=False)
    return slices if slices.dtype == np.int16 else round_hu(slices)


def in_file_order(
    chunks: Iterator[npt.NDArray[Any]],
    like: VolumeInfo,
    depth: int,
    *,
    dtype: Dtype,
    last_first: bool,
) -> Iterator[npt.NDArray[Any]]:
    """Yield consecutive parts of the file, with its stored axes."""
    frame = like.frame
    if like.slice_axis == 2 and frame.flipped[0] == last_first:
        for chunk in chunks:
            yield frame.to_stored(chunk[::-1] if last_first else chunk)
        return
    slab = np.empty((depth, *like.shape[1:]), dtype)
    arriving = slab[::-1] if last_first else slab
    received = 0
    for chunk in chunks:
        arriving[received : received + len(chunk)] = _convert(chunk, dtype)
        received += len(chunk)
    stored = frame.to_stored(slab)
    for index in range(stored.shape[2]):
        yield stored[..., index : index + 1]


@contextmanager
def _compressed(file: BufferedIOBase, path: Path) -> Iterator[BufferedIOBase]:
    if path.suffix.lower() != ".gz":
        yield file
        return
    # Level 3 of igzip needs a quarter of the time of zlib's level 1, for the same size. Name and
    # time are left out so that the same voxels always give the same bytes.
    with igzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=3, mtime=0) as stream:
        yield cast(BufferedIOBase, stream)
