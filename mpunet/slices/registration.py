"""Where a thick series stands on a thin one, told by the voxels alone: to a fraction of a thin slice, turned or not.

The thin series, thickened at every one of its slices, is compared with every thick slice at once: one matrix product. Agreement is
Pearson's correlation, so that another scale or zero of the intensities does not matter. No header is looked at.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mpunet.slices.simulate import profile_weights, thickening_matrix

AGREES = 0.95  # least agreement of a pair (our choice): genuine pairs have 0.997 or more, two patients 0.5 or so

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
    """How a thick series fits a thin one.

    Attributes:
        offset: thin slice, with fraction, on which thick slice 0 stands.
        turned: how the thick series has to be turned to fit, "" if not at all.
        agreement: correlation of both where they overlap, each column of voxels less its mean over the slices, so that what all
            slices of all patients have in common does not count. 1 is perfect, two patients have 0.5 or so.
        gain: HU of the thick series per HU of the thin one.
        bias: mean of thick minus thin in HU.
        slices: thick slices that overlap.
    """

    offset: float
    turned: str
    agreement: float
    gain: float
    bias: float
    slices: int


class Step(NamedTuple):
    """From thick slice ``thick`` on, the series stands ``by`` thin slices further up than before it: where slices are missing or
    doubled. Above 0 thick ones are missing or thin ones doubled, below 0 it is the other way round.
    """

    thick: int
    by: float


def register(
    thick: Planes, thin: Planes, ratio: int, *, expected: float | None = None
) -> Registration:
    """The position of a thick series on a thin one of the same field of view that maximises their agreement.

    All positions at which at least half of the thick slices that could overlap do so are tried, with the default slice profile;
    as profiles are symmetric, another one moves nothing. The fraction is that of a parabola through the best position and its
    neighbours.

    Args:
        thick: (D, h, w) in HU, means of in-plane blocks for speed and against noise (:func:`mpunet.data.checks.survey.block_means`).
        thin: (M, h, w) in HU, likewise.
        ratio: thick spacing / thin spacing.
        expected: where the headers put it; kept where the voxels do not clearly say otherwise, as of volumes that hardly change
            along their slices' normal.

    Raises:
        ValueError: if the planes differ in size, or fewer than two thick slices can overlap.

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
            f"Expected at least 2 thick slices that overlap with thin ones of one size at ratio {ratio}, "
            f"got {thick.shape} and {thin.shape}."
        )
    made = _thickened(thin, ratio)
    found = []
    for name, axes in _TURNS.items():
        table = _Table(np.flip(thick, axes), made, ratio)
        scores = {offset: table.correlation(offset) for offset in table.offsets}
        best = max(scores, key=lambda offset: scores[offset])
        if (
            expected is not None
            and not name
            and scores[best] - scores.get(round(expected), -1.0) < _unclear(scores[best])
        ):
            best = round(expected)
        found.append((scores[best] - _unclear(scores[best]) * bool(name), best, name, axes, table))
    _, best, name, axes, table = max(found, key=lambda item: item[0])
    used = table.used(best)
    a, b = (x - x.mean(axis=0) for x in (np.flip(thick, axes)[used], made[best + ratio * used]))
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
    """Where the position of a thick series on a thin one changes on the way, by ``least`` thin slices or more.

    Args:
        thick: (D, h, w), see :func:`register`.
        thin: (M, h, w), likewise.
        ratio: thick spacing / thin spacing.
        offset: thin slice on which thick slice 0 stands.
        least: thin slices.
    """
    place = _places(thick, thin, ratio, round(offset))
    ks = sorted(place)
    found: list[tuple[int, float]] = []
    for i in range(2, len(ks) - 1):
        before, after = (
            [place[k] for k in part] for part in (ks[max(0, i - 3) : i], ks[i : i + 3])
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


def _places(thick: Planes, thin: Planes, ratio: int, whole: int) -> dict[int, float]:
    """How many thin slices from where the series as a whole stands each thick slice fits best, where that can be told.

    Three neighbours are moved together, against noise.
    """
    reach = 3 * ratio + 2
    table = _Table(thick, _thickened(thin, ratio), ratio)
    moves = np.arange(-reach, reach + 1)
    used = table.used(whole)
    errors = {int(k): table.errors(int(k), moves + whole + ratio * int(k)) for k in used}
    place = {}
    for k in errors:
        curve = np.sum([errors[near] for near in (k - 1, k, k + 1) if near in errors], axis=0)
        best = int(curve.argmin())
        if not 0 < best < 2 * reach or not np.isfinite(curve[best - 1 : best + 2]).all():
            continue
        # Where the anatomy hardly changes along the slices' normal, noise tells the position: there the curve is flat.
        far = np.concatenate([curve[: max(0, best - ratio)], curve[best + ratio + 1 :]])
        if not len(far) or curve[best] > 0.5 * far[np.isfinite(far)].min(initial=np.inf):
            continue
        place[k] = best + _vertex(*curve[best - 1 : best + 2]) - reach
    return place


class _Table:
    """Means, squares and products of every thick with every thickened slice."""

    def __init__(self, thick: Planes, made: Planes, ratio: int) -> None:
        self.ratio = ratio
        a, b = (x.reshape(len(x), -1) for x in (thick, made))
        middle = np.float32(b.mean())  # products of small numbers: float32 will do
        a, b = a - middle, b - middle
        self.a, self.b = a.mean(axis=1, dtype=np.float64), b.mean(axis=1, dtype=np.float64)
        self.aa, self.bb = (
            np.einsum("dv,dv->d", x, x, dtype=np.float64) / x.shape[1] for x in (a, b)
        )
        self.ab = (a @ b.T).astype(np.float64) / a.shape[1]

    @property
    def offsets(self) -> range:
        """Positions of thick slice 0 at which enough slices overlap."""
        depth, total = self.ab.shape
        most = min(depth, (total - 1) // self.ratio + 1)
        need = max(2, -(-most // 2))
        return range(-(depth - need) * self.ratio, total - (need - 1) * self.ratio)

    def used(self, offset: int, *, margin: int = 0) -> npt.NDArray[np.intp]:
        """Thick slices that lie on thin ones, and on thin ones if they move by ``margin``."""
        k = np.arange(len(self.a))
        at = offset + self.ratio * k
        return k[(at >= margin) & (at < len(self.b) - margin)]

    def correlation(self, offset: int, *, move: int = 0, margin: int = 0) -> float:
        k = self.used(offset, margin=margin)
        m = offset + move + self.ratio * k
        a, b = self.a[k].mean(), self.b[m].mean()
        variances = (self.aa[k].mean() - a * a) * (self.bb[m].mean() - b * b)
        return (
            float((self.ab[k, m].mean() - a * b) / np.sqrt(variances)) if variances > 1e-9 else 0.0
        )

    def fraction(self, offset: int) -> float:
        """Where between the neighbours of a position the agreement is best, -0.5 to 0.5; 0 where they are as good, for rounding to tell."""
        if len(self.used(offset, margin=1)) < 1:
            return 0.0
        found = [self.correlation(offset, move=move, margin=1) for move in (-1, 0, 1)]
        flat = max(found) - min(found) < _unclear(max(found))
        return 0.0 if flat else _vertex(*(-correlation for correlation in found))

    def scale(self, offset: int) -> tuple[float, float]:
        """Gain and bias of thick over thin intensities."""
        k = self.used(offset)
        m = offset + self.ratio * k
        a, b = self.a[k].mean(), self.b[m].mean()
        variance = self.bb[m].mean() - b * b
        return float((self.ab[k, m].mean() - a * b) / variance) if variance > 1e-9 else 1.0, float(
            a - b
        )

    def errors(self, k: int, m: npt.NDArray[np.intp]) -> Array:
        """Mean squared difference of thick slice k from thickened slices m, each less its mean; infinite where there is none."""
        near = m.clip(0, len(self.b) - 1)
        products = self.ab[k, near] - self.a[k] * self.b[near]
        errors = self.aa[k] - self.a[k] ** 2 + self.bb[near] - self.b[near] ** 2 - 2 * products
        return np.where(near == m, errors.clip(1e-6), np.inf)


def _thickened(thin: Planes, ratio: int) -> Planes:
    """As if a thick slice stood on each thin one."""
    matrix = thickening_matrix(len(thin), 1, profile_weights(ratio))
    return np.asarray((matrix @ thin.reshape(len(thin), -1)).reshape(thin.shape))


def _unclear(correlation: float) -> float:
    """Difference from the best correlation below which another position is as good: 1 % of what lacks to 1, and rounding."""
    return 1e-5 + 0.01 * (1 - correlation)


def _vertex(before: float, at: float, after: float) -> float:
    """Minimum of the parabola through three equidistant points, from the middle one, at most half a step away."""
    bend = before - 2 * at + after
    return float(np.clip((before - after) / (2 * bend), -0.5, 0.5)) if bend > 0 else 0.0
