"""Reader study with an automatic reader on synthetic chests: does reconstruction help find nodules?

    python examples/automatic_reader.py --ckpt_path X.ckpt --output build/automatic_reader

Each phantom is thickened to 5 mm slices and read in four conditions: thick, cubic (spline of the
thick slices), reconstructed (with --ckpt_path) and thin. The nodules of the phantom are the
standard. With --error_maps, what the network's error map says at the findings is printed too. The
smallest score of the reader was chosen on the phantoms with seeds 101 to 108 (docs/reader_study.md),
so use other seeds. Phantoms are not real anatomy: the results are not clinical results.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np

from mpunet.cli.reader_study import AUTOMATIC, run
from mpunet.evaluation.tables import write_whole
from mpunet.geometry import grid_spacing, thick_affine
from mpunet.inference.errors.file import error_path
from mpunet.lungs import lung_mask
from mpunet.phantom import chest_phantom
from mpunet.reader_study.blob_reader import blob_findings
from mpunet.reader_study.findings import Finding, Reading, findings_csv, standard_csv
from mpunet.slices import thicken
from mpunet.slices.interpolate import interpolated

RATIO = 5
SHAPE = (176, 256, 334)  # voxels of 1 mm: the whole chest


def main() -> int:
    """Write findings.csv and standard.csv and run the reader study on them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--phantoms", type=int, default=20)
    parser.add_argument("--first_seed", type=int, default=201)
    parser.add_argument(
        "--ckpt_path",
        type=Path,
        help="network of ratio 5 for the condition 'reconstructed'; without it, the condition is "
        "left out",
    )
    parser.add_argument(
        "--stride", default="fast", help="thick slices between windows: best, fast, or a number"
    )
    parser.add_argument(
        "--error_maps",
        action="store_true",
        help="look up the findings in the reconstructions in the error maps of the network",
    )
    parser.add_argument("--output", type=Path, default=Path("build/automatic_reader"))
    args = parser.parse_args()
    reconstruct = None
    if args.ckpt_path:
        import mpunet

        stride = args.stride if args.stride in ("best", "fast") else int(args.stride)
        reconstruct = mpunet.Reconstructor.from_checkpoint(
            args.ckpt_path, stride=stride, error=args.error_maps
        )
    elif args.error_maps:
        parser.error("--error_maps needs --ckpt_path.")
    maps = args.output / "reconstructed"

    args.output.mkdir(parents=True, exist_ok=True)
    files = args.output / "findings.csv", args.output / "standard.csv"
    standard: dict[str, list[Finding]] = {}
    readings: dict[Reading, list[Finding]] = {}
    for seed in range(args.first_seed, args.first_seed + args.phantoms):
        start = time.monotonic()
        case = f"phantom{seed}"
        chest = chest_phantom(seed, shape=SHAPE, spacing=(1, 1, 1))
        standard[case] = [Finding(nodule.centre, nodule.diameter) for nodule in chest.nodules]
        thick = np.rint(thicken(chest.thin, RATIO)).astype(np.int16)
        volumes = {
            "thick": (thick, thick_affine(chest.affine, 0, RATIO)),
            "cubic": (
                np.rint(np.concatenate(list(interpolated(thick, RATIO)))).astype(np.int16),
                chest.affine,
            ),
        }
        if reconstruct and args.error_maps:
            scan = nib.Nifti1Image(thick, thick_affine(chest.affine, 0, RATIO))
            image, error = reconstruct.with_error(scan)
            maps.mkdir(exist_ok=True)
            path = maps / f"{case}.nii.gz"
            nib.save(image, path)
            nib.save(error, error_path(path))
            volumes["reconstructed"] = (np.asarray(image.dataobj), image.affine)
        elif reconstruct:
            volumes["reconstructed"] = (np.rint(reconstruct(thick)).astype(np.int16), chest.affine)
        volumes["thin"] = (chest.thin, chest.affine)
        for condition, (slab, affine) in volumes.items():
            lung = lung_mask(slab, grid_spacing(affine))
            readings[Reading(AUTOMATIC, condition, case)] = blob_findings(slab, affine, lung)
        for file, text in zip(files, (findings_csv(readings), standard_csv(standard)), strict=True):
            # Written after each case, so that `mpunet reader-study` can use an interrupted run.
            write_whole(file, text)
        print(
            f"{case}: {len(standard[case])} nodules, {time.monotonic() - start:.0f} s", flush=True
        )
    print()
    words = [*map(str, files), "--output", str(args.output), "--reference", "thick"]
    if args.error_maps:
        words += ["--error_maps", f"reconstructed={maps}"]
    return run(words)


if __name__ == "__main__":
    sys.exit(main())
