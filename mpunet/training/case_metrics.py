"""Image quality in validation and test: metrics of a case as a flat dictionary, and their means.

The metrics are those of :mod:`mpunet.metrics.quality`, whose names are re-exported here. Code that
does not need torchmetrics imports them from there, because importing torchmetrics takes a second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from mpunet.metrics.quality import PROTOCOLS, REGIONS, Protocol, Quality, Volume, quality

__all__ = [
    "LUNG_METRICS",
    "PROTOCOLS",
    "REGIONS",
    "WHOLE_METRICS",
    "CaseMetrics",
    "Protocol",
    "Quality",
    "hu_metrics",
    "quality",
]

WHOLE_METRICS = Quality._fields
LUNG_METRICS = tuple(f"lung_{name}" for name in WHOLE_METRICS)


def hu_metrics(
    prediction: Volume, reference: Volume, lung: Volume | None = None, *, chunk: int | None = None
) -> dict[str, float]:
    """Return the :func:`quality` by the protocol "paper" as a flat dictionary.

    Args:
        prediction: volume (D, H, W) in HU.
        reference: true volume (D, H, W) in HU.
        lung: lung mask (D, H, W). Default: no lung metrics.
        chunk: number of slices computed at a time, see :func:`quality`.

    Returns:
        ``mae``, ``rmse``, ``psnr`` and ``ssim`` of the whole volume; with ``lung`` also of the
        lungs, as ``lung_mae`` and so on.

    >>> import numpy as np
    >>> reference = np.zeros((2, 16, 16), np.int16)
    >>> metrics = hu_metrics(reference + 10, reference)
    >>> metrics["mae"], metrics["rmse"], round(metrics["psnr"], 2)  # 20 log10(4095 / 10)
    (10.0, 10.0, 52.25)
    """
    found = quality(prediction, reference, lung, chunk=chunk)
    metrics = dict(zip(WHOLE_METRICS, found["whole"], strict=True))
    return (
        metrics | dict(zip(LUNG_METRICS, found["lungs"], strict=True))
        if "lungs" in found
        else metrics
    )


class CaseMetrics(Metric):
    """Mean of :func:`hu_metrics` over cases, each case counted once.

    In distributed runs (DDP), the sampler repeats cases so that all ranks have the same number.
    Values are stored per case and repeats are dropped, so the means do not depend on the number of
    ranks.

    Args:
        **kwargs: arguments of :class:`torchmetrics.Metric`.

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
        # A flat float32 state, because on a rank without cases torchmetrics gathers an empty tensor
        # of this type with one axis.
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(self, case: int, values: Mapping[str, float]) -> None:
        """Add the values of one case.

        Args:
            case: index of the case in its dataset, 0 to 2 ** 24; identifies repeats.
            values: result of :func:`hu_metrics`; lung values may be missing or NaN.

        Raises:
            ValueError: if a value for the whole volume is missing.
        """
        missing = [name for name in WHOLE_METRICS if name not in values]
        if missing:
            raise ValueError(
                f"Expected the values {', '.join(WHOLE_METRICS)} of case {case}, got none for "
                f"{', '.join(missing)}."
            )
        row = [case, *(values.get(name, math.nan) for name in (*WHOLE_METRICS, *LUNG_METRICS))]
        self.rows.append(torch.tensor(row, dtype=torch.float32, device=self.device))

    def compute(self) -> dict[str, Tensor]:
        """Return the means under the names of :func:`hu_metrics`, as scalars.

        Cases without lung values are left out of the lung means; if no case has any, the result has
        no lung means. A NaN in a value of the whole volume makes the mean NaN.
        """
        names = (*WHOLE_METRICS, *LUNG_METRICS)
        rows = dim_zero_cat(self.rows).view(-1, 1 + len(names))
        distinct = {int(row[0]): row[1:] for row in rows}
        # Sort the cases: their order depends on the number of ranks and changes the last digit.
        table = torch.stack([distinct[case] for case in sorted(distinct)])
        columns = dict(zip(names, table.T, strict=True))
        means = {name: columns[name].mean() for name in WHOLE_METRICS}
        return means | {
            name: columns[name].nanmean()
            for name in LUNG_METRICS
            if not columns[name].isnan().all()
        }
