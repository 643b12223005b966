"""Fit an error model to scans whose thin slices are known.

1. Voxels are drawn from each scan, half of them from the lungs.
2. Each perceptron minimises e / m + log m for an absolute error e and its estimate m, the deviance
   of a gamma distribution, whose minimum is the mean of e. They begin with other weights.
3. A monotone table from their mean to the errors that were found is the last step.
4. Each patient is looked at by a model, with a table, that was fitted without them: this gives the
   factor that covers 90 % of their errors, and the share of their voxels that looks strange.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import isotonic_regression
from torch import Tensor

from mpunet.inference.errors.features import Slice, features
from mpunet.inference.errors.model import ErrorModel

__all__ = ["COVERAGE", "Fit", "Samples", "coverage_factor", "draw", "fit_error_model"]

COVERAGE = 0.9
STRANGE = 0.99  # quantile of the calibration voxels beyond which a voxel is strange
MARGIN = 1.5  # times the largest share of strange voxels of a calibration scan, as for consistency
BINS = 200
CONSTANT = 1e6  # scale of features that do not vary
STEPS, BATCH, RATE = 800, 2048, 5e-3


class Samples(NamedTuple):
    """Voxels of a scan.

    Attributes:
        case: name of the scan.
        patient: name of the patient; scans of one patient are left out together.
        features: (voxels, len(NAMES)).
        error: (voxels,), absolute error in HU.
        lung: (voxels,), whether the voxel is in the lungs.
    """

    case: str
    patient: str
    features: Tensor
    error: Tensor
    lung: Tensor


class Fit(NamedTuple):
    """A fitted error model, and how it does on patients that it does not know.

    Attributes:
        model: the model.
        left_out: for each case, the estimates in HU of its voxels by a model that was fitted
            without its patient.
    """

    model: ErrorModel
    left_out: dict[str, Tensor]


def draw(
    slices: Iterable[Slice],
    truth: npt.NDArray[np.floating],
    lung: npt.NDArray[np.bool_],
    *,
    case: str,
    patient: str | None = None,
    voxels: int = 200_000,
    seed: int = 0,
) -> Samples:
    """Draw voxels of a scan, half of them from the lungs.

    Args:
        slices: what is known of each thin slice, see :func:`mpunet.inference.errors.stream`.
        truth: true thin slices (D, H, W) in HU.
        lung: lung mask (D, H, W).
        case: name of the scan.
        patient: name of the patient. Default: ``case``.
        voxels: number of voxels, about.
        seed: seed of the draw.
    """
    generator = np.random.default_rng(seed)
    inside = int(lung.sum())
    # Probability of a voxel outside and in the lungs.
    odds = np.array([voxels / 2 / max(1, lung.size - inside), voxels / 2 / max(1, inside)])
    drawn = []
    known = list[Tensor]()
    source = _remember(slices, known)
    for index, found in enumerate(features(source)):
        mean = known.pop(0)
        mask = lung[index]
        chosen = torch.from_numpy(generator.random(mask.shape) < odds[mask.astype(np.intp)])
        error = (mean.cpu() - torch.from_numpy(truth[index].astype(np.float32))).abs()
        drawn.append((found.cpu()[:, chosen].T, error[chosen], torch.from_numpy(mask)[chosen]))
    return Samples(case, patient or case, *map(torch.cat, zip(*drawn, strict=True)))


def fit_error_model(samples: Sequence[Samples], *, steps: int = STEPS, seed: int = 0) -> Fit:
    """Fit and calibrate an error model.

    Args:
        samples: voxels of at least two patients, see :func:`draw`.
        steps: number of steps of the optimiser.
        seed: seed of the initial weights and of the batches.

    Raises:
        ValueError: if there are fewer than two patients.
    """
    patients = sorted({one.patient for one in samples})
    if len(patients) < 2:
        raise ValueError(
            f"Expected scans of at least 2 patients, got {', '.join(patients) or 'none'}; an "
            "estimate is calibrated on patients that it was not fitted to."
        )
    model = _fit(samples, steps, seed)
    left_out, shares = {}, []
    for patient in patients:
        others = _fit([one for one in samples if one.patient != patient], steps, seed)
        for one in samples:
            if one.patient == patient:
                left_out[one.case] = others.estimate(one.features)
                shares.append(float(others.strange(one.features).float().mean()))
    model.factors = [coverage_factor(one, left_out[one.case]) for one in samples]
    model.cases = [one.case for one in samples]
    model.strange_limit = min(1.0, MARGIN * max(shares))
    return Fit(model.eval(), left_out)


def coverage_factor(one: Samples, estimate: Tensor) -> float:
    """Return the factor by which estimates in HU cover 90 % of the errors in the lungs."""
    ratio = one.error / estimate.clamp(min=0.1)
    return float(np.quantile(ratio[one.lung].numpy(), COVERAGE))


def _fit(samples: Sequence[Samples], steps: int, seed: int) -> ErrorModel:
    """Fit the perceptrons and the table; every scan weighs the same."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ErrorModel()
    least = min(len(one.error) for one in samples)
    chosen = [torch.randperm(len(one.error), generator=generator)[:least] for one in samples]
    inputs, errors = (
        torch.cat([part[rows] for part, rows in zip(parts, chosen, strict=True)])
        for parts in ([one.features for one in samples], [one.error for one in samples])
    )
    model.center, spread = inputs.mean(0), inputs.std(0)
    # What was the same everywhere, as the spacing may be, teaches nothing and is left out.
    model.scale = torch.where(spread < 1e-3, CONSTANT, spread)
    model.whiten = _whitening((inputs - model.center) / model.scale)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
    with torch.no_grad():
        for member in model.members:
            member[-1].bias.fill_(math.log(float(errors.mean()) + 0.1))  # type: ignore[index]
    for _ in range(steps):
        rows = torch.randint(len(errors), (BATCH,), generator=generator)
        found = model.log_errors(inputs[rows])
        loss = (errors[rows] * (-found).exp() + found).mean(1).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    model.requires_grad_(False)
    model.raw, model.calibrated = _table(model.log_error(inputs).exp(), errors)
    return model


def _whitening(inputs: Tensor) -> Tensor:
    """Return W so that |W x|² is above 1 for a hundredth of the voxels x, as unusual as possible."""
    size = inputs.shape[1]
    covariance = inputs.T @ inputs / len(inputs) + 0.01 * torch.eye(size)
    whiten: Tensor = torch.linalg.inv(torch.linalg.cholesky(covariance))
    distance = (inputs @ whiten.T).square().sum(1)
    limit = float(np.quantile(distance.numpy(), STRANGE))
    return whiten / math.sqrt(limit)


def _table(raw: Tensor, errors: Tensor) -> tuple[Tensor, Tensor]:
    """Return the monotone table from raw to calibrated estimates in HU."""
    estimate, error = (values.numpy().astype(np.float64) for values in (raw, errors))
    # Even bins of the logarithm, so that the few voxels with large errors have bins, too.
    edges = np.geomspace(max(0.1, estimate.min()), estimate.max() + 1e-6, BINS + 1)
    place = np.digitize(estimate, edges[1:-1])
    total, low, high = (
        np.bincount(place, values, BINS) for values in (np.ones_like(error), estimate, error)
    )
    enough = total > 1e-4 * total.sum()
    fitted = isotonic_regression(high[enough] / total[enough], weights=total[enough]).x
    knots = low[enough] / total[enough]
    return torch.tensor(knots).float(), torch.tensor(fitted).float()


def _remember(slices: Iterable[Slice], means: list[Tensor]) -> Iterable[Slice]:
    for item in slices:
        means.append(item.mean)
        yield item
