"""Reconstruction of a whole thick volume with any network, in one call."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mpunet.data.checks.order import SliceOrder
from mpunet.inference.engine import StreamingEngine
from mpunet.inference.errors.file import with_error_map
from mpunet.inference.errors.model import ErrorModel
from mpunet.inference.errors.stream import Strangeness, known_slices, with_errors
from mpunet.inference.options import Precision, Stride, autocast_dtype, first_device, window_stride
from mpunet.inference.regrid import output_ratio
from mpunet.inference.spacing import SliceSpacing, grid_warnings
from mpunet.inference.thin_slices import Estimated, ThinSlices
from mpunet.intensity import from_hu, to_hu
from mpunet.io.intensity_range import check_voxels
from mpunet.io.read_ahead import read_ahead
from mpunet.io.scan_file import ScanFile
from mpunet.io.scans import Scan, opened
from mpunet.io.thin_file import Dtype, thin_image, write_slices
from mpunet.io.volume import Volume, VolumeInfo, volume_from_image
from mpunet.memory import channels_last
from mpunet.models.base import geometry_of
from mpunet.models.consistency import DepthConsistency
from mpunet.slices.sampled_profile import SampledProfile, read_profile

__all__ = ["Reconstructor", "ThinSlices"]

Image = TypeVar("Image", nib.Nifti1Image, npt.NDArray[Any], Tensor)


class Reconstructor:
    """Reconstruct thin slices of whole CT volumes with any network.

    Args:
        network: maps windows (B, 1, n_thick, H, W) to (B, 1, N, H, W), N = (n_thick - 1) * ratio +
            1. Intensities in [0, 1] represent [-1024, 3071] HU. A module is set to evaluation mode
            and moved to the device.
        n_thick: number of thick slices per window.
        ratio: thick spacing / thin spacing.
        multiple: the network requires in-plane sizes that are multiples of this; other sizes are
            padded, and the result is cropped.
        stride: distance between windows in thick slices; "best" is 1 (as in the paper), "fast" is
            ``n_thick - 2``.
        batch_size: number of windows per call of the network.
        tile: in-plane size in pixels above which planes are cut into overlapping tiles. Default:
            whole planes.
        device: device on which the network runs; "auto" is
            :func:`mpunet.inference.options.first_device`.
        precision: number format of the network's computations. "auto" is the fastest format of the
            device that loses no range, see :func:`mpunet.inference.options.autocast_dtype`.
        compile: compile the network with ``torch.compile``.
        check_hu: raise an error for images whose intensities cannot be HU.
        spacing: smallest and largest slice spacing in mm of the training scans. Other spacings give
            a warning; below half or above twice the range they give a ValueError (see
            :mod:`mpunet.inference.spacing`). None accepts all spacings.
        flips: flip consecutive windows along different axes, see :class:`StreamingEngine`; for
            networks trained on flipped crops.
        thin_spacing: slice spacing of the result in mm. The network's slices are interpolated
            (cubic convolution) at this spacing, starting from the first slice of the file. Default:
            no interpolation; the slice spacing is thick spacing / ratio.
        profile: slice profile of the scanner, or its CSV file, see
            :class:`mpunet.inference.InferenceOptions`.
        error: model that estimates the absolute error of each voxel, see :meth:`with_error`.
            Default: no estimate.

    Attributes:
        engine: the :class:`StreamingEngine`. Its ``batch_size`` and ``tile`` are reduced if the
            device runs out of memory.

    >>> def linear(windows):
    ...     size = (36, *windows.shape[3:])
    ...     return nn.functional.interpolate(windows, size, mode="trilinear", align_corners=True)
    >>> thick = np.linspace(-1000, 1000, 5).repeat(16).reshape(5, 4, 4)
    >>> Reconstructor(linear, n_thick=8, ratio=5, multiple=4)(thick)[:6, 0, 0].round()
    array([-1000.,  -900.,  -800.,  -700.,  -600.,  -500.], dtype=float32)
    """

    def __init__(
        self,
        network: Callable[[Tensor], Any],
        *,
        n_thick: int,
        ratio: int,
        multiple: int = 32,
        stride: Stride = "best",
        batch_size: int = 1,
        tile: int | tuple[int, int] | None = None,
        device: torch.device | str | None = "auto",
        precision: Precision = "auto",
        compile: bool = False,  # noqa: A002 - torch's word
        check_hu: bool = True,
        spacing: tuple[float, float] | None = None,
        flips: bool = False,
        thin_spacing: float | None = None,
        profile: SampledProfile | str | Path | None = None,
        error: ErrorModel | None = None,
    ) -> None:
        if device in ("auto", None):
            device = first_device()
        self.device = torch.device(device)
        self.ratio = ratio
        self.check_hu = check_hu
        self.thin_spacing = thin_spacing
        self.error = None if error is None else error.to(self.device)
        self.profile = read_profile(profile) if isinstance(profile, (str, Path)) else profile
        if thin_spacing is not None:
            output_ratio(math.inf, thin_spacing)  # raises here if invalid, not at the first volume
        self.spacing = None if spacing is None else SliceSpacing(*spacing)
        if isinstance(network, nn.Module):
            network = channels_last(network.eval().to(self.device))
        self.engine = StreamingEngine(
            torch.compile(network) if compile else network,
            n_thick=n_thick,
            ratio=ratio,
            stride=window_stride(stride, n_thick),
            batch_size=batch_size,
            multiple=multiple,
            tile=tile,
            device=self.device,
            autocast=autocast_dtype(self.device, precision),
            prepare=from_hu,
            flips=flips,
        )

    @classmethod
    def from_checkpoint(
        cls, path: str | Path | None = None, *, error: bool | ErrorModel = False, **options: Any
    ) -> Reconstructor:
        """Create a reconstructor with the network of a checkpoint or weights file.

        Args:
            path: the file. Default: the weights file that is included in mpunet.
            error: estimate the absolute error of each voxel, by the model in the file or another.
            **options: arguments of :class:`Reconstructor`. ``spacing`` and ``flips`` default to the
                file's training record.

        Raises:
            ValueError: as :func:`mpunet.weights.read_weights`, or if ``error`` is true and the file
                has no error model.
        """
        from mpunet.weights import read_weights

        weights = read_weights(path)
        if error:
            given = isinstance(error, ErrorModel)
            options["error"] = (
                error if given else ErrorModel.from_record(weights.record.get("error"))
            )
        known = {
            "spacing": SliceSpacing.from_record(weights.record.get("training")),
            "flips": weights.flips,
        }
        return cls.from_network(weights.network(), **{**known, **options})

    @classmethod
    def from_network(cls, network: Any, **options: Any) -> Reconstructor:
        """Create a reconstructor with a network that has its geometry as attributes.

        Args:
            network: the network, see :func:`mpunet.models.base.geometry_of`.
            **options: other arguments of :class:`Reconstructor`.
        """
        return cls(network, **geometry_of(network)._asdict(), **options)

    @classmethod
    def from_onnx(cls, path: str | Path, **options: Any) -> Reconstructor:
        """Create a reconstructor that runs a file of ``mpunet export`` with ONNX Runtime.

        Args:
            path: the ONNX file.
            **options: arguments of :class:`Reconstructor`. ``spacing`` and ``flips`` default to the
                file's training record. The network runs on the CPU in float32; a file of fixed
                in-plane size is applied in tiles of that size.
        """
        from mpunet.export.onnx_network import OnnxNetwork

        network = OnnxNetwork(path)
        training = network.record.get("training") or {}
        known = {
            "spacing": SliceSpacing.from_record(training),
            "flips": bool(training.get("flips")),
            "tile": network.size,
            "device": "cpu",
            "precision": "float32",
        }
        return cls.from_network(network, **{**known, **options})

    def __call__(self, image: Image) -> Image:
        """Reconstruct the thin volume of a thick one; the result has the type of the input.

        Args:
            image: thick volume in HU: a nibabel NIfTI image in any orientation, or an array or
                tensor (D, H, W), depth first.

        Returns:
            (D - 1) * ratio + 1 slices in HU, or as many as fit at ``thin_spacing``. For an image: a
            NIfTI image, int16, with the header of ``image`` and the affine of the thin slices. For
            an array or tensor: an array or a tensor on the device of ``image``, float32.

        Raises:
            ValueError: if the image is not a valid volume in HU, or its slice spacing is refused.
        """
        if isinstance(image, Tensor):
            thin = self(image.detach().float().cpu().numpy())
            return torch.from_numpy(thin).to(image.device)
        if isinstance(image, np.ndarray):
            slices = self._stream_array(image)
            thin = slices.slab()
        else:
            volume = volume_from_image(image, check_hu=self.check_hu)
            self._warn(volume)
            slices = self.stream(volume)
            thin = thin_image(slices.slab("int16"), volume, slices.ratio)
        _pass_on(slices, "The image")
        return thin

    def with_error(self, image: nib.Nifti1Image | npt.NDArray[Any]) -> Estimated:
        """Reconstruct a thick volume and estimate the absolute error of each voxel in HU.

        Args:
            image: as for :meth:`__call__`: a NIfTI image or an array.

        Returns:
            Two images or arrays: the thin slices, as :meth:`__call__` returns them, and their
            expected absolute errors on the same grid.

        Raises:
            ValueError: if the reconstructor was created without ``error``, or as
                :meth:`__call__`.
        """
        if self.error is None:
            raise ValueError(
                "Expected a reconstructor with an error model, such as "
                "Reconstructor.from_checkpoint(error=True)."
            )
        if isinstance(image, np.ndarray):
            slices = self._stream_array(image)
            found = slices.slab_with_error()
        else:
            volume = volume_from_image(image, check_hu=self.check_hu)
            self._warn(volume)
            slices = self.stream(volume)
            found = Estimated(
                *(
                    thin_image(slab, volume, slices.ratio)
                    for slab in slices.slab_with_error("int16")
                )
            )
        _pass_on(slices, "The image")
        return found

    def stream(self, volume: Volume | ScanFile) -> ThinSlices:
        """Return the thin slices of a volume, which are computed while they are read.

        Raises:
            ValueError: if the slice spacing of the scan is not larger than ``thin_spacing``, or the
                slice profile is too wide for it.
        """
        correct = self._correction(volume)
        if self.thin_spacing is not None:
            return self._stream_regridded(volume, self.thin_spacing, correct)
        options: Any = {"correct": correct, "spacing": float(volume.spacing[0])}
        if isinstance(volume, Volume):
            return self._stream(volume.slab, volume.shape, **options)
        return self._stream(volume, volume.shape, last_first=volume.last_first, **options)

    def file(
        self,
        source: str | Path | Scan,
        target: str | Path,
        *,
        dtype: Dtype = "int16",
        slice_axis: int | None = None,
    ) -> None:
        """Reconstruct a NIfTI file and write the result to another file.

        Slices are streamed, so memory does not depend on their number. ``target`` is replaced only
        when the result is complete. With an error model, the error map is written beside it, see
        :func:`mpunet.inference.errors.file.error_path`.

        Args:
            source: the thick scan: a file, or one that :func:`mpunet.io.scans.find_scans` lists.
            target: the result, ``.nii`` or ``.nii.gz``.
            dtype: "int16" rounds and clips to [-1024, 3071] HU; "float32" keeps the values.
            slice_axis: voxel axis along which slices are stacked. Default: found from the header.

        Raises:
            ValueError: as :func:`mpunet.io.scan_file.open_scan`, or if the slice spacing is
                refused.
        """
        listed = source if isinstance(source, Scan) else Scan(Path(source), Path(source))
        scan = opened(listed, slice_axis=slice_axis, check_hu=self.check_hu)
        self._warn(scan)
        slices = self.stream(scan)
        last_first = slices.last_first
        with with_error_map(slices, Path(target), scan, dtype) as (chunks, _):
            write_slices(target, chunks, scan, slices.ratio, dtype=dtype, last_first=last_first)
        _pass_on(slices, scan.path)

    def spacing_warning(self, volume: VolumeInfo) -> str | None:
        """Return the warning about a scan's slice spacing; None if the spacing fits.

        Raises:
            ValueError: as :meth:`mpunet.inference.spacing.SliceSpacing.warning`.
        """
        return None if self.spacing is None else self.spacing.warning(float(volume.spacing[0]))

    def scan_warning(self, volume: VolumeInfo) -> str | None:
        """Return all warnings about a scan, separated by "; "; None if there are none.

        They concern its gantry tilt, slice thickness and slice spacing.

        Raises:
            ValueError: as :meth:`spacing_warning`.
        """
        thin_spacing = self.thin_spacing or float(volume.spacing[0]) / self.ratio
        found = [*grid_warnings(volume, thin_spacing), self.spacing_warning(volume)]
        return "; ".join(text for text in found if text is not None) or None

    def _warn(self, volume: VolumeInfo) -> None:
        if (text := self.scan_warning(volume)) is not None:
            warnings.warn(f"{volume.path or 'The image'}: {text}", stacklevel=3)

    def _stream(
        self,
        planes: Any,
        shape: tuple[int, ...],
        *,
        last_first: bool = False,
        spacing: float = math.nan,
        ratio: float | None = None,
        correct: DepthConsistency | None = None,
    ) -> ThinSlices:
        depth, height, width = shape
        order = SliceOrder(last_first=last_first)
        source = read_ahead(order.watch(planes), 4)
        options: Any = {
            "shape": (depth, height, width),
            "last_first": last_first,
            "correct": correct,
        }
        finished: Iterator[Tensor]
        if self.error is None:
            finished, warning = map(to_hu, self.engine.stream(source, **options)), None
        else:
            strangeness = Strangeness(self.error)
            known = known_slices(self.engine, source, spacing=spacing, **options)
            finished, warning = with_errors(known, self.error, strangeness), strangeness.warning
        return ThinSlices(
            finished,
            (depth, height, width),
            ratio or self.ratio,
            last_first=last_first,
            native=self.ratio,
            estimated=self.error is not None,
            strangeness=warning,
            order=order,
        )

    def _stream_array(self, image: npt.NDArray[Any]) -> ThinSlices:
        if self.thin_spacing is not None or self.profile is not None:
            raise ValueError(
                "An array has no slice spacing, so thin_spacing and profile cannot be used with "
                "it; pass a NIfTI image."
            )
        if image.ndim != 3 or 0 in image.shape:
            raise ValueError(f"Expected a volume (D, H, W), got shape {image.shape}.")
        check_voxels(image, name="image", check_hu=self.check_hu)
        return self._stream(image, image.shape)

    def _correction(self, volume: VolumeInfo) -> DepthConsistency | None:
        """Return the data consistency of the scanner's slice profile, if there is one."""
        if self.profile is None:
            return None
        weights = self.profile.weights(float(volume.spacing[0]) / self.ratio)
        return DepthConsistency(self.engine.n_thick, self.ratio, weights.tolist()).to(self.device)

    def _stream_regridded(
        self, volume: Volume | ScanFile, thin_spacing: float, correct: DepthConsistency | None
    ) -> ThinSlices:
        """Stream in the order of the file, because its first slice keeps its position."""
        ratio = output_ratio(float(volume.spacing[0]), thin_spacing)
        last_first = volume.frame.flipped[0]
        planes: Any = volume.slab if isinstance(volume, Volume) else volume
        if last_first and not getattr(volume, "last_first", False):
            planes = list(planes)[::-1]
        return self._stream(
            planes,
            volume.shape,
            last_first=last_first,
            spacing=float(volume.spacing[0]),
            ratio=ratio,
            correct=correct,
        )


def _pass_on(slices: ThinSlices, name: object) -> None:
    """Warn the caller of the public method of what was found while the slices were read."""
    for text in slices.warnings():
        warnings.warn(f"{name}: {text}", stacklevel=3)
