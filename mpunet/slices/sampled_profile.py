"""A slice profile as samples over the distance from the slice's centre in mm, in a file of its own."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["SampledProfile", "read_profile", "write_profile"]


class SampledProfile(NamedTuple):
    """Sensitivity of a thick slice along its normal: straight lines between the samples, 0 beyond them.

    It is given in mm, not in slices, so that it describes the scanner's thick slices whatever the thin series at hand.

    Attributes:
        mm: distances (n,) from the slice's centre, ascending.
        weight: (n,), in any unit.
    """

    mm: npt.NDArray[np.float64]
    weight: npt.NDArray[np.float64]

    def weights(self, spacing: float) -> npt.NDArray[np.float64]:
        """Weights of thin slices ``spacing`` mm apart around a thick slice's centre: odd in number, with sum 1.

        >>> SampledProfile(np.array([-2.0, 0, 2]), np.array([0.0, 1, 0])).weights(1.0).tolist()
        [0.0, 0.25, 0.5, 0.25, 0.0]
        """
        reach = int(np.abs(self.mm).max() / spacing + 1e-6)
        weights = np.interp(
            np.arange(-reach, reach + 1) * spacing, self.mm, self.weight, left=0.0, right=0.0
        )
        if not weights.sum() > 0:
            raise ValueError(
                f"The slice profile is 0 at every thin slice {spacing:g} mm apart; give it finer samples."
            )
        return np.asarray(weights / weights.sum())


def read_profile(path: str | Path) -> SampledProfile:
    """Read a CSV file with the columns ``mm`` and ``weight``, as :func:`write_profile` writes it; lines with # are comments.

    Raises:
        ValueError: if it is none: the file, the line, and what was expected there.
    """
    path = Path(path)
    rule = "expected a CSV file with the columns mm,weight, as `mpunet fit-profile` writes it"
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: {rule}, got no text.") from error
    head: list[str] | None = None
    samples: list[tuple[float, float]] = []
    for number, cells in enumerate(csv.reader(io.StringIO(text)), 1):
        if not cells or cells[0].lstrip().startswith("#"):
            continue
        if head is None:
            head = [cell.strip() for cell in cells]
            if head != ["mm", "weight"]:
                raise ValueError(f"{path}, line {number}: {rule}, got {','.join(cells)!r}.")
            continue
        try:
            mm, weight = map(float, cells)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {rule}, got {','.join(cells)!r}.") from error
        samples.append((mm, weight))
    values = np.array(sorted(samples)).reshape(-1, 2)
    if (
        len(values) < 2
        or not np.isfinite(values).all()
        or not (np.diff(values[:, 0]) > 0).all()
        or values[:, 1].min() < 0
    ):
        raise ValueError(
            f"{path}: {rule}, with at least 2 different distances and weights of at least 0, got {len(values)} lines."
        )
    return SampledProfile(values[:, 0], values[:, 1])


def write_profile(path: str | Path, profile: SampledProfile, comment: str = "") -> None:
    """Write a profile to be read by :func:`read_profile`."""
    lines = [*(f"# {line}" for line in comment.splitlines()), "mm,weight"]
    lines += [f"{mm:.4f},{weight:.6f}" for mm, weight in zip(*profile, strict=True)]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
