"""What later programs make of a reconstruction: segmentations and findings against the thin scan.

    python examples/downstream.py truth thick=scans cubic=cubic mpunet=thin

For each case, lungs, airways, vessels and low attenuation (LAA-950) are segmented in the thin scan
and in each condition by the same rules, and compared by the Dice coefficient. The automatic reader
of docs/reader_study.md reads them too, and what it finds in the thin scan counts as the standard.
Conditions on another grid, such as the thick slices, only take part in the reading. Segmentations
are by thresholds: no one has corrected them, and the results are not clinical results.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from mpunet.data.layouts import files_by_name
from mpunet.evaluation.cases import common_slices
from mpunet.io.scan_file import read_volume
from mpunet.io.volume import Volume
from mpunet.lungs import lung_mask
from mpunet.reader_study.blob_reader import blob_findings
from mpunet.reader_study.findings import Finding
from mpunet.reader_study.matching import match_findings

Mask = npt.NDArray[np.bool_]

# All values are our choice.
VESSEL_HU = -500.0  # between the lung (-850) and blood (40)
EDGE_MM = 4.0  # the chest wall and its partial volume are no vessels
THIN_MM = 3.0  # vessels of which the thin scan shows less than this count as thin
EMPHYSEMA_HU = -950.0
AIRWAY_HU = range(-980, -849, 10)
LEAK = 1.5  # growth of the volume at the next threshold that means a leak into the lung
MIN_AIRWAY_ML = 1.0


def main(words: Sequence[str] | None = None) -> int:
    """Print the table, case by case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("truth", type=Path, help="folder of thin scans")
    parser.add_argument("conditions", nargs="+", metavar="NAME=FOLDER")
    args = parser.parse_args(words)
    conditions = {}
    for words in args.conditions:
        name, equals, folder = words.partition("=")
        if not (name and equals and Path(folder).is_dir()):
            parser.error(f"expected NAME=FOLDER with an existing folder, got {words!r}")
        conditions[name] = files_by_name(folder)
    print(
        "| case | condition | lungs | airways | vessels | thin vessels | LAA-950 | found | false |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for case, path in files_by_name(args.truth).items():
        truth = Truth(read_volume(path))
        for name, files in conditions.items():
            if case in files:
                print(
                    f"| {case} | {name} | {row(read_volume(files[case]), truth)} |",
                    flush=True,
                )
    return 0


class Truth:
    """A thin scan, read once and segmented once for all conditions that cover the same slices."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.findings = findings(volume)
        self._masks: dict[tuple[int, int], Masks] = {}

    def masks(self, shared: slice) -> Masks:
        """Return the segmentations of some slices."""
        key = (shared.start, shared.stop)
        if key not in self._masks:
            hu, spacing = self.volume.slab[shared], self.volume.spacing
            lungs = lung_mask(hu, spacing)
            inside = ndimage.distance_transform_edt(lungs, sampling=spacing) > EDGE_MM
            vessels = inside & (hu > VESSEL_HU)
            thin = vessels & ~_opened(vessels, THIN_MM, spacing)
            low = lungs & (hu < EMPHYSEMA_HU)
            self._masks[key] = Masks(lungs, inside, airways(hu, lungs, spacing), vessels, thin, low)
        return self._masks[key]


class Masks(NamedTuple):
    """Segmentations of a thin scan, (D, H, W) each; ``inside`` is where vessels are looked for."""

    lungs: Mask
    inside: Mask
    airways: Mask
    vessels: Mask
    thin_vessels: Mask
    low: Mask


def row(volume: Volume, truth: Truth) -> str:
    """Return the cells of one condition of a case."""
    if np.isclose(volume.spacing, truth.volume.spacing, rtol=0.01).all():
        own, shared = common_slices(volume, truth.volume)
        values = agreement(volume.slab[own], truth.masks(shared), truth.volume.spacing)
        cells = [f"{value:.3f}" for value in values]
    else:
        cells = ["-"] * 5
    found = findings(volume)
    hits = len(match_findings(found, truth.findings))
    return " | ".join([*cells, f"{hits} of {len(truth.findings)}", str(len(found) - hits)])


def findings(volume: Volume) -> list[Finding]:
    """Read a volume with the automatic reader, in the lungs found in it."""
    return blob_findings(volume.slab, volume.slab_affine, lung_mask(volume.slab, volume.spacing))


def agreement(
    hu: npt.NDArray[Any], truth: Masks, spacing: npt.NDArray[np.float64]
) -> tuple[float, ...]:
    """Compare a volume (D, H, W) in HU with the segmentations of the truth; spacing (3,) in mm.

    Vessels and low attenuation are looked for in the lungs of the truth in both, so that they do
    not depend on the lung masks. Of thin vessels the value is the part that was found again, as
    voxels that are too many belong to no size.

    Returns:
        Values of lungs, airways, vessels, thin vessels and low attenuation.
    """
    lungs = lung_mask(hu, spacing)
    vessels, thin = truth.inside & (hu > VESSEL_HU), truth.thin_vessels
    return (
        dice(lungs, truth.lungs),
        dice(airways(hu, lungs, spacing), truth.airways),
        dice(vessels, truth.vessels),
        float((vessels & thin).sum() / thin.sum()) if thin.any() else np.nan,
        dice(truth.lungs & (hu < EMPHYSEMA_HU), truth.low),
    )


def dice(first: Mask, second: Mask) -> float:
    """Return the Dice coefficient, NaN if both masks are empty."""
    total = int(first.sum() + second.sum())
    return 2 * int((first & second).sum()) / total if total else np.nan


def airways(hu: npt.NDArray[Any], lungs: Mask, spacing: npt.NDArray[np.float64]) -> Mask:
    """Grow the airways from trachea and main bronchi, which the lung mask leaves out.

    The threshold is raised until the volume jumps, which means a leak into the lung (Mori et al.
    2000, IEEE Trans. Med. Imaging 19:2).
    """
    seeds = _enclosed(~lungs & (hu < AIRWAY_HU[0]), spacing)
    grown = _connected(hu < AIRWAY_HU[0], seeds)
    for threshold in AIRWAY_HU[1:]:
        larger = _connected(hu < threshold, seeds)
        if larger.sum() > LEAK * grown.sum():
            break
        grown = larger
    return grown


def _connected(gas: Mask, seeds: Mask) -> Mask:
    """Keep the components with a seed."""
    labels, _ = ndimage.label(gas)
    return np.isin(labels, np.setdiff1d(np.unique(labels[seeds]), 0))


def _enclosed(gas: Mask, spacing: npt.NDArray[np.float64]) -> Mask:
    """Keep components of at least MIN_AIRWAY_ML that do not touch the sides of the planes."""
    labels, count = ndimage.label(gas)
    sides = np.zeros(gas.shape, dtype=bool)
    sides[:, [0, -1]] = sides[:, :, [0, -1]] = True
    voxels = np.bincount(labels.ravel(), minlength=count + 1)
    large = np.flatnonzero(voxels * spacing.prod() / 1000 >= MIN_AIRWAY_ML)
    return np.isin(labels, np.setdiff1d(large, [0, *np.unique(labels[sides])]))


def _opened(mask: Mask, diameter: float, spacing: npt.NDArray[np.float64]) -> Mask:
    """Open a mask by a ball of ``diameter`` mm; distances are between the centres of voxels."""
    reach = (diameter + spacing.min()) / 2
    core = ndimage.distance_transform_edt(mask, sampling=spacing) >= reach
    return np.asarray(ndimage.distance_transform_edt(~core, sampling=spacing) < reach) & mask


if __name__ == "__main__":
    sys.exit(main())
