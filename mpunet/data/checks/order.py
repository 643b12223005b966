"""Check that the slices of a scan are in their order, by their voxels alone.

Slices next to each other resemble each other more than slices further apart. Where they do not, the
order is wrong or a slice does not belong there. A network does not see this: each slice alone looks
like anatomy. The rules and their limits are our choice; docs/data.md has the measurements.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import pdist, squareform

from mpunet.data.checks.survey import block_means

__all__ = ["OrderFault", "SliceOrder", "order_faults", "slices_text"]

Distances = npt.NDArray[np.float64]

BLOCKS = 32  # approximate number of block means along height and along width
FEWEST = 8  # slices, and rows and columns of blocks: noise alone decides below
FLOOR = 2.0  # HU, added to every distance: smaller differences count as noise
# Two slices are exchanged if in the other order the steps to their neighbours are this many times
# smaller. All public scans that we have, thin and thick, whole and in parts: below 1.04.
EXCHANGED = 1.15
# A slice does not belong where it is if its neighbours are this many times closer to each other
# than to it. Chests: at most 1.15, parts of a head phantom 1.6.
FOREIGN = 2.0
# There is no order if more than this share of the slices resemble another slice clearly more than
# the slices next to them. Measured: at most 17 %; in random order 90 % as a median, and fewer only
# in scans of a dozen slices, where exchanges are found instead.
CLEARLY, DISORDER = 1.25, 1 / 3
MOST = 3  # slices exchanged or foreign to name one by one


class OrderFault(NamedTuple):
    """A fault in the order of slices.

    Attributes:
        code: "repeated" for identical slices, "exchanged" for two slices in each other's place,
            "foreign" for a slice unlike both its neighbours, "disorder" for many of these or for a
            scan without order.
        slices: the slices, counted from 0 in slab orientation; empty for a scan without order.
        text: description for the user.
    """

    code: Literal["repeated", "exchanged", "foreign", "disorder"]
    slices: tuple[int, ...]
    text: str


class SliceOrder:
    """Looks at the slices of a scan while others read them; keeps 4 kB of each.

    Args:
        last_first: whether they come from the last to the first.

    >>> order = SliceOrder()
    >>> slices = [np.full((32, 32), 10 * k) + np.arange(32) for k in (0, 1, 2, 3, 5, 4, 6, 7, 8)]
    >>> for _ in order.watch(slices):
    ...     pass
    >>> [fault.slices for fault in order.faults()]
    [(4, 5)]
    """

    def __init__(self, *, last_first: bool = False) -> None:
        self._last_first = last_first
        self._planes: list[npt.NDArray[np.float32]] = []
        self._digests: list[int | None] = []

    def watch(self, planes: Iterable[npt.NDArray[Any]]) -> Iterator[npt.NDArray[Any]]:
        """Yield slices (H, W) in HU as they are, and remember what they look like."""
        for plane in planes:
            blank = plane.min() == plane.max()
            self._planes.append(block_means(plane, BLOCKS))
            self._digests.append(None if blank else zlib.crc32(np.ascontiguousarray(plane).data))
            yield plane

    def faults(self) -> list[OrderFault]:
        """Return the faults among the slices so far."""
        step = -1 if self._last_first else 1
        return order_faults(self._planes[::step], self._digests[::step])


def order_faults(
    planes: Sequence[npt.NDArray[np.float32]], digests: Sequence[int | None]
) -> list[OrderFault]:
    """Find faults in the order of the slices of a scan.

    A scan of fewer than 8 slices is searched for repeats only, one of fewer than 8 pixels along
    height or width not at all. The first and the last slice are not judged, as they have one
    neighbour only, and a scan that is upside down has its order.

    Args:
        planes: block means (h, w) of each slice in HU, see
            :func:`mpunet.data.checks.survey.block_means`.
        digests: for each slice, a number that is the same for identical slices; None for a blank
            one.
    """
    if not planes or min(planes[0].shape) < FEWEST:
        return []
    repeated = list(_repeated(digests))
    seen = [k for k, digest in enumerate(digests) if digest is not None]
    if not seen:
        return repeated
    start, stop = seen[0], seen[-1] + 1  # without blank slices at the ends
    if stop - start < FEWEST:
        return repeated
    flat = np.stack([block_means(plane, BLOCKS).ravel() for plane in planes[start:stop]])
    distance = squareform(pdist(flat, "cityblock")) / flat.shape[1] + FLOOR
    if (lost := _lost(distance)) > DISORDER * len(distance):
        text = (
            f"{lost} of {len(planes)} slices resemble another slice more than the slices next to "
            "them: they are not in their order"
        )
        return [OrderFault("disorder", (), text)]
    faults: list[OrderFault] = []
    named = {k for fault in repeated for k in fault.slices}
    judged = np.array([start + k not in named for k in range(len(distance))])
    while (found := _exchange(distance, judged)) is not None:
        distance = _exchanged(distance, *found.slices)
        first, second = (start + k for k in found.slices)
        text = (
            f"slices {first} and {second} of {len(planes)} seem to be exchanged: in each other's "
            f"place they differ {found.gain:.1f} times less from the slices around them"
        )
        faults.append(OrderFault("exchanged", (first, second), text))
        named |= {first, second}
    for k, times in _foreign(distance):
        if start + k not in named:
            text = (
                f"slice {start + k} of {len(planes)} does not seem to belong there: the slices "
                f"before and after it resemble each other {times:.1f} times more than it"
            )
            faults.append(OrderFault("foreign", (start + k,), text))
    if len(faults) > MOST:
        odd = sorted({k for fault in faults for k in fault.slices})
        text = f"{slices_text(odd)} of {len(planes)} are not in their order"
        faults = [OrderFault("disorder", tuple(odd), text)]
    return sorted([*repeated, *faults], key=lambda fault: fault.slices)


def slices_text(indices: Sequence[int]) -> str:
    """Name slices.

    >>> slices_text([7]), slices_text([7, 8, 9]), slices_text(range(12))
    ('slice 7', 'slices 7, 8, 9', 'slices 0, 1, 2, ... (12 in all)')
    """
    shown = ", ".join(map(str, indices[:3]))
    more = f", ... ({len(indices)} in all)" if len(indices) > 3 else ""
    return f"slice{'s' if len(indices) > 1 else ''} {shown}{more}"


class _Exchange(NamedTuple):
    slices: tuple[int, int]
    gain: float


def _repeated(digests: Sequence[int | None]) -> Iterator[OrderFault]:
    places: dict[int, list[int]] = {}
    for k, digest in enumerate(digests):
        if digest is not None:
            places.setdefault(digest, []).append(k)
    for found in places.values():
        if len(found) > 1 and len(places) > 1:  # slices that are all the same have no order
            text = f"{slices_text(found)} of {len(digests)} are identical"
            yield OrderFault("repeated", tuple(found), text)


def _lost(distance: Distances) -> int:
    """Count the slices that clearly resemble another slice more than their neighbours."""
    alone = distance + np.diag(np.full(len(distance), np.inf))
    steps = np.concatenate([[np.inf], np.diag(distance, 1), [np.inf]])
    beside = np.minimum(steps[:-1], steps[1:])
    return int((beside > CLEARLY * alone.min(axis=1)).sum())


def _exchange(distance: Distances, judged: npt.NDArray[np.bool_]) -> _Exchange | None:
    """Return the judged slices whose exchange shortens the way through all slices most, if any."""
    size = len(distance)
    i, j = np.triu_indices(size - 2, 1)
    i, j = i + 1, j + 1  # neither the first nor the last slice
    apart = j > i + 2  # else the steps between the two stay the same

    def steps(at: npt.NDArray[np.intp], slice_: npt.NDArray[np.intp], inward: int) -> Distances:
        return distance[at - inward, slice_] + apart * distance[at + inward, slice_]

    before = np.stack([steps(i, i, 1), steps(j, j, -1)])
    after = np.stack([steps(i, j, 1), steps(j, i, -1)])
    # Both slices must fit better: a slice that fits nowhere is not exchanged.
    better = (before > after).all(axis=0) & judged[i] & judged[j]
    before, after = before.sum(axis=0), after.sum(axis=0)
    shorter = np.where(better & (before > EXCHANGED * after), before - after, 0)
    best = int(shorter.argmax())
    if not shorter[best]:
        return None
    return _Exchange((int(i[best]), int(j[best])), float(before[best] / after[best]))


def _exchanged(distance: Distances, i: int, j: int) -> Distances:
    order = np.arange(len(distance))
    order[[i, j]] = j, i
    return distance[np.ix_(order, order)]


def _foreign(distance: Distances) -> Iterator[tuple[int, float]]:
    """Yield slices unlike both neighbours, and how many times more these resemble each other."""
    steps = np.diag(distance, 1)
    times = np.minimum(steps[:-1], steps[1:]) / np.diag(distance, 2)
    for k in np.flatnonzero(times > FOREIGN):
        yield int(k) + 1, float(times[k])
