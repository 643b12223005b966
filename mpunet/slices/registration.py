"""Registration of a thick series to a thin one: position and flips, from the voxels alone.

The position is found to a fraction of a thin slice. A thick slice is simulated at every thin
slice, and all of them are compared with all real thick slices in one matrix product. Agreement is
Pearson's correlation, so another scale or zero of the intensities does not matter. Headers are not
read.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mpunet.slices.simulate import profile_weights, thickening_matrix

# Smallest agreement of a pair (our choice). Genuine pairs have 0.997 or more; series of two
# patients have about 0.5.
AGREES = 0.95

__all__ = ["AGREES", "Registration", "Step", "find_steps", "register"]

Planes = npt.NDArray[np.float32]
Array = npt.NDArray[np.float64]

_TURNS = {
    "": (),
    "upside down": (0,),
    "front to back": (1,),
    "left to right": (2,),
    "upside down and front to back": (0, 1),
    "upside down and left to right": (0, 2),
    "front to back and left to right": (1, 2),
    "turned in all three axes": (0, 1, 2),
}


class Registration(NamedTuple):
    """Position and orientation of a thick series on a thin one.

    Attributes:
        offset: position of thick slice 0 in thin slices, with a fraction.
        turned: flips of the thick series that make it fit, "" for none.
        agreement: correlation of both series where they overlap. The mean over the slices is
            subtracted from each column of voxels first, to remove what all slices of all patients
            have in common. 1 is perfect; two patients have about 0.5.
        gain: HU of the thick series per HU of the thin one.
        bias: mean of thick minus thin in HU.
        slices: number of thick slices that overlap with the thin series.
    """

    offset: float
    turned: str
    agreement: float
    gain: float
    bias: float
    slices: int


class Step(NamedTuple):
    """A change of position within a thick series, caused by missing or duplicate slices.

    Attributes:
        thick: first thick slice at the new position.
        by: change of position in thin slices, with a fraction. If positive, thick slices are
            missing or thin ones are duplicated; if negative, the other way round.
    """

    thick: int
    by: float


def register(
    thick: Planes, thin: Planes, ratio: int, *, expected: float | None = None
) -> Registration:
    """Find the position and flips of a thick series that agree best with a thin one.

    Both series must have the same field of view. All positions are tried at which at least half of
    the possible number of thick slices overlap, with the default slice profile. Another profile
    would give the same position, because profiles are symmetric. The fraction is from a parabola
    through the best position and its neighbours.

    Args:
        thick: thick slices (D, h, w) in HU, as means of in-plane blocks to save time and reduce
            noise (:func:`mpunet.data.checks.survey.block_means`).
        thin: thin slices (M, h, w) in HU, as means of the same in-plane blocks.
        ratio: thick spacing / thin spacing.
        expected: offset according to the headers, in thin slices; None if unknown. It is kept
            unless another position agrees clearly better. This matters for volumes that hardly
            change along the slice normal.

    Raises:
        ValueError: if the slices differ in size, or fewer than two thick slices can overlap.

    >>> thin = np.random.default_rng(0).normal(size=(60, 8, 8)).cumsum(axis=0).astype(np.float32)
    >>> register(thin[7:58:5], thin, 5).slices
    11
    """
    if (
        thick.ndim != 3
        or thick.shape[1:] != thin.shape[1:]
        or min(len(thick), (len(thin) - 1) // ratio + 1) < 2
    ):
        raise ValueError(
            f"Expected at least 2 thick slices that overlap with thin ones of one size at ratio "
            f"{ratio}, got {thick.shape} and {thin.shape}."
        )
    thickened = _thickened(thin, ratio)
    found = []
    for name, axes in _TURNS.items():
        table = _Table(np.flip(thick, axes), thickened, ratio)
        scores = {offset: table.correlation(offset) for offset in table.offsets}
        best = max(scores, key=lambda offset: scores[offset])
        if (
            expected is not None
            and not name
            and scores[best] - scores.get(round(expected), -1.0) < _tolerance(scores[best])
        ):
            best = round(expected)
        found.append(
            (scores[best] - _tolerance(scores[best]) * bool(name), best, name, axes, table)
        )
    _, best, name, axes, table = max(found, key=lambda item: item[0])
    used = table.used(best)
    a, b = (
        x - x.mean(axis=0) for x in (np.flip(thick, axes)[used], thickened[best + ratio * used])
    )
    norm = float(np.sqrt((a.astype(np.float64) ** 2).sum() * (b.astype(np.float64) ** 2).sum()))
    gain, bias = table.scale(best)
    return Registration(
        best + table.fraction(best),
        name,
        float((a * b).sum(dtype=np.float64) / norm) if norm else 0.0,
        gain,
        bias,
        len(used),
    )


def find_steps(
    thick: Planes, thin: Planes, ratio: int, offset: float, *, least: float = 0.6
) -> list[Step]:
    """Find the thick slices at which the position of a thick series on a thin one changes.

    Args:
        thick: thick slices (D, h, w) in HU, as for :func:`register`.
        thin: thin slices (M, h, w) in HU, as for :func:`register`.
        ratio: thick spacing / thin spacing.
        offset: position of thick slice 0 in thin slices.
        least: smallest change to return, in thin slices.
    """
    shifts = _shifts(thick, thin, ratio, round(offset))
    ks = sorted(shifts)
    found: list[tuple[int, float]] = []
    for i in range(2, len(ks) - 1):
        before, after = (
            [shifts[k] for k in part] for part in (ks[max(0, i - 3) : i], ks[i : i + 3])
        )
        by = float(np.median(after) - np.median(before))
        if abs(by) < least:
            continue
        if found and i - found[-1][0] <= 3 and by * found[-1][1] > 0:
            if abs(by) > abs(found[-1][1]):
                found[-1] = (i, by)
        else:
            found.append((i, by))
    return [Step(ks[i], by) for i, by in found]


def _shifts(thick: Planes, thin: Planes, ratio: int, offset: int) -> dict[int, float]:
    """Return the shift in thin slices that makes each thick slice fit best, relative to ``offset``.

    Slices whose shift cannot be determined are left out. Three neighbours are shifted together, to
    reduce noise.
    """
    reach = 3 * ratio + 2
    table = _Table(thick, _thickened(thin, ratio), ratio)
    moves = np.arange(-reach, reach + 1)
    used = table.used(offset)
    errors = {int(k): table.errors(int(k), moves + offset + ratio * int(k)) for k in used}
    shifts = {}
    for k in errors:
        curve = np.sum([errors[near] for near in (k - 1, k, k + 1) if near in errors], axis=0)
        best = int(curve.argmin())
        if not 0 < best < 2 * reach or not np.isfinite(curve[best - 1 : best + 2]).all():
            continue
        # If the anatomy hardly changes along the slice normal, the curve is flat and noise decides
        # where its minimum is.
        far = np.concatenate([curve[: max(0, best - ratio)], curve[best + ratio + 1 :]])
        if not len(far) or curve[best] > 0.5 * far[np.isfinite(far)].min(initial=np.inf):
            continue
        shifts[k] = best + _parabola_minimum(*curve[best - 1 : best + 2]) - reach
    return shifts


class _Table:
    """Means, mean squares and mean products of every thick slice and every thickened thin slice."""

    def __init__(self, thick: Planes, thickened: Planes, ratio: int) -> None:
        self.ratio = ratio
        a, b = (x.reshape(len(x), -1) for x in (thick, thickened))
        middle = np.float32(b.mean())  # float32 is precise enough for products of small numbers
        a, b = a - middle, b - middle
        self.a, self.b = a.mean(axis=1, dtype=np.float64), b.mean(axis=1, dtype=np.float64)
        self.aa, self.bb = (
            np.einsum("dv,dv->d", x, x, dtype=np.float64) / x.shape[1] for x in (a, b)
        )
        self.ab = (a @ b.T).astype(np.float64) / a.shape[1]

    @property
    def offsets(self) -> range:
        """Positions of thick slice 0 at which enough slices overlap.

        Enough is half of the thick slices that can overlap, and at least 2.
        """
        depth, total = self.ab.shape
        most = min(depth, (total - 1) // self.ratio + 1)
        need = max(2, -(-most // 2))
        return range(-(depth - need) * self.ratio, total - (need - 1) * self.ratio)

    def used(self, offset: int, *, margin: int = 0) -> npt.NDArray[np.intp]:
        """Return the thick slices that are ``margin`` or more thin slices from the ends."""
        k = np.arange(len(self.a))
        at = offset + self.ratio * k
        return k[(at >= margin) & (at < len(self.b) - margin)]

    def correlation(self, offset: int, *, move: int = 0, margin: int = 0) -> float:
        """Return the correlation at ``offset`` + ``move``; 0 if there is no variance."""
        k = self.used(offset, margin=margin)
        m = offset + move + self.ratio * k
        a, b = self.a[k].mean(), self.b[m].mean()
        variances = (self.aa[k].mean() - a * a) * (self.bb[m].mean() - b * b)
        return (
            float((self.ab[k, m].mean() - a * b) / np.sqrt(variances)) if variances > 1e-9 else 0.0
        )

    def fraction(self, offset: int) -> float:
        """Return the fraction, -0.5 to 0.5, to add to a position for the best agreement.

        Return 0 if the neighbours agree as well as the position: rounding errors would decide.
        """
        if len(self.used(offset, margin=1)) < 1:
            return 0.0
        found = [self.correlation(offset, move=move, margin=1) for move in (-1, 0, 1)]
        flat = max(found) - min(found) < _tolerance(max(found))
        return 0.0 if flat else _parabola_minimum(*(-correlation for correlation in found))

    def scale(self, offset: int) -> tuple[float, float]:
        """Return the gain and the bias of thick relative to thin intensities."""
        k = self.used(offset)
        m = offset + self.ratio * k
        a, b = self.a[k].mean(), self.b[m].mean()
        variance = self.bb[m].mean() - b * b
        return float((self.ab[k, m].mean() - a * b) / variance) if variance > 1e-9 else 1.0, float(
            a - b
        )

    def errors(self, k: int, m: npt.NDArray[np.intp]) -> Array:
        """Return the mean squared difference of thick slice k and each of the thickened slices m.

        The mean of each slice is subtracted first. The difference is infinite for slices m that do
        not exist.
        """
        near = m.clip(0, len(self.b) - 1)
        products = self.ab[k, near] - self.a[k] * self.b[near]
        errors = self.aa[k] - self.a[k] ** 2 + self.bb[near] - self.b[near] ** 2 - 2 * products
        return np.where(near == m, errors.clip(1e-6), np.inf)


def _thickened(thin: Planes, ratio: int) -> Planes:
    """Simulate a thick slice at each thin one."""
    matrix = thickening_matrix(len(thin), 1, profile_weights(ratio))
    return np.asarray((matrix @ thin.reshape(len(thin), -1)).reshape(thin.shape))


def _tolerance(correlation: float) -> float:
    """Return the difference from the best correlation below which another position is as good.

    It is 1 % of the difference between the best correlation and 1, plus a margin for rounding
    errors.
    """
    return 1e-5 + 0.01 * (1 - correlation)


def _parabola_minimum(before: float, at: float, after: float) -> float:
    """Return the minimum of the parabola through three equidistant points.

    It is relative to the middle point, in steps, and clipped to half a step.
    """
    bend = before - 2 * at + after
    return float(np.clip((before - after) / (2 * bend), -0.5, 0.5)) if bend > 0 else 0.0
