"""Data types of an evaluation: measures, scores, their summaries, and problems with cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mpunet.metrics.quality import Protocol

__all__ = [
    "THICK",
    "TRUTH",
    "Agreement",
    "Evaluation",
    "Measure",
    "PairedDifference",
    "Problem",
    "Score",
    "Summary",
]

# Names of the thick scan and of the reference beside those of the methods.
THICK, TRUTH = "thick", "truth"


class Measure(NamedTuple):
    """Definition of a number: metric, region, unit and method of computation.

    Attributes:
        metric: "mae", "rmse", "psnr", "ssim", "bias", "laa950", ...
        region: "whole", "lungs", "outside", or a range of HU.
        unit: "HU", "dB", "%", or "" for a number without unit.
        window: (low, high) in HU to which voxels are clipped first; None for no clipping.
        range: data range of PSNR and SSIM in HU; None for other metrics.
        kind: how the number is computed, in words.
    """

    metric: str
    region: str
    unit: str
    window: tuple[float, float] | None
    range: float | None
    kind: str


class Score(NamedTuple):
    """Value of one measure for one case and one method."""

    method: str
    case: str
    measure: Measure
    value: float


class Summary(NamedTuple):
    """Mean over ``cases`` cases and its 95 % bootstrap interval, which is NaN for a single case."""

    method: str
    measure: Measure
    cases: int
    mean: float
    low: float
    high: float


class PairedDifference(NamedTuple):
    """Mean of ``method`` - ``other`` over the cases that both methods have.

    ``low`` and ``high`` are the 95 % bootstrap interval, ``p`` is that of the Wilcoxon signed-rank
    test.
    """

    method: str
    other: str
    measure: Measure
    cases: int
    mean: float
    low: float
    high: float
    p: float


class Agreement(NamedTuple):
    """Agreement of ``method`` with the truth in one measure, over the cases that both have.

    ``mean`` is the mean of method - truth. ``low`` and ``high`` are the 95 % limits of agreement
    (Bland and Altman), ``concordance`` is Lin's coefficient. These three are NaN for fewer than 3
    cases.
    """

    method: str
    measure: Measure
    cases: int
    mean: float
    low: float
    high: float
    concordance: float


class Problem(NamedTuple):
    """Problem with a case. ``measured`` is True if the case was measured despite the problem."""

    method: str
    case: str
    reason: str
    measured: bool


@dataclass(frozen=True)
class Evaluation:
    """Results of one or several methods, measured on the same references.

    Attributes:
        title: title of the report.
        protocol: window, range and number of slices trimmed at each end.
        methods: names of the methods; the first one is compared with each of the others.
        scores: value of each measure for each case and method.
        summaries: means over cases.
        agreements: agreement of each method's lung density with that of the truth.
        differences: paired differences between the first method and each other one.
        problems: cases that were not measured, or were measured despite a problem.
        files: for each case, the file of "thick" (if given), of each method and of "truth", in
            display order.
        version: version of mpunet.
        created: date and time in UTC.
        error_maps: for each case, the error map of the first method that was measured.
    """

    title: str
    protocol: Protocol
    methods: list[str]
    scores: list[Score]
    summaries: list[Summary]
    agreements: list[Agreement]
    differences: list[PairedDifference]
    problems: list[Problem]
    files: Mapping[str, Mapping[str, Path]]
    version: str
    created: str
    error_maps: Mapping[str, Path] = field(default_factory=dict)
