"""Draw the picture at the top of the README from a thin chest CT that mpunet does not include.

    python examples/readme_picture.py RIDER-0117.nii.gz

Thick slices are simulated from the scan and reconstructed with the packaged network at the spacing
of the scan. The figures of the README's caption are those that `mpunet evaluate` prints on the way.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from demo import coronals, reconstruct

from mpunet.geometry import grid_spacing
from mpunet.io.scan_file import read_volume
from mpunet.lungs.threshold import lung_mask
from mpunet.report.pictures import pyplot


def main(words: Sequence[str] | None = None) -> int:
    """Reconstruct the scan and draw the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scan", type=Path, help="thin chest CT (.nii.gz), axial slices")
    parser.add_argument(
        "--ratio",
        type=int,
        default=6,
        help="thick spacing / thin spacing; default 6, so that slices 0.8 mm apart become 4.8 mm, "
        "a spacing that the packaged network was trained for",
    )
    parser.add_argument(
        "--row", type=float, default=0.56, help="coronal plane, front to back, from 0 to 1"
    )
    parser.add_argument(
        "--detail",
        type=float,
        nargs=2,
        default=(0.66, 0.4),
        metavar=("X", "Y"),
        help="centre of the enlarged part, from the left and from the top, from 0 to 1",
    )
    parser.add_argument("--work", type=Path, default=Path("build/readme_picture"))
    parser.add_argument("--output", type=Path, default=Path("docs/images/coronal_ct.png"))
    args = parser.parse_args(words)

    scan = read_volume(args.scan)
    spacing = grid_spacing(scan.slab_affine)
    same_spacing = ["--thin_spacing", f"{spacing[0]:.5g}"]
    files = reconstruct(args.scan, args.work, args.ratio, same_spacing)
    lungs = np.flatnonzero(lung_mask(scan.slab, spacing).any(axis=(0, 1)))
    columns = slice(lungs[0], lungs[-1] + 1) if len(lungs) else slice(None)
    pictures = coronals(files, row=args.row, columns=columns)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    draw(pictures, args.detail, args.output)
    print(f"\nPicture: {args.output}")
    return 0


def draw(
    pictures: Mapping[str, npt.NDArray[np.uint8]], detail: Sequence[float], path: Path
) -> None:
    """Draw four pictures two by two, and below them the same part of each, enlarged."""
    plt = pyplot()
    height, width = next(iter(pictures.values())).shape
    # The part is a fifth of the width and three quarters as high as wide.
    part = (min(height, round(0.15 * width)), round(0.2 * width))
    top, left = (
        min(max(0, round(at * size - length / 2)), size - length)
        for at, size, length in zip(reversed(detail), (height, width), part, strict=True)
    )
    heights = [6 * height / width] * 2 + [3 * part[0] / part[1]]
    figure, axes = plt.subplot_mosaic(
        "AABB;CCDD;abcd",
        figsize=(12, sum(heights) + 0.8),
        height_ratios=heights,
        layout="constrained",
    )
    for key, (name, image) in zip("ABCD", pictures.items(), strict=True):
        enlarged = image[top : top + part[0], left : left + part[1]]
        for axis, pixels in ((axes[key], image), (axes[key.lower()], enlarged)):
            axis.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.axis("off")
        axes[key].set_title(name, fontsize="medium")
        frame = plt.Rectangle((left, top), part[1], part[0], fill=False, edgecolor="orange")
        axes[key].add_patch(frame)
        axes[key.lower()].set_title(name.split(",")[0], fontsize="small")
    figure.savefig(path, dpi=130, facecolor="white")
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
