"""Volumes on disk: read as a slab in HU, written back as thin slices with the header they came with. nibabel does the formats."""

from __future__ import annotations

import gzip
import os
import uuid
import zlib
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from mpunet.geometry import Affine, SlabFrame, thin_affine, thin_depth
from mpunet.intensity import round_hu

__all__ = [
    "Volume",
    "check_voxels",
    "nifti_suffix",
    "read_volume",
    "thin_image",
    "volume_from_image",
    "write_volume",
]

# What nibabel and the decompressor raise for files that are no NIfTI, end too early or hold garbage.
_READ_ERRORS = (OSError, EOFError, zlib.error, ImageFileError, HeaderDataError, ValueError)


class Volume:
    """A volume as the library works on it, with what is needed to write one like it.

    A plain class, as data loaders and Lightning take tuples and dataclasses apart, turn arrays into tensors and copy them.

    Attributes:
        slab: (D, H, W) in HU, int16 or float32, C-contiguous; axes as :mod:`mpunet.geometry` defines them.
        affine: stored voxel indices to RAS+ in mm, (4, 4).
        slice_axis: the stored axis along which slices are stacked.
        header: the header as read.
        path: the file that it came from, if it came from one.
    """

    def __init__(
        self, slab: npt.NDArray[Any], affine: Affine, slice_axis: int, header: nib.Nifti1Header, path: Path | None = None
    ) -> None:
        self.slab = slab
        self.affine = affine
        self.slice_axis = slice_axis
        self.header = header
        self.path = path

    @property
    def frame(self) -> SlabFrame:
        """How the stored axes map to the slab's, and back."""
        return SlabFrame.from_affine(self.affine, self.slice_axis)

    @property
    def slab_affine(self) -> Affine:
        """Slab indices (depth, height, width) to RAS+ in mm, (4, 4)."""
        return self.frame.slab_affine(self.affine, self.frame.to_stored(self.slab).shape)


def read_volume(path: str | Path, *, slice_axis: int | None = None, check_hu: bool = True) -> Volume:
    """Read a NIfTI file (``.nii``, ``.nii.gz``) as a slab in HU.

    Args:
        path: the file.
        slice_axis: stored axis along which slices are stacked; by default :func:`mpunet.geometry.find_slice_axis` tells.
        check_hu: refuse intensities that cannot be HU, see :func:`check_voxels`.

    Raises:
        ValueError: in one line with the file's name, if it cannot be read or does not hold one 3D volume of HU.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path.name}: no such file: {path}")
    try:
        image = nib.load(path, mmap=False)
        if path.suffix.lower() == ".gz":
            # nibabel stops at the last voxel, before the checksum: most single flipped bits would go unnoticed.
            with gzip.open(path) as file:
                image = type(image).from_bytes(file.read())
    except _READ_ERRORS as error:
        raise ValueError(f"{path.name}: not a NIfTI file, damaged or cut short: {_one_line(error)}") from error
    return volume_from_image(image, slice_axis=slice_axis, check_hu=check_hu, path=path)


def volume_from_image(
    image: Any, *, slice_axis: int | None = None, check_hu: bool = True, path: str | Path | None = None
) -> Volume:
    """Slab in HU of a nibabel NIfTI image; arguments and errors as for :func:`read_volume`.

    A fourth axis of length one is dropped. An image without sform and qform gets nibabel's affine from its spacing.

    >>> voxels = np.full((4, 6, 3), -1000, np.int16)
    >>> voxels[1:3, 2:4] = 40
    >>> volume = volume_from_image(nib.Nifti1Image(voxels, np.diag([0.7, 0.7, 5, 1])))
    >>> volume.slab.shape, volume.slab.dtype.name
    ((3, 6, 4), 'int16')
    """
    name = "image" if path is None else Path(path).name
    if not isinstance(image, nib.Nifti1Pair):
        raise ValueError(f"{name}: expected a NIfTI image, got {type(image).__name__}; nibabel.Nifti1Image.from_image converts.")
    shape = image.shape[:3] if len(image.shape) == 4 and image.shape[3] == 1 else image.shape
    if len(shape) != 3:
        raise ValueError(f"{name}: expected a 3D volume, got {len(shape)}D of shape {shape}; split it into one file per volume.")
    if 0 in shape:
        raise ValueError(f"{name}: expected voxels, got an empty volume of shape {shape}.")
    if image.get_data_dtype().kind not in "iuf":
        raise ValueError(f"{name}: expected one real number per voxel, got data of type {image.get_data_dtype()}.")
    if slice_axis not in (None, 0, 1, 2):
        raise ValueError(f"Expected slice_axis 0, 1, 2 or None, got {slice_axis}.")
    try:
        frame = SlabFrame.from_affine(image.affine, slice_axis)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if shape[frame.axis] < 2:
        raise ValueError(
            f"{name}: expected at least 2 slices along depth (axis {frame.axis} of shape {shape}), got 1; "
            "a single slice cannot be interpolated."
        )
    stored = _read_voxels(image, name).reshape(shape)
    check_voxels(stored, name=name, check_hu=check_hu)
    dtype = np.int16 if np.can_cast(stored.dtype, np.int16) else np.float32
    slab = np.ascontiguousarray(frame.to_slab(stored), dtype=dtype)
    return Volume(slab, np.asarray(image.affine, np.float64), frame.axis, image.header, None if path is None else Path(path))


def check_voxels(voxels: npt.NDArray[Any], *, name: str, check_hu: bool = True) -> None:
    """Raise if voxels are not finite or, with ``check_hu``, cannot be HU of a CT scan.

    A CT scan shows air (-1000 HU) around or in the patient: a smallest value above -200 or a range below 100 means another scale,
    such as [0, 1] or raw detector values of 0 ... 4095.
    """
    low, high = voxels.min(), voxels.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        count = voxels.size - int(np.isfinite(voxels).sum())
        raise ValueError(f"{name}: expected finite intensities, got {count} NaN or infinite voxels of {voxels.size}.")
    if check_hu and (low > -200 or float(high) - float(low) < 100):
        raise ValueError(
            f"{name}: intensities of {low:g} to {high:g} are not HU, where air is -1000; "
            "rescale them to HU, or pass check_hu=False if they are HU of something without air."
        )


def thin_image(
    slab: npt.NDArray[Any], like: Volume, ratio: int, *, dtype: Literal["int16", "float32"] = "int16"
) -> nib.Nifti1Image:
    """NIfTI image of thin slices, in the orientation and with the header of the thick volume that they were made from.

    Args:
        slab: ((D - 1) * ratio + 1, H, W) in HU.
        like: the thick volume, slab (D, H, W).
        ratio: thick spacing / thin spacing.
        dtype: ``int16`` rounds and clips to [-1024, 3071] HU; ``float32`` keeps the values.
    """
    depth, height, width = like.slab.shape
    expected = (thin_depth(depth, ratio), height, width)
    if slab.shape != expected:
        raise ValueError(
            f"Expected {expected} thin slices for a thick slab of {like.slab.shape} at ratio {ratio}, got {slab.shape}."
        )
    if dtype == "float32":
        slab = slab.astype(np.float32, copy=False)
    elif slab.dtype != np.int16:
        slab = round_hu(slab)

    header = like.header.copy()
    header.set_data_dtype(slab.dtype)
    affine = thin_affine(like.affine, like.slice_axis, ratio)
    image_class = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    image = image_class(like.frame.to_stored(slab), affine, header)
    # Each transform is thinned on its own, since the two may name different spaces. A code of 0 stays 0, so that a file without
    # a position does not gain one. The qform comes last: it sets the spacing in pixdim, which belongs to it.
    for stored, set_form in ((like.header.get_sform, image.set_sform), (like.header.get_qform, image.set_qform)):
        form, code = stored(coded=True)
        set_form(affine if form is None else thin_affine(form, like.slice_axis, ratio), int(code), update_affine=False)
    return image


def write_volume(
    path: str | Path, slab: npt.NDArray[Any], like: Volume, ratio: int, *, dtype: Literal["int16", "float32"] = "int16"
) -> None:
    """Write thin slices (arguments as for :func:`thin_image`) so that ``path`` is at any time absent, as before, or whole.

    The file is written under a hidden temporary name beside its place and renamed when it is on disk; nothing stays of a write
    that fails. nibabel compresses ``.nii.gz`` at gzip level 1: higher levels take several times as long for few per cent of size.
    """
    path = Path(path)
    suffix = nifti_suffix(path)
    if suffix is None:
        raise ValueError(f"Expected a file name ending in .nii or .nii.gz, got {path.name}.")
    image = thin_image(slab, like, ratio, dtype=dtype)
    partial = path.with_name(f".{path.name[: -len(suffix)]}.{uuid.uuid4().hex[:8]}.partial{suffix}")
    try:
        nib.save(image, partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def nifti_suffix(path: Path) -> str | None:
    """``.nii.gz`` or ``.nii``, as written, if the name ends so in any case; otherwise None.

    >>> nifti_suffix(Path("scan.v2.NII.gz"))
    '.NII.gz'
    """
    for suffix in (".nii.gz", ".nii"):
        if path.name.lower().endswith(suffix):
            return path.name[-len(suffix) :]
    return None


def _read_voxels(image: Any, name: str) -> npt.NDArray[Any]:
    proxy = image.dataobj
    try:
        if nib.is_proxy(proxy) and (proxy.slope, proxy.inter) != (1, 0):
            return np.asarray(proxy, np.float32)  # nibabel's default is float64, twice the memory
        return np.asanyarray(proxy)
    except _READ_ERRORS as error:
        raise ValueError(f"{name}: voxels cannot be read, damaged or cut short: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
