"""Slice profiles as samples over the distance from the slice centre in mm, and their CSV files."""

from __future__ import annotations

import csv
import hashlib
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["SampledProfile", "read_profile", "write_profile"]


class SampledProfile(NamedTuple):
    """Sensitivity of a thick slice along its normal: linear between the samples, 0 beyond them.

    Distances are in mm, not in slices: the profile describes the thick slices of a scanner and does
    not depend on the spacing of the thin series.

    Attributes:
        mm: (n,) distances from the slice centre in mm, ascending.
        weight: (n,) sensitivities, in any unit.
    """

    mm: npt.NDArray[np.float64]
    weight: npt.NDArray[np.float64]

    @property
    def sha256(self) -> str:
        """SHA-256 of the samples, to tell profiles apart."""
        return hashlib.sha256(np.stack(self).tobytes()).hexdigest()

    def at(self, mm: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return the sensitivity at distances from the slice centre in mm."""
        return np.asarray(np.interp(mm, self.mm, self.weight, left=0.0, right=0.0))

    def weights(self, spacing: float) -> npt.NDArray[np.float64]:
        """Return the weights of thin slices around the centre of a thick slice: odd number, sum 1.

        Args:
            spacing: spacing of the thin slices in mm.

        Raises:
            ValueError: if the profile is 0 at every thin slice.

        >>> SampledProfile(np.array([-2.0, 0, 2]), np.array([0.0, 1, 0])).weights(1.0).tolist()
        [0.0, 0.25, 0.5, 0.25, 0.0]
        """
        reach = int(np.abs(self.mm).max() / spacing + 1e-6)
        weights = self.at(np.arange(-reach, reach + 1) * spacing)
        if not weights.sum() > 0:
            raise ValueError(
                f"The slice profile is 0 at every thin slice {spacing:g} mm apart; "
                f"give it finer samples."
            )
        return np.asarray(weights / weights.sum())


def read_profile(path: str | Path) -> SampledProfile:
    """Read a profile from a CSV file with the columns ``mm`` and ``weight``.

    Lines that start with # are comments. :func:`write_profile` writes such a file.

    Raises:
        ValueError: if the file is not valid. The message states the file, the line and the expected
            content.
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
            f"{path}: {rule}, with at least 2 different distances and weights of at least 0, "
            f"got {len(values)} lines."
        )
    return SampledProfile(values[:, 0], values[:, 1])


def write_profile(path: str | Path, profile: SampledProfile, comment: str = "") -> None:
    """Write a profile to a CSV file that :func:`read_profile` reads.

    Args:
        path: file to write.
        profile: slice profile.
        comment: text for the comment lines at the start of the file; none by default.
    """
    lines = [*(f"# {line}" for line in comment.splitlines()), "mm,weight"]
    lines += [f"{mm:.4f},{weight:.6f}" for mm, weight in zip(*profile, strict=True)]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
