"""What an evaluation consists of: numbers that say what they mean, and what could not be measured and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mpunet.metrics.quality import Protocol

__all__ = ["Evaluation", "Measure", "PairedDifference", "Problem", "Score", "Summary"]


class Measure(NamedTuple):
    """What a number measures.

    Attributes:
        metric: "mae", "rmse", "psnr", "ssim", "bias", "laa950", ...
        region: "whole", "lungs", "outside", or a range of HU.
        unit: "HU", "dB", "%", or "" for a number without unit.
        window: what HU were clipped to first; None for none.
        range: of PSNR and SSIM, in HU; None where it plays no part.
        kind: how it is computed, in words.
    """

    metric: str
    region: str
    unit: str
    window: tuple[float, float] | None
    range: float | None
    kind: str


class Score(NamedTuple):
    """One number of one case and method."""

    method: str
    case: str
    measure: Measure
    value: float


class Summary(NamedTuple):
    """Mean over ``cases`` cases with its 95 % bootstrap interval, NaN for a single case."""

    method: str
    measure: Measure
    cases: int
    mean: float
    low: float
    high: float


class PairedDifference(NamedTuple):
    """Mean over the cases that both have of ``method`` - ``other``, its 95 % bootstrap interval, and the Wilcoxon signed-rank p."""

    method: str
    other: str
    measure: Measure
    cases: int
    mean: float
    low: float
    high: float
    p: float


class Problem(NamedTuple):
    """A case that could not be measured, or was measured in spite of something: ``measured`` tells."""

    method: str
    case: str
    reason: str
    measured: bool


@dataclass(frozen=True)
class Evaluation:
    """One or several methods, measured on the same references.

    Attributes:
        title: for the report.
        protocol: window, range and what is trimmed.
        methods: the first is the one in question, the others are what it is compared with.
        scores, summaries, differences, problems: the numbers.
        files: case to {"thick" if given, each method, "truth"} to its file, in the order they are shown.
        version: of mpunet.
        created: date and time, UTC.
    """

    title: str
    protocol: Protocol
    methods: list[str]
    scores: list[Score]
    summaries: list[Summary]
    differences: list[PairedDifference]
    problems: list[Problem]
    files: Mapping[str, Mapping[str, Path]]
    version: str
    created: str
