"""Fit the error estimate of a network to thin scans and store it in a weights file.

    python examples/calibrate.py A.nii.gz B.nii.gz --output network.safetensors

Thick slices are simulated from each scan, reconstructed, and compared with the scan. Scans are also
interpolated to the ends of the range of spacings that the network was trained on, where these are
wider than their own: from a scan at two spacings the estimate learns what the spacing does. At
least two patients are needed, better many; the name of a file is that of its patient. They must not
be scans that the network was trained on, on which its errors are smaller; for these, name a network
like it that was not (--learned). docs/error_map.md says what the figures mean. The consistency of
the results with the thick slices is stored too, for `mpunet predict --check`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mpunet.inference.errors.features import NAMES, Slice
from mpunet.inference.errors.fit import (
    COVERAGE,
    STEPS,
    Samples,
    coverage_factor,
    draw,
    fit_error_model,
)
from mpunet.inference.errors.stream import known_slices
from mpunet.inference.reconstruct import Reconstructor
from mpunet.io.scan_file import read_volume
from mpunet.io.volume import without_nifti_suffix
from mpunet.lungs.threshold import lung_mask
from mpunet.metrics.consistency import ConsistencyMeter, ConsistencyRange
from mpunet.metrics.error_estimate import auc, error_quality
from mpunet.models.interpolation import interpolation_weights
from mpunet.slices.simulate import thicken
from mpunet.weights import Record, Weights, read_weights, write_weights

Slab = npt.NDArray[np.float32]


def main(words: Sequence[str] | None = None) -> int:
    """Fit the error model and write the weights file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scans", type=Path, nargs="+", help="thin chest CTs (.nii.gz)")
    parser.add_argument("--checkpoint", default="packaged", help="network (default: packaged)")
    parser.add_argument("--output", type=Path, required=True, help="weights file to write")
    parser.add_argument(
        "--learned",
        nargs="+",
        default=[],
        metavar=("CHECKPOINT", "SCAN"),
        help="scans that the network was trained on, and the checkpoint of a network like it that "
        "was not: its errors on them are taken",
    )
    parser.add_argument(
        "--judge",
        type=Path,
        nargs="+",
        default=[],
        metavar="SCAN",
        help="further scans that the network was not trained on, for figures only",
    )
    parser.add_argument(
        "--slices", type=int, default=20, help="thick slices of each scan, from its middle"
    )
    parser.add_argument(
        "--plane", type=int, default=256, help="largest height and width, around the lungs' centre"
    )
    parser.add_argument(
        "--fwhm",
        type=float,
        nargs="+",
        default=[0.9],
        help="widths of the simulated slice profiles in thick spacings; several for a network that "
        "was trained on a range of widths",
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of each fit")
    args = parser.parse_args(words)

    weights = read_weights(args.checkpoint)
    reconstructor = Reconstructor.from_checkpoint(args.checkpoint)
    unseen = [*drawn(args.scans, reconstructor, weights, args)]
    samples = [one for one, _ in unseen]
    if args.learned:
        other, *learned = args.learned
        like = Reconstructor.from_checkpoint(other)
        if not learned or like.ratio != reconstructor.ratio:
            parser.error(
                "Expected --learned with a network of the same ratio, and scans, got ratios "
                f"{reconstructor.ratio} and {like.ratio}, and {len(learned)} scans."
            )
        samples += [one for one, _ in drawn(map(Path, learned), like, weights, args)]
    judged = [one for one, _ in drawn(args.judge, reconstructor, weights, args)]
    model, left_out = fit_error_model(samples, steps=args.steps)
    print(
        "\nIn the lungs, by a model that was fitted without the patient. AUC for errors above 100 "
        "HU, of the\nestimate and of three features; the factor covers 90 % of the voxels.\n"
        f"{'case':34s}{'   AUC gradient  spread  change  calibration error, HU  bias, HU  factor'}"
    )
    for one in samples:
        print(figures(one, left_out[one.case]))
    for one in judged:
        print(figures(one, model.estimate(one.features)))
    patients = len({one.patient for one in samples})
    print(
        f"\nA new scan, if it is like these {patients} patients, has {COVERAGE:.0%} of its lung voxels "
        f"within {max(model.factors):.2f} times the estimate\nwith a probability of at least "
        f"{patients / (patients + 1):.0%} (split conformal, by patient)."
    )
    record = Record(**{**weights.record, "error": model.to_record()})
    if len(args.fwhm) == 1:
        maes = [mae for _, mae in unseen]
        known = ConsistencyRange(min(maes), max(maes), len(maes), fwhm=args.fwhm[0])
        record["consistency"] = known._asdict()
    half = all(t.dtype == torch.float16 for t in weights.tensors.values() if t.is_floating_point())
    dtype = torch.float16 if half else torch.float32
    write_weights(args.output, replace(weights, record=record), dtype=dtype)
    print(f"Weights with the error model: {args.output}")
    return 0


def drawn(
    paths: Iterable[Path], reconstructor: Reconstructor, weights: Weights, args: Any
) -> Iterator[tuple[Samples, float]]:
    """Yield :func:`measured` for the cases of each scan, reconstructed by a network."""
    for path in paths:
        for name, slab, spacing in cases(path, weights, reconstructor.ratio):
            for fwhm in args.fwhm:
                case = name if len(args.fwhm) == 1 else f"{name}, width {fwhm:g}"
                start = time.perf_counter()
                yield measured(case, path.name, slab, spacing, reconstructor, fwhm, args)
                print(f"{case}: {time.perf_counter() - start:.0f} s", flush=True)


def figures(one: Samples, estimate: Tensor) -> str:
    """Return a line with the quality of an estimate in the lungs, beside single features."""
    error = one.error[one.lung].numpy()
    found = error_quality(estimate[one.lung].numpy(), error)
    rivals = [
        auc(one.features[one.lung, NAMES.index(name)].numpy(), error, 100)
        for name in ("gradient", "spread", "absolute change")
    ]
    factor = coverage_factor(one, estimate)
    return (
        f"{one.case:34s}{found.auc_100:6.3f}" + "".join(f"{rival:8.3f}" for rival in rivals)
        + f"{found.calibration_error:23.1f}{found.bias:10.1f}{factor:8.2f}"
    )  # fmt: skip


def cases(path: Path, weights: Weights, ratio: int) -> Iterator[tuple[str, Slab, Any]]:
    """Yield name, thin slices and spacing (mm) of a scan, at spacings that the network knows."""
    scan = read_volume(path)
    name = without_nifti_suffix(path.name)
    own, *in_plane = map(float, scan.spacing)
    low, high = weights.record.get("training", {}).get("thick_spacing", (0, np.inf))
    slab = scan.slab.astype(np.float32)
    within = own * ratio > 0.95 * low
    if within:
        yield name, slab, (own, *in_plane)
    # The estimate learns from scans at two spacings what the spacing does.
    for wanted in sorted({low / ratio, high / ratio}):
        if within and not 1.05 * own < wanted < np.inf:
            continue
        positions = np.arange(0, (len(slab) - 1) * own / wanted + 1e-6) * wanted / own
        matrix = interpolation_weights(len(slab), positions.clip(max=len(slab) - 1), "cubic")
        yield (
            f"{name} at {wanted:g} mm",
            np.tensordot(matrix.astype(np.float32), slab, 1),
            (wanted, *in_plane),
        )


def measured(
    case: str,
    patient: str,
    slab: Slab,
    spacing: Any,
    reconstructor: Reconstructor,
    fwhm: float,
    args: Any,
) -> tuple[Samples, float]:
    """Simulate, reconstruct and compare the middle of a scan.

    Returns:
        Voxels of it, and the consistency of the result with the thick slices (MAE in HU).
    """
    ratio = reconstructor.ratio
    lung = lung_mask(slab, np.asarray(spacing))
    depth = min((len(slab) - 1) // ratio + 1, args.slices)
    count = (depth - 1) * ratio + 1
    first = (len(slab) - count) // 2
    box = [slice(first, first + count)]
    for axis, size in ((1, slab.shape[1]), (2, slab.shape[2])):
        places = np.flatnonzero(lung.any(axis=tuple({0, 1, 2} - {axis})))
        middle = int(places.mean()) if len(places) else size // 2
        start = max(0, min(middle - args.plane // 2, size - args.plane))
        box.append(slice(start, start + args.plane))
    thin, lung = slab[tuple(box)], lung[tuple(box)]
    thick = np.round(thicken(thin, ratio, fwhm=fwhm))
    spacing = float(spacing[0]) * ratio
    known = known_slices(reconstructor.engine, thick, thick.shape, spacing=spacing)
    meter = ConsistencyMeter(thick, thick.shape, ratio, fwhm=fwhm)

    def watched() -> Iterator[Slice]:
        for item in known:
            meter.add(item.mean[None].cpu().numpy())
            yield item

    return draw(watched(), thin, lung, case=case, patient=patient), meter.result().mae


if __name__ == "__main__":
    sys.exit(main())
