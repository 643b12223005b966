"""Thick volume in, thin volume out: the one call for other people's code."""

from __future__ import annotations

import itertools
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

from mpunet.geometry import grid_spacing, thin_depth
from mpunet.inference.engine import StreamingEngine
from mpunet.inference.options import Precision, Stride, autocast_dtype, window_stride
from mpunet.inference.regrid import output_ratio, regridded
from mpunet.inference.spacing import SliceSpacing
from mpunet.intensity import from_hu, round_hu, to_hu
from mpunet.io.read_ahead import read_ahead
from mpunet.io.scan_file import ScanFile, open_scan
from mpunet.io.thin_file import Dtype, thin_image, write_slices
from mpunet.io.volume import Volume, VolumeInfo, check_voxels, volume_from_image
from mpunet.models.base import geometry_of

__all__ = ["Reconstructor", "ThinSlices"]

Image = TypeVar("Image", nib.Nifti1Image, npt.NDArray[Any], Tensor)


class ThinSlices:
    """Thin slices of a scan in HU that are computed while they are taken, once: in :meth:`chunks`, or as a whole array.

    Attributes:
        shape: ((D - 1) * ratio + 1, H, W).
        ratio: thick spacing / thin spacing.
        last_first: chunks come, and run, from the last slice to the first. ``numpy.asarray`` has the slices in order.
    """

    def __init__(
        self,
        finished: Iterator[Tensor],
        shape: tuple[int, int, int],
        ratio: float,
        *,
        last_first: bool,
        native: int | None = None,
    ) -> None:
        """``finished`` are the slices of a network whose ratio is ``native``, by default that of the result; ``shape`` is the scan's."""
        depth, *plane = shape
        self.shape = (thin_depth(depth, ratio), *plane)
        self.ratio = ratio
        self.last_first = last_first
        self._finished = finished
        self._depth = depth
        self._native = native or ratio

    def __len__(self) -> int:
        return self.shape[0]

    def chunks(self, dtype: Dtype = "float32") -> Iterator[npt.NDArray[Any]]:
        """(k, H, W) consecutive slices at a time; ``int16`` is rounded and clipped to [-1024, 3071] on the device.

        Raises:
            ValueError: if the network returned NaN, which int16 cannot hold.
        """
        if self._native == self.ratio:
            yield from self._computed(dtype)
            return
        planes = itertools.chain.from_iterable(self._computed("float32"))
        for plane in regridded(
            planes, thin_depth(self._depth, self._native), self._native / self.ratio, len(self)
        ):
            yield (round_hu(plane) if dtype == "int16" else plane)[None]

    def _computed(self, dtype: Dtype) -> Iterator[npt.NDArray[Any]]:
        """Chunks of the network's own slices."""
        for chunk, nan in _to_host(
            (round_hu(hu) if dtype == "int16" else hu, hu.isnan().any()) for hu in self._finished
        ):
            if nan:
                raise ValueError(
                    "The network returned NaN; with precision fp16 or bf16, try float32."
                )
            yield chunk.numpy()

    def slab(self, dtype: Dtype = "float32") -> npt.NDArray[Any]:
        """All slices in order."""
        slab = np.empty(self.shape, dtype)
        ordered = slab[::-1] if self.last_first else slab
        done = 0
        for chunk in self.chunks(dtype):
            ordered[done : done + len(chunk)] = chunk
            done += len(chunk)
        return slab

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return self.slab() if dtype is None else self.slab().astype(dtype, copy=False)


class Reconstructor:
    """Reconstructs thin slices of whole CT volumes with any network.

    Args:
        network: maps windows (B, 1, n_thick, H, W) to (B, 1, N, H, W), N = (n_thick - 1) * ratio + 1, intensity in [0, 1] for HU
            of [-1024, 3071]. A module is put into evaluation mode and moved to the device.
        n_thick: thick slices in a window.
        ratio: thick spacing / thin spacing.
        multiple: the network's in-plane sizes are multiples of this; other sizes are padded and cropped.
        stride: thick slices between windows; "best" is 1, the paper's, "fast" is ``n_thick - 2``.
        batch_size: windows in one call of the network.
        tile: in-plane size in voxels above which planes are cut into overlapping tiles; whole planes by default.
        device: where the network runs; "auto" is the first CUDA device, or else the CPU.
        precision: "auto" is what the device computes fastest without loss of range, see
            :func:`mpunet.inference.options.autocast_dtype`.
        compile: compile the network by ``torch.compile``.
        check_hu: refuse images whose intensities cannot be HU.
        spacing: range in mm of the thick slices' spacing that the network was trained on. An image beside it brings a warning, one of
            less than half or more than twice a ValueError; see :mod:`mpunet.inference.spacing`. None takes any.
        flips: mirror every window in another way, see :class:`StreamingEngine`; for networks trained on flipped crops.
        thin_spacing: mm between the slices of the result. The network's slices, thick spacing / ratio apart, are interpolated (cubic
            convolution) at these positions, beginning with the slice that comes first in the file. By default they are the result.

    Attributes:
        engine: the :class:`StreamingEngine`, whose ``batch_size`` and ``tile`` shrink where the device runs out of memory.

    >>> def linear(windows):
    ...     return nn.functional.interpolate(windows, size=(36, *windows.shape[3:]), mode="trilinear", align_corners=True)
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
    ) -> None:
        if device in ("auto", None):
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.ratio = ratio
        self.check_hu = check_hu
        self.thin_spacing = thin_spacing
        if thin_spacing is not None:
            output_ratio(
                math.inf, thin_spacing
            )  # raises here for a bad one, not at the first volume
        self.spacing = None if spacing is None else SliceSpacing(*spacing)
        if isinstance(network, nn.Module):
            network = network.eval().to(self.device)
            for parameter in network.parameters():
                if (
                    parameter.ndim == 5
                ):  # the order of channels that 3D convolutions are fastest with, on CPUs as on GPUs
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
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
    def from_checkpoint(cls, path: str | Path | None = None, **options: Any) -> Reconstructor:
        """Reconstructor with the network of a checkpoint or weights file (without a path, the packaged one) and options as above."""
        from mpunet.weights import read_weights

        weights = read_weights(path)
        known = {
            "spacing": SliceSpacing.from_record(weights.record.get("training")),
            "flips": weights.flips,
        }
        return cls.from_network(weights.network(), **{**known, **options})

    @classmethod
    def from_network(cls, network: Any, **options: Any) -> Reconstructor:
        """Reconstructor with a network that states its own geometry, see :func:`mpunet.models.base.geometry_of`."""
        return cls(network, **geometry_of(network)._asdict(), **options)

    def __call__(self, image: Image) -> Image:
        """Thin volume of a thick one, of the same kind as the thick one.

        Args:
            image: a nibabel NIfTI image in any orientation, or an array or tensor (D, H, W), depth first; in HU.

        Returns:
            (D - 1) * ratio + 1 slices in HU, or as many as fit of ``thin_spacing``: a NIfTI image in int16 with the header of ``image`` and the affine of the thin
            slices; or an array, or a tensor on the device of ``image``, in float32.
        """
        if isinstance(image, Tensor):
            thin = self(image.detach().float().cpu().numpy())
            return torch.from_numpy(thin).to(image.device)
        if isinstance(image, np.ndarray):
            if self.thin_spacing is not None:
                raise ValueError(
                    "An array tells no spacing, so that thin_spacing means nothing for it: give a NIfTI image."
                )
            if image.ndim != 3 or 0 in image.shape:
                raise ValueError(f"Expected a volume (D, H, W), got shape {image.shape}.")
            check_voxels(image, name="image", check_hu=self.check_hu)
            return self._stream(image, image.shape).slab()
        volume = volume_from_image(image, check_hu=self.check_hu)
        self._warn(volume)
        slices = self.stream(volume)
        return thin_image(slices.slab("int16"), volume, slices.ratio)

    def stream(self, volume: Volume | ScanFile) -> ThinSlices:
        """Thin slices of a volume, computed while they are taken.

        Raises:
            ValueError: if the scan's slices stand no further apart than ``thin_spacing``.
        """
        if self.thin_spacing is not None:
            return self._stream_regridded(volume, self.thin_spacing)
        if isinstance(volume, Volume):
            return self._stream(volume.slab, volume.shape)
        return self._stream(volume, volume.shape, last_first=volume.last_first)

    def file(
        self,
        source: str | Path,
        target: str | Path,
        *,
        dtype: Dtype = "int16",
        slice_axis: int | None = None,
    ) -> None:
        """Thin slices of one NIfTI file to another, with memory that does not depend on how many there are.

        ``target`` is at any time absent, as before, or whole. Errors as for :func:`mpunet.io.scan_file.open_scan`.
        """
        scan = open_scan(source, slice_axis=slice_axis, check_hu=self.check_hu)
        self._warn(scan)
        slices = self.stream(scan)
        write_slices(
            target,
            slices.chunks(dtype),
            scan,
            slices.ratio,
            dtype=dtype,
            last_first=slices.last_first,
        )

    def spacing_warning(self, volume: VolumeInfo) -> str | None:
        """What to tell of a scan's slice spacing, see :meth:`mpunet.inference.spacing.SliceSpacing.warning`."""
        return (
            None
            if self.spacing is None
            else self.spacing.warning(float(grid_spacing(volume.slab_affine)[0]))
        )

    def _warn(self, volume: VolumeInfo) -> None:
        if (text := self.spacing_warning(volume)) is not None:
            warnings.warn(f"{volume.path or 'The image'}: {text}", stacklevel=3)

    def _stream(
        self,
        planes: Any,
        shape: tuple[int, ...],
        *,
        last_first: bool = False,
        ratio: float | None = None,
    ) -> ThinSlices:
        depth, height, width = shape
        finished = map(
            to_hu,
            self.engine.stream(
                read_ahead(planes, 4), shape=(depth, height, width), last_first=last_first
            ),
        )
        return ThinSlices(
            finished,
            (depth, height, width),
            ratio or self.ratio,
            last_first=last_first,
            native=self.ratio,
        )

    def _stream_regridded(self, volume: Volume | ScanFile, thin_spacing: float) -> ThinSlices:
        """In the file's order, as it is its first slice that keeps its position."""
        ratio = output_ratio(float(grid_spacing(volume.slab_affine)[0]), thin_spacing)
        last_first = volume.frame.flipped[0]
        planes: Any = volume.slab if isinstance(volume, Volume) else volume
        if last_first and not getattr(volume, "last_first", False):
            planes = list(planes)[::-1]
        return self._stream(planes, volume.shape, last_first=last_first, ratio=ratio)


def _to_host(results: Iterator[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """Tensors on the CPU; from a CUDA device with a delay of one, so that the next are computed while some are copied and used."""
    waiting: tuple[tuple[Tensor, ...], torch.cuda.Event] | None = None
    for result in results:
        if result[0].device.type != "cuda":
            yield tuple(tensor.cpu() for tensor in result)
            continue
        copies = tuple(
            tensor.to("cpu", non_blocking=True) for tensor in result
        )  # into pinned memory
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(result[0].device))
        if waiting is not None:
            waiting[1].synchronize()
            yield waiting[0]
        waiting = copies, event
    if waiting is not None:
        waiting[1].synchronize()
        yield waiting[0]
