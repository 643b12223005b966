"""What the error map and the check of the slices' order say when something is wrong with a scan.

    python tests/benchmarks/planted_faults.py $MPUNET_CT/val/MIDRC-RICORD-1A-001012.nii.gz \
        $MPUNET_CT/pair/head_thin.nii.gz

Plants one fault at a time into 11 thick slices of 128 x 128 pixels, simulated from the first scan.
The second scan stands for another part of the body. Prints, for the nine thin slices around thick
slice 5, the mean estimate and the mean true error in the lungs (of the second scan: everywhere) and
the AUC for errors above 100 HU; then the share of unusual voxels, and what the checks say. Two
minutes on two CPU cores.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from common import machine

from mpunet.data.checks.order import SliceOrder
from mpunet.inference.errors.stream import Strangeness, known_slices, with_errors
from mpunet.inference.reconstruct import Reconstructor
from mpunet.io.scan_file import read_volume
from mpunet.lungs.threshold import lung_mask
from mpunet.metrics.error_estimate import auc
from mpunet.slices.simulate import thicken

RATIO, SLICES, SIZE = 5, 11, 128
AT = 5  # the thick slice with the fault
AROUND = slice(RATIO * AT - 4, RATIO * AT + 5)  # thin slices

Slab = npt.NDArray[np.float32]


def crop(path: str, *, left: int = 0) -> tuple[Slab, npt.NDArray[np.bool_], float]:
    """The middle of a thin scan, ``left`` pixels beside it, its lungs, and its spacing in mm."""
    scan = read_volume(path)
    slab = scan.slab.astype(np.float32)
    depth = (SLICES - 1) * RATIO + 1
    box = [(n - size) // 2 for n, size in zip(slab.shape, (depth, SIZE, SIZE), strict=True)]
    box[2] -= left
    part = tuple(slice(a, a + n) for a, n in zip(box, (depth, SIZE, SIZE), strict=True))
    return slab[part], lung_mask(slab, scan.spacing)[part], float(scan.spacing[0])


def faulty(thick: Slab) -> Iterator[tuple[str, Slab]]:
    """Yield names of faults and the thick slices that have them."""
    rng = np.random.default_rng(0)
    yield "none", thick
    noise = rng.normal(-500, 300, thick.shape[1:])
    yield f"slice {AT} replaced by noise", with_slice(thick, noise)
    yield f"streaks from a metal pin in slice {AT}", with_slice(thick, thick[AT] + streaks())
    for first, second in ((AT - 1, AT + 1), (AT, AT + 1)):
        order = np.arange(len(thick))
        order[[first, second]] = second, first
        yield f"slices {first} and {second} exchanged", thick[order]
    yield f"slice {AT} replaced by slice 0", with_slice(thick, thick[0])
    yield "all slices in random order", thick[rng.permutation(len(thick))]


def with_slice(thick: Slab, plane: npt.NDArray[np.floating]) -> Slab:
    """The scan with another slice in the place of slice AT."""
    changed = thick.copy()
    changed[AT] = plane.clip(-1024, 3071)
    return changed


def streaks() -> Slab:
    """A pin of 3000 HU and 12 dark and bright rays, which lose half their strength in 30 pixels."""
    y, x = np.indices((SIZE, SIZE)) - SIZE / 2 + 0.5
    radius, angle = np.hypot(y, x), np.arctan2(y, x)
    rays = 800 * np.cos(12 * angle) * 0.5 ** (radius / 30)
    return np.where(radius < 4, 4000, rays).astype(np.float32)


def main(chest: str, head: str) -> None:
    """Measure and print."""
    print(machine(torch.device("cpu")))
    reconstructor = Reconstructor.from_checkpoint(error=True, device="cpu")
    model = reconstructor.error
    assert model is not None
    thin, lungs, spacing = crop(chest, left=84)
    other, _, mm = crop(head)
    everywhere = np.ones(other.shape, bool)
    scans = [(name, scan, thin, lungs, spacing) for name, scan in faulty(thicken(thin, RATIO))]
    scans.append(("another part of the body", thicken(other, RATIO), other, everywhere, mm))
    print("limit of unusual voxels:", f"{model.strange_limit:.1%}")
    for name, thick, truth, region, between in scans:
        thick = np.round(thick)
        order, strangeness = SliceOrder(), Strangeness(model)
        known = known_slices(
            reconstructor.engine, order.watch(thick), thick.shape, spacing=between * RATIO
        )
        found = torch.cat(list(with_errors(known, model, strangeness)), dim=1).numpy()
        inside = region[AROUND]
        estimate = found[1, AROUND][inside]
        error = np.abs(found[0].clip(-1024, 3071) - truth)[AROUND][inside]
        print(
            f"{name:42s} estimate {estimate.mean():5.0f}, true {error.mean():5.0f} HU, "
            f"AUC {auc(estimate, error, 100):.2f}, unusual {strangeness.share:.1%}",
            flush=True,
        )
        for text in (*(fault.text for fault in order.faults()), strangeness.warning()):
            if text is not None:
                print(f"    {text}")


if __name__ == "__main__":
    main(*sys.argv[1:])
