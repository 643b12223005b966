"""Volumes in memory: a slab in HU, with the metadata of its source.

:mod:`mpunet.io.scan_file` reads volumes from files and :mod:`mpunet.io.thin_file` writes thin ones.
nibabel handles the file formats.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import isal_zlib
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from mpunet.geometry import Affine, SlabFrame, gantry_tilt, grid_spacing
from mpunet.io.intensity_range import IntensityRange
from mpunet.io.rplhr import Intensity, reads_as_rplhr, rplhr_to_hu

__all__ = [
    "TILTED",
    "Volume",
    "VolumeInfo",
    "nifti_suffix",
    "one_line_errors",
    "slab_dtype",
    "volume_from_image",
    "volume_info",
    "without_nifti_suffix",
]

# Gantry tilt in degrees above which a scan is reported as tilted. Our choice: smaller angles are
# within the rounding of headers, and change the slice spacing by less than 0.004 %.
TILTED = 0.5

# Errors that nibabel and the decompressors raise for files that are not NIfTI, end too early or
# contain garbage. Any: isal's stubs declare its error as an instance.
_BUILT_IN_ERRORS = (EOFError, OSError, OverflowError, ValueError)
_READ_ERRORS: tuple[Any, ...] = (
    *_BUILT_IN_ERRORS,
    HeaderDataError,
    ImageFileError,
    isal_zlib.error,
    zlib.error,
)


class VolumeInfo:
    """Metadata of a volume without its voxels, sufficient to write another volume like it.

    This is a plain class because data loaders and Lightning take tuples and dataclasses apart,
    convert their arrays to tensors and copy them.

    Attributes:
        shape: shape (D, H, W) of the slab; axes as defined in :mod:`mpunet.geometry`.
        affine: transform from stored voxel indices to RAS+ in mm, (4, 4).
        slice_axis: stored axis along which slices are stacked.
        header: header as read.
        path: file that the volume was read from, or None.
        slice_thickness: in mm, from the header; None if it does not say.
    """

    slice_thickness: float | None = None

    def __init__(
        self,
        shape: tuple[int, int, int],
        affine: Affine,
        slice_axis: int,
        header: nib.Nifti1Header,
        path: Path | None = None,
    ) -> None:
        self.shape = shape
        self.affine = affine
        self.slice_axis = slice_axis
        self.header = header
        self.path = path

    @property
    def name(self) -> str:
        """Name of the volume in error messages: the file's name, or "image"."""
        return "image" if self.path is None else self.path.name

    @property
    def frame(self) -> SlabFrame:
        """Mapping between the stored axes and the slab's axes."""
        return SlabFrame.from_affine(self.affine, self.slice_axis)

    @property
    def stored_shape(self) -> tuple[int, int, int]:
        """Number of voxels along each stored axis."""
        first, second, third = np.argsort(self.frame.order)
        return self.shape[first], self.shape[second], self.shape[third]

    @property
    def slab_affine(self) -> Affine:
        """Transform from slab indices (depth, height, width) to RAS+ in mm, (4, 4)."""
        return self.frame.slab_affine(self.affine, self.stored_shape)

    @property
    def spacing(self) -> npt.NDArray[np.float64]:
        """Spacing of the slab's slices along their normal, then of rows and columns, in mm."""
        return grid_spacing(self.slab_affine, slice_axis=0)

    @property
    def tilt(self) -> float:
        """Gantry tilt in degrees, see :func:`mpunet.geometry.gantry_tilt`."""
        return gantry_tilt(self.affine, self.slice_axis)


class Volume(VolumeInfo):
    """A volume with its voxels.

    Attributes:
        slab: voxels (D, H, W) in HU, int16 or float32, C-contiguous.
    """

    def __init__(
        self,
        slab: npt.NDArray[Any],
        affine: Affine,
        slice_axis: int,
        header: nib.Nifti1Header,
        path: Path | None = None,
    ) -> None:
        depth, height, width = slab.shape
        super().__init__((depth, height, width), affine, slice_axis, header, path)
        self.slab = slab


def volume_from_image(
    image: Any,
    *,
    slice_axis: int | None = None,
    check_hu: bool = True,
    intensity: Intensity = "auto",
    path: str | Path | None = None,
) -> Volume:
    """Convert a nibabel NIfTI image to a volume with a slab in HU.

    Arguments and errors are those of :func:`mpunet.io.scan_file.read_volume`. A fourth axis of
    length one is dropped. An image without sform and qform gets the affine that nibabel derives
    from its spacing.

    >>> voxels = np.full((4, 6, 3), -1000, np.int16)
    >>> voxels[1:3, 2:4] = 40
    >>> volume = volume_from_image(nib.Nifti1Image(voxels, np.diag([0.7, 0.7, 5, 1])))
    >>> volume.slab.shape, volume.slab.dtype.name
    ((3, 6, 4), 'int16')
    """
    info = volume_info(image, slice_axis=slice_axis, path=path)
    proxy = image.dataobj
    with one_line_errors(info.name, "voxels cannot be read"):
        scaled = nib.is_proxy(proxy) and (proxy.slope, proxy.inter) != (1, 0)
        # nibabel's default for scaled voxels is float64, which needs twice the memory.
        stored = (np.asarray(proxy, np.float32) if scaled else np.asanyarray(proxy)).reshape(
            info.stored_shape
        )
    # Values beyond the range of float32 become infinite, and infinite values are rejected.
    with np.errstate(over="ignore"):
        slab = np.ascontiguousarray(info.frame.to_slab(stored), dtype=slab_dtype(stored.dtype))
    seen = IntensityRange()
    seen.add(slab)
    if seen.unit and reads_as_rplhr(path or image.get_filename(), intensity):
        slab = rplhr_to_hu(slab)
        seen = seen.in_hu()
    seen.check(name=info.name, check_hu=check_hu)
    return Volume(slab, info.affine, info.slice_axis, info.header, info.path)


def volume_info(
    image: Any, *, slice_axis: int | None = None, path: str | Path | None = None
) -> VolumeInfo:
    """Return the metadata of a nibabel NIfTI image, without reading its voxels.

    Raises:
        ValueError: if it does not contain one 3D volume of real numbers with at least 2 slices.
    """
    name = "image" if path is None else Path(path).name
    if not isinstance(image, nib.Nifti1Pair):
        raise ValueError(
            f"{name}: expected a NIfTI image, got {type(image).__name__}; "
            "convert it with nibabel.Nifti1Image.from_image."
        )
    shape = image.shape[:3] if len(image.shape) == 4 and image.shape[3] == 1 else image.shape
    if len(shape) != 3:
        raise ValueError(
            f"{name}: expected a 3D volume, got {len(shape)}D of shape {shape}; "
            "split it into one file per volume."
        )
    if min(shape) < 1:
        raise ValueError(f"{name}: expected voxels, got an empty volume of shape {shape}.")
    if image.get_data_dtype().kind not in "iuf":
        raise ValueError(
            f"{name}: expected one real number per voxel, "
            f"got data of type {image.get_data_dtype()}."
        )
    if slice_axis not in (None, 0, 1, 2):
        raise ValueError(f"Expected slice_axis 0, 1, 2 or None, got {slice_axis}.")
    try:
        frame = SlabFrame.from_affine(image.affine, slice_axis)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    depth, height, width = (int(shape[axis]) for axis in frame.order)
    if depth < 2:
        raise ValueError(
            f"{name}: expected at least 2 slices along depth (axis {frame.axis} of shape {shape}), "
            "got 1; a single slice cannot be interpolated."
        )
    affine = np.asarray(image.affine, np.float64)
    return VolumeInfo(
        (depth, height, width),
        affine,
        frame.axis,
        image.header,
        None if path is None else Path(path),
    )


def slab_dtype(stored: np.dtype[Any]) -> np.dtype[Any]:
    """Return the data type of the slab for unscaled voxels of type ``stored``.

    It is int16 if int16 can represent all values of ``stored``, otherwise float32.
    """
    return np.dtype(np.int16 if np.can_cast(stored, np.int16) else np.float32)


def nifti_suffix(path: Path) -> str | None:
    """Return the suffix ``.nii.gz`` or ``.nii`` of a file name, or None for other names.

    Upper and lower case are accepted; the suffix is returned as written.

    >>> nifti_suffix(Path("scan.v2.NII.gz"))
    '.NII.gz'
    """
    for suffix in (".nii.gz", ".nii"):
        if path.name.lower().endswith(suffix):
            return path.name[-len(suffix) :]
    return None


def without_nifti_suffix(name: str) -> str:
    """Return a file name or path without ``.nii.gz`` or ``.nii``; other names as they are.

    >>> without_nifti_suffix("sub/scan.v2.NII.gz")
    'sub/scan.v2'
    """
    return name.removesuffix(nifti_suffix(Path(name)) or "")


@contextmanager
def one_line_errors(name: str, rule: str) -> Iterator[None]:
    """Convert errors of reading a file to a ValueError of one line.

    The line consists of the file's ``name``, the ``rule`` that was broken, and the reason.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise ValueError(f"{name}: no such file: {error.filename}") from error
    except _READ_ERRORS as error:
        if isinstance(error, OSError) and error.strerror:  # only errors of the system set it
            raise ValueError(f"{name}: cannot be read: {error.strerror.lower()}") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name}: {rule}, damaged or cut short: {reason}") from error
