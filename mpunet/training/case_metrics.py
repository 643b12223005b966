"""Image quality during fit and test: the numbers of a case in one flat dictionary, and their means over cases.

The numbers are those of :mod:`mpunet.metrics.quality`, whose names are also here; what needs no torchmetrics can do without its second of
import time there.
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
    """:func:`quality` of the whole volume and the lungs by the protocol "paper", in one flat dictionary.

    Returns:
        ``mae``, ``rmse``, ``psnr``, ``ssim``, and with ``lung`` the same inside the lungs as ``lung_mae`` and so on.

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
            raise ValueError(
                f"Expected the values {', '.join(WHOLE_METRICS)} of case {case}, got none for {', '.join(missing)}."
            )
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
        return means | {
            name: columns[name].nanmean()
            for name in LUNG_METRICS
            if not columns[name].isnan().all()
        }
