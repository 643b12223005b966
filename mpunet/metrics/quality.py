"""Image quality of whole cases in HU: MAE, RMSE, PSNR and SSIM, by region.

Regions are the whole volume, inside the lungs and outside the lungs. Values are comparable only
under the same protocol. A protocol defines the window in HU to which both volumes are clipped and
whose width is the range of PSNR and SSIM, the slices that count, the planes of SSIM, and what it
does at the border of a slice. SSIM (:mod:`mpunet.metrics.ssim`) is computed of HU minus the lower
end of the window, so that intensities are at least 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mpunet.intensity import HU_MAX, HU_MIN
from mpunet.metrics.ssim import SSIM_BORDER, SSIM_WINDOW, ssim_map

__all__ = ["PROTOCOLS", "REGIONS", "Protocol", "Quality", "Volume", "quality"]

Volume = Tensor | npt.NDArray[Any]

REGIONS = ("whole", "lungs", "outside")


class Protocol(NamedTuple):
    """Settings that must be equal for values to be comparable.

    Attributes:
        name: name by which the protocol is selected.
        low: lower end of the window in HU to which volumes are clipped.
        high: upper end of the window in HU; ``high - low`` is the range of PSNR and SSIM.
        trim: number of thin slices left out at each end.
        note: source of the protocol and its special features.
        border: how voxels within 5 voxels of a slice's border count in SSIM. "exclude": they do not
            count in the whole volume, as in Wang et al. and scikit-image; in the other regions they
            count, and the SSIM window sees the slice reflected beyond its border. "zeros": they
            count, and the SSIM window sees intensity 0 beyond the border.
        planes: slices on which SSIM is computed: "axial", or "all" for the mean over axial,
            coronal and sagittal slices.
    """

    name: str
    low: float
    high: float
    trim: int
    note: str
    border: Literal["exclude", "zeros"] = "exclude"
    planes: Literal["axial", "all"] = "axial"


PROTOCOLS = {
    "paper": Protocol(
        name="paper",
        low=HU_MIN,
        high=HU_MAX,
        trim=0,
        note=(
            "Liu et al., MICCAI 2020: the range follows from RMSE and PSNR in its Table 1; "
            "SSIM as in Wang et al., our choice"
        ),
    ),
    # From github.com/smilenaxx/RPLHR-CT, code/test.py and code/utils/non_model.py. Its PSNR of
    # equal volumes is 40 dB, ours is inf.
    "rplhr": Protocol(
        name="rplhr",
        low=HU_MIN,
        high=2048.0,
        trim=5,
        note=(
            "Yu et al., MICCAI 2022, as in its code: metrics of each whole volume, then the mean "
            "over cases; SSIM pads with zeros"
        ),
        border="zeros",
    ),
    # We have not seen the code of this benchmark. SSIM is that of github.com/eeeric-code/I3Net,
    # test.py and util_evaluation.py, which measures the same two numbers; it reports SSIM for each
    # kind of plane.
    "mss-ct": Protocol(
        name="mss-ct",
        low=HU_MIN,
        high=2048.0,
        trim=0,
        note=(
            "npj Digital Medicine 2026, doi 10.1038/s41746-026-03253-6: PSNR of each whole volume, "
            "SSIM in three planes, here their mean; SSIM pads with zeros"
        ),
        border="zeros",
        planes="all",
    ),
}


class Quality(NamedTuple):
    """Quality of one region of one case.

    Attributes:
        mae: mean absolute error in HU.
        rmse: root mean squared error in HU.
        psnr: 20 log10(range / RMSE) in dB; inf if prediction and reference are equal.
        ssim: mean of the SSIM map.
    """

    mae: float
    rmse: float
    psnr: float
    ssim: float


def quality(
    prediction: Volume,
    reference: Volume,
    lung: Volume | None = None,
    *,
    protocol: Protocol = PROTOCOLS["paper"],
    chunk: int | None = None,
) -> dict[str, Quality]:
    """Compute MAE, RMSE, PSNR and SSIM of one case, by region.

    Args:
        prediction: (D, H, W) in HU, H and W at least 11, and D too if SSIM is computed in all
            planes; depth comes first, so that slices are axial. NumPy array (also memory-mapped) or
            torch tensor; computed on its device.
        reference: (D, H, W) in HU.
        lung: lung mask (D, H, W), lung where not 0.
        protocol: window, trim, border and planes.
        chunk: number of slices computed at a time, which limits the memory. Default: 1 on CPUs,
            whose cache holds few slices, and 16 on GPUs.

    Returns:
        Quality of the region "whole" and, with ``lung``, of "lungs" and "outside". Values of a
        region without voxels are NaN. A NaN in a volume makes each value NaN that depends on it.

    Raises:
        ValueError: if the volumes differ in shape or are too small, or the protocol is invalid.

    >>> reference = np.zeros((2, 16, 16), np.int16)
    >>> quality(reference + 10, reference)["whole"].mae
    10.0
    """
    shape = tuple(prediction.shape)
    others = [volume for volume in (reference, lung) if volume is not None]
    if (
        len(shape) != 3
        or any(tuple(volume.shape) != shape for volume in others)
        or shape[0] < 1
        or min(shape[1:]) < SSIM_WINDOW
    ):
        shapes = " and ".join(str(tuple(volume.shape)) for volume in (prediction, *others))
        raise ValueError(
            "Expected volumes of one shape (depth, height, width), "
            f"in-plane at least {SSIM_WINDOW}, got {shapes}."
        )
    if not protocol.low < protocol.high or protocol.trim < 0:
        raise ValueError(
            f"Expected a protocol with low < high and trim of at least 0, got {protocol}."
        )
    if shape[0] <= 2 * protocol.trim:
        raise ValueError(
            f"Expected more than {2 * protocol.trim} slices, as the protocol {protocol.name} "
            f"leaves out {protocol.trim} at each end, got {shape[0]}; "
            "the protocol paper leaves out none."
        )
    if protocol.planes == "all" and shape[0] - 2 * protocol.trim < SSIM_WINDOW:
        raise ValueError(
            f"Expected at least {SSIM_WINDOW + 2 * protocol.trim} slices, as the protocol "
            f"{protocol.name} computes SSIM in all planes, got {shape[0]}; "
            "the protocol paper does so in axial slices only."
        )
    device = prediction.device if isinstance(prediction, Tensor) else torch.device("cpu")
    if chunk is None:
        chunk = 1 if device.type == "cpu" else 16
    if chunk < 1:
        raise ValueError(f"Expected a chunk of at least 1 slice, got {chunk}.")
    sums = {region: _Sums() for region in (REGIONS if lung is not None else REGIONS[:1])}
    kept = slice(protocol.trim, shape[0] - protocol.trim)
    with torch.no_grad():
        for axis in range(3 if protocol.planes == "all" else 1):
            volumes = [volume[kept].swapaxes(0, axis) for volume in (prediction, reference)]
            mask = None if lung is None else lung[kept].swapaxes(0, axis)
            for start in range(0, volumes[0].shape[0], chunk):
                part = slice(start, start + chunk)
                predicted, wanted = (
                    _slices(volume[part], device).clamp(protocol.low, protocol.high)
                    for volume in volumes
                )
                inside = None if mask is None else torch.as_tensor(mask[part] != 0, device=device)
                _add(sums, predicted, wanted, inside, protocol)
    return {region: found.quality(protocol.high - protocol.low) for region, found in sums.items()}


class _Sums:
    """Running sums over the voxels of a region, as Python floats: float64 on each device."""

    def __init__(self) -> None:
        self.voxels, self.absolute, self.squared = 0, 0.0, 0.0
        self.windows, self.similarity = 0, 0.0

    def add(self, error: Tensor, similarity: Tensor) -> None:
        """Add all voxels of slices (S, H, W)."""
        self._add(error.numel(), similarity.numel(), error, similarity)

    def add_region(self, error: Tensor, similarity: Tensor, region: Tensor) -> None:
        """Add the voxels of slices (S, H, W) that are in ``region`` (S, H, W)."""
        voxels = int(region.count_nonzero())
        # Zeros elsewhere: selecting voxels takes five times as long, and a product with the mask
        # would keep NaN outside the region.
        self._add(voxels, voxels, error.where(region, 0.0), similarity.where(region, 0.0))

    def _add(self, voxels: int, windows: int, error: Tensor, similarity: Tensor) -> None:
        self.voxels += voxels
        self.windows += windows
        self.absolute += error.abs().sum().item()
        self.squared += error.square().sum().item()
        self.similarity += similarity.sum().item()

    def quality(self, data_range: float) -> Quality:
        if self.voxels == 0:
            return Quality(math.nan, math.nan, math.nan, math.nan)
        rmse = math.sqrt(self.squared / self.voxels)
        psnr = math.inf if rmse == 0 else 20 * math.log10(data_range / rmse)
        return Quality(self.absolute / self.voxels, rmse, psnr, self.similarity / self.windows)


def _add(
    sums: Mapping[str, _Sums],
    prediction: Tensor,
    reference: Tensor,
    inside: Tensor | None,
    protocol: Protocol,
) -> None:
    """Add clipped slices (S, H, W) in HU to the sums of each region."""
    error = prediction - reference
    zeros = protocol.border == "zeros"
    border: Literal["crop", "reflect", "zeros"] = (
        "zeros" if zeros else "crop" if inside is None else "reflect"
    )
    similarity = ssim_map(
        prediction, reference, window=(protocol.low, protocol.high), border=border
    )
    within = slice(SSIM_BORDER, -SSIM_BORDER) if border == "reflect" else slice(None)
    sums["whole"].add(error, similarity[:, within, within])
    if inside is not None:
        sums["lungs"].add_region(error, similarity, inside)
        sums["outside"].add_region(error, similarity, ~inside)


def _slices(part: Volume, device: torch.device) -> Tensor:
    if not isinstance(part, Tensor):
        # Contiguous, because torch does not support the negative strides of flipped arrays.
        part = torch.from_numpy(np.ascontiguousarray(part, dtype=np.float32))
    return part.to(device, torch.float32)
