"""Image quality in HU over whole cases: MAE, RMSE, PSNR and SSIM, in the whole volume and inside the lungs.

Both volumes are clipped to [-1024, 3071] HU first. The range of PSNR and SSIM is 4095 HU, which is also what the paper's own
RMSE and PSNR columns imply. SSIM is taken on axial slices with the constants of Wang et al. (2004): Gaussian window of 11 x 11
voxels, sigma 1.5, K1 = 0.01, K2 = 0.03. It is taken of intensities, HU + 1024: its luminance term presumes values of at least 0
and would swing wildly around 0 HU, that is, in soft tissue.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.utilities import dim_zero_cat

from mpunet.intensity import HU_MAX, HU_MIN, HU_RANGE, from_hu

__all__ = ["LUNG_METRICS", "WHOLE_METRICS", "CaseMetrics", "hu_metrics"]

Volume = Tensor | npt.NDArray[Any]

WHOLE_METRICS = ("mae", "rmse", "psnr", "ssim")
LUNG_METRICS = tuple(f"lung_{name}" for name in WHOLE_METRICS)

_WINDOW = 11
_BORDER = _WINDOW // 2


def hu_metrics(prediction: Volume, reference: Volume, lung: Volume | None = None, *, chunk: int = 8) -> dict[str, float]:
    """MAE and RMSE in HU, PSNR in dB and SSIM of one case.

    SSIM is the mean where the window lies inside the slice, 5 voxels from its border, as in Wang et al. and scikit-image. Inside
    the lungs it is the mean of the same map over lung voxels; near the border of the slice, the window sees the slice reflected.

    Args:
        prediction: (D, H, W) in HU, H and W at least 11; depth first, so that slices are axial. NumPy (memory-mapped too) or
            torch.
        reference: (D, H, W) in HU.
        lung: (D, H, W), lung where not 0.
        chunk: slices at a time, which bounds the memory.

    Returns:
        ``mae``, ``rmse``, ``psnr``, ``ssim``, and with ``lung`` the same inside the lungs as ``lung_mae`` and so on, NaN if the
        mask is empty. PSNR is inf where prediction and reference agree. A NaN in a volume makes every value NaN that it takes
        part in.

    Raises:
        ValueError: if the volumes differ in shape or are too small.

    >>> reference = np.zeros((2, 16, 16), np.int16)
    >>> metrics = hu_metrics(reference + 10, reference)
    >>> metrics["mae"], metrics["rmse"], round(metrics["psnr"], 2)  # 20 log10(4095 / 10)
    (10.0, 10.0, 52.25)
    """
    shape = tuple(prediction.shape)
    others = [volume for volume in (reference, lung) if volume is not None]
    if len(shape) != 3 or any(tuple(volume.shape) != shape for volume in others) or shape[0] < 1 or min(shape[1:]) < _WINDOW:
        shapes = " and ".join(str(tuple(volume.shape)) for volume in (prediction, *others))
        raise ValueError(f"Expected volumes of one shape (depth, height, width), in-plane at least {_WINDOW}, got {shapes}.")
    if chunk < 1:
        raise ValueError(f"Expected a chunk of at least 1 slice, got {chunk}.")
    device = prediction.device if isinstance(prediction, Tensor) else torch.device("cpu")
    whole, inside = _Sums(), _Sums()
    for start in range(0, shape[0], chunk):
        predicted, wanted = (_slices(volume, start, chunk, device).clamp(HU_MIN, HU_MAX) for volume in (prediction, reference))
        error = predicted - wanted
        similarity = _ssim_map(predicted, wanted)
        whole.add(error, similarity[:, _BORDER:-_BORDER, _BORDER:-_BORDER])
        if lung is not None:
            mask = _slices(lung, start, chunk, device) != 0
            inside.add(error[mask], similarity[mask])
    metrics = dict(zip(WHOLE_METRICS, whole.metrics(), strict=True))
    return metrics if lung is None else metrics | dict(zip(LUNG_METRICS, inside.metrics(), strict=True))


class CaseMetrics(Metric):
    """Mean over cases of :func:`hu_metrics`, each case once.

    Under DDP, the sampler repeats cases so that each rank has equally many. Rows are kept by case and repeats dropped, so that
    any number of ranks gives the same means.

    Keyword arguments are those of :class:`torchmetrics.Metric`.

    >>> metric = CaseMetrics()
    >>> for case, mae in [(0, 20.0), (1, 30.0), (1, 30.0)]:
    ...     metric.update(case, {"mae": mae, "rmse": 50.0, "psnr": 38.0, "ssim": 0.9})
    >>> metric.compute()["mae"]
    tensor(25.)
    """

    is_differentiable = False
    full_state_update = False
    rows: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # One flat float32 state: torchmetrics gives a rank without cases an empty tensor of that dtype and one axis to gather.
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(self, case: int, values: Mapping[str, float]) -> None:
        """Take the values of one case.

        Args:
            case: index of the case in its dataset, which tells repeats; 0 to 2 ** 24.
            values: what :func:`hu_metrics` returns; the values for the lungs may be missing or NaN.

        Raises:
            ValueError: if a value for the whole volume is missing.
        """
        missing = [name for name in WHOLE_METRICS if name not in values]
        if missing:
            raise ValueError(f"Expected the values {', '.join(WHOLE_METRICS)} of case {case}, got none for {', '.join(missing)}.")
        row = [case, *(values.get(name, math.nan) for name in (*WHOLE_METRICS, *LUNG_METRICS))]
        self.rows.append(torch.tensor(row, dtype=torch.float32, device=self.device))

    def compute(self) -> dict[str, Tensor]:
        """Scalars under the names of :func:`hu_metrics`.

        Cases without lung do not count in the values for the lungs, which are left out if no case has any. In the values
        for the whole volume, a NaN is handed on.
        """
        names = (*WHOLE_METRICS, *LUNG_METRICS)
        rows = dim_zero_cat(self.rows).view(-1, 1 + len(names))
        distinct = {int(row[0]): row[1:] for row in rows}
        # Sorted, so that the order of cases, and with it the number of ranks, does not show in the last digit.
        table = torch.stack([distinct[case] for case in sorted(distinct)])
        columns = dict(zip(names, table.T, strict=True))
        means = {name: columns[name].mean() for name in WHOLE_METRICS}
        return means | {name: columns[name].nanmean() for name in LUNG_METRICS if not columns[name].isnan().all()}


class _Sums:
    """Running sums over voxels, as Python floats: float64 on every device."""

    def __init__(self) -> None:
        self.voxels, self.absolute, self.squared = 0, 0.0, 0.0
        self.windows, self.similarity = 0, 0.0

    def add(self, error: Tensor, similarity: Tensor) -> None:
        self.voxels += error.numel()
        self.absolute += error.abs().sum().item()
        self.squared += error.square().sum().item()
        self.windows += similarity.numel()
        self.similarity += similarity.sum().item()

    def metrics(self) -> tuple[float, float, float, float]:
        if self.voxels == 0:
            return math.nan, math.nan, math.nan, math.nan
        rmse = math.sqrt(self.squared / self.voxels)
        psnr = math.inf if rmse == 0 else 20 * math.log10(HU_RANGE / rmse)
        return self.absolute / self.voxels, rmse, psnr, self.similarity / self.windows


def _slices(volume: Volume, start: int, chunk: int, device: torch.device) -> Tensor:
    part = volume[start : start + chunk]
    if not isinstance(part, Tensor):
        part = torch.from_numpy(np.ascontiguousarray(part, dtype=np.float32))  # also undoes flips, which torch cannot
    return part.to(device, torch.float32)


def _ssim_map(prediction: Tensor, reference: Tensor) -> Tensor:
    """SSIM at each voxel of slices (S, H, W) in HU, padded by reflection."""
    # With a Gaussian, torchmetrics derives the window from sigma alone: 2 * int(3.5 * 1.5 + 0.5) + 1 = 11. Its own mean over
    # the map has changed between versions (with or without the border), so the map is taken and averaged here.
    # Not in the half precision of a trainer's autocast: its steps are as large as the variances that SSIM compares.
    with torch.autocast(prediction.device.type, enabled=False):
        _, full = structural_similarity_index_measure(
            from_hu(prediction)[:, None], from_hu(reference)[:, None], sigma=1.5, data_range=1.0, return_full_image=True
        )
    return full[:, 0]
