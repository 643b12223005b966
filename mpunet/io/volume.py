"""A volume as the library works on it: a slab in HU, and what is known of it beside its voxels. In memory; no files here.

:mod:`mpunet.io.scan_file` reads volumes, :mod:`mpunet.io.thin_file` writes thin ones. nibabel does the formats.
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

from mpunet.geometry import Affine, SlabFrame
from mpunet.io.rplhr import Intensity, reads_as_rplhr, rplhr_to_hu

__all__ = [
    "IntensityRange",
    "Volume",
    "VolumeInfo",
    "check_voxels",
    "nifti_suffix",
    "one_line_errors",
    "slab_dtype",
    "volume_from_image",
    "volume_info",
]

# What nibabel and the decompressors raise for files that are no NIfTI, end too early or hold garbage. Any: isal's stubs declare
# its error to be an instance.
_BUILT_IN_ERRORS = (EOFError, OSError, OverflowError, ValueError)
_READ_ERRORS: tuple[Any, ...] = (
    *_BUILT_IN_ERRORS,
    HeaderDataError,
    ImageFileError,
    isal_zlib.error,
    zlib.error,
)


class VolumeInfo:
    """What is known of a volume beside its voxels; enough to write another one like it.

    A plain class, as data loaders and Lightning take tuples and dataclasses apart, turn arrays into tensors and copy them.

    Attributes:
        shape: (D, H, W) of the slab; axes as :mod:`mpunet.geometry` defines them.
        affine: stored voxel indices to RAS+ in mm, (4, 4).
        slice_axis: the stored axis along which slices are stacked.
        header: the header as read.
        path: the file that it came from, if it came from one.
    """

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
        """What errors call it: the file's name, or "image"."""
        return "image" if self.path is None else self.path.name

    @property
    def frame(self) -> SlabFrame:
        """How the stored axes map to the slab's, and back."""
        return SlabFrame.from_affine(self.affine, self.slice_axis)

    @property
    def stored_shape(self) -> tuple[int, int, int]:
        """Voxels along the stored axes."""
        first, second, third = np.argsort(self.frame.order)
        return self.shape[first], self.shape[second], self.shape[third]

    @property
    def slab_affine(self) -> Affine:
        """Slab indices (depth, height, width) to RAS+ in mm, (4, 4)."""
        return self.frame.slab_affine(self.affine, self.stored_shape)


class Volume(VolumeInfo):
    """A volume with its voxels.

    Attributes:
        slab: (D, H, W) in HU, int16 or float32, C-contiguous.
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
    """Slab in HU of a nibabel NIfTI image; arguments and errors as for :func:`mpunet.io.scan_file.read_volume`.

    A fourth axis of length one is dropped. An image without sform and qform gets nibabel's affine from its spacing.

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
        # nibabel's default for scaled voxels is float64, twice the memory.
        stored = (np.asarray(proxy, np.float32) if scaled else np.asanyarray(proxy)).reshape(
            info.stored_shape
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused as such
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
    """What is known of a nibabel NIfTI image before its voxels are read.

    Raises:
        ValueError: if it does not hold one 3D volume of real numbers with at least 2 slices.
    """
    name = "image" if path is None else Path(path).name
    if not isinstance(image, nib.Nifti1Pair):
        raise ValueError(
            f"{name}: expected a NIfTI image, got {type(image).__name__}; nibabel.Nifti1Image.from_image converts."
        )
    shape = image.shape[:3] if len(image.shape) == 4 and image.shape[3] == 1 else image.shape
    if len(shape) != 3:
        raise ValueError(
            f"{name}: expected a 3D volume, got {len(shape)}D of shape {shape}; split it into one file per volume."
        )
    if min(shape) < 1:
        raise ValueError(f"{name}: expected voxels, got an empty volume of shape {shape}.")
    if image.get_data_dtype().kind not in "iuf":
        raise ValueError(
            f"{name}: expected one real number per voxel, got data of type {image.get_data_dtype()}."
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
            f"{name}: expected at least 2 slices along depth (axis {frame.axis} of shape {shape}), got 1; "
            "a single slice cannot be interpolated."
        )
    affine = np.asarray(image.affine, np.float64)
    return VolumeInfo(
        (depth, height, width),
        affine,
        frame.axis,
        image.header,
        None if path is None else Path(path),
    )


class IntensityRange:
    """Smallest and largest intensity of arrays seen one after the other, how many voxels were not finite, and whether it is a mask.

    >>> seen = IntensityRange()
    >>> for plane in np.array([[[-1000.0, 40]], [[60, 50]]]):
    ...     seen.add(plane)
    >>> seen.low, seen.high
    (-1000.0, 60.0)
    """

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self.voxels = self.not_finite = 0
        self.between = False  # some voxel of an array within [0, 1] was neither 0 nor 1

    def add(self, voxels: npt.NDArray[Any]) -> None:
        """See an array of any shape, at least one voxel."""
        low, high = float(voxels.min()), float(voxels.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            self.not_finite += voxels.size - int(np.isfinite(voxels).sum())
        self.voxels += voxels.size
        self.low, self.high = min(self.low, low), max(self.high, high)
        if not self.between and voxels.dtype.kind == "f" and _within_unit(low, high):
            self.between = bool(((voxels != 0) & (voxels != 1)).any())

    @property
    def unit(self) -> bool:
        """Whether all lies within [0, 1] (to a thousandth, for rounding and resampling) but is no mask of zeros and ones.

        HU of a scan never do: air is -1000, water 0.
        """
        return self.between and _within_unit(self.low, self.high)

    def in_hu(self) -> IntensityRange:
        """The same of :func:`mpunet.io.rplhr.rplhr_to_hu` of all that was seen."""
        out = IntensityRange()
        out.low, out.high = (float(hu) for hu in rplhr_to_hu(np.array([self.low, self.high])))
        out.voxels, out.not_finite = self.voxels, self.not_finite
        return out

    def check(self, *, name: str, check_hu: bool = True) -> None:
        """Raise what :func:`check_voxels` raises, for all that was seen."""
        if self.not_finite:
            raise ValueError(
                f"{name}: expected finite intensities, got {self.not_finite} NaN or infinite voxels of {self.voxels}."
            )
        if check_hu and (self.low > -200 or self.high - self.low < 100):
            way_out = (
                "if they stand for [-1024, 2048] HU as in RPLHR-CT, say so by intensity 'rplhr' (--data.intensity rplhr), else "
                "rescale them to HU."
                if self.unit
                else "rescale them to HU, or pass check_hu=False if they are HU of something without air."
            )
            raise ValueError(
                f"{name}: intensities of {self.low:g} to {self.high:g} are not HU, where air is -1000; {way_out}"
            )


def check_voxels(voxels: npt.NDArray[Any], *, name: str, check_hu: bool = True) -> None:
    """Raise if voxels are not finite or, with ``check_hu``, cannot be HU of a CT scan.

    A CT scan shows air (-1000 HU) around or in the patient: a smallest value above -200 or a range below 100 means another scale,
    such as [0, 1] or raw detector values of 0 ... 4095.
    """
    seen = IntensityRange()
    seen.add(voxels)
    seen.check(name=name, check_hu=check_hu)


def _within_unit(low: float, high: float) -> bool:
    return low >= -1e-3 and high <= 1 + 1e-3


def slab_dtype(stored: np.dtype[Any]) -> np.dtype[Any]:
    """Type of a slab of unscaled voxels of this type: int16 if it can hold all of its values, else float32."""
    return np.dtype(np.int16 if np.can_cast(stored, np.int16) else np.float32)


def nifti_suffix(path: Path) -> str | None:
    """``.nii.gz`` or ``.nii``, as written, if the name ends so in any case; otherwise None.

    >>> nifti_suffix(Path("scan.v2.NII.gz"))
    '.NII.gz'
    """
    for suffix in (".nii.gz", ".nii"):
        if path.name.lower().endswith(suffix):
            return path.name[-len(suffix) :]
    return None


@contextmanager
def one_line_errors(name: str, rule: str) -> Iterator[None]:
    """Whatever reading raises becomes a ValueError of one line: the file's ``name``, the ``rule`` that was broken, the reason."""
    try:
        yield
    except FileNotFoundError as error:
        raise ValueError(f"{name}: no such file: {error.filename}") from error
    except _READ_ERRORS as error:
        if (
            isinstance(error, OSError) and error.strerror
        ):  # the system's word; nibabel and gzip give none
            raise ValueError(f"{name}: cannot be read: {error.strerror.lower()}") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name}: {rule}, damaged or cut short: {reason}") from error
