"""Faults in the order of slices are named; genuine scans give none."""

import zlib

import numpy as np
import pytest
from helpers import peak

from mpunet.data.checks.order import SliceOrder, order_faults, slices_text
from mpunet.data.checks.survey import block_means
from mpunet.io.scan_file import read_volume
from mpunet.phantom.chest import chest_phantom
from mpunet.slices.simulate import thicken


def faults(slab):
    """Kind and slices of each fault of a slab."""
    blank = [plane.min() == plane.max() for plane in slab]
    digests = [
        None if empty else zlib.crc32(np.ascontiguousarray(plane).data)
        for plane, empty in zip(slab, blank, strict=True)
    ]
    found = order_faults([block_means(plane) for plane in slab], digests)
    return [(fault.code, fault.slices) for fault in found]


@pytest.fixture(scope="module")
def thin():
    return chest_phantom(1, shape=(151, 96, 120), spacing=(1.0, 2.8, 2.8)).thin


@pytest.fixture(scope="module")
def thick(thin):
    """31 slices, 5 mm apart."""
    return np.rint(thicken(thin, 5)).astype(np.int16)


def noisy(slab, deviation):
    rng = np.random.default_rng(0)
    return (slab + rng.normal(0, deviation, slab.shape)).astype(np.int16)


def between_air(slab, thin_air):
    air = np.full((2, *slab.shape[1:]), -1024, np.int16)
    if not thin_air:
        return np.concatenate([air, slab, air])
    return np.concatenate([noisy(air[:1], 20), slab, noisy(air[1:] + 1, 20)])


GENUINE = {
    "as it is": lambda slab: slab,
    "upside down": lambda slab: slab[::-1],
    "a lung": lambda slab: slab[:, 30:70, 15:55],
    "with noise": lambda slab: noisy(slab, 60),
    "between blank slices": lambda slab: between_air(slab, thin_air=False),
    "between slices of air": lambda slab: between_air(slab, thin_air=True),
}


@pytest.mark.parametrize("change", GENUINE.values(), ids=GENUINE)
@pytest.mark.parametrize("ratio", [1, 3, 7])
def test_a_genuine_scan(thin, ratio, change):
    slab = thin if ratio == 1 else np.rint(thicken(thin, ratio)).astype(np.int16)
    assert faults(change(slab)) == []


@pytest.mark.parametrize(("first", "second"), [(1, 2), (10, 11), (12, 14), (12, 15), (5, 22)])
def test_exchanged(thick, first, second):
    slab = noisy(thick, 20)
    slab[[first, second]] = slab[[second, first]]
    assert faults(slab) == [("exchanged", (first, second))]
    blank_ends = between_air(slab, thin_air=False)
    assert faults(blank_ends) == [("exchanged", (first + 2, second + 2))]


def test_two_exchanges(thick):
    slab = thick.copy()
    slab[[4, 6, 20, 21]] = slab[[6, 4, 21, 20]]
    assert faults(slab) == [("exchanged", (4, 6)), ("exchanged", (20, 21))]


def test_repeated(thick):
    slab = thick.copy()
    slab[15] = slab[3]
    assert faults(slab) == [("repeated", (3, 15))]
    assert faults(slab[:5]) == []
    assert faults(slab[[3, 4, 15]]) == [("repeated", (0, 2))]


def test_foreign(thick):
    rng = np.random.default_rng(0)
    noise = rng.normal(-500, 300, thick.shape[1:])
    other = chest_phantom(2, shape=(3, 96, 120), spacing=(5.0, 2.8, 2.8)).thin[1]
    for plane in (noise, other, np.full(thick.shape[1:], -1024)):
        slab = thick.copy()
        slab[20] = plane
        assert faults(slab) == [("foreign", (20,))]


def test_no_order(thick):
    rng = np.random.default_rng(0)
    for order in (rng.permutation(31), [*range(0, 31, 2), *range(1, 31, 2)]):
        assert faults(thick[order]) == [("disorder", ())]


def test_many_out_of_place(thick):
    slab = thick.copy()
    slab[[2, 3, 8, 9, 14, 15, 20, 21]] = slab[[3, 2, 9, 8, 15, 14, 21, 20]]
    assert faults(slab) == [("disorder", (2, 3, 8, 9, 14, 15, 20, 21))]
    by_text = sorted(range(31), key=str)  # 0, 1, 10, 11, ...
    assert faults(thick[by_text]) != []


def test_noise_has_any_order():
    assert faults(noisy(np.zeros((40, 64, 64)), 30)) == []


def test_too_few_to_judge(thick):
    slab = thick[:7].copy()
    slab[[2, 3]] = slab[[3, 2]]
    assert faults(slab) == []
    assert order_faults([], []) == []
    assert faults(np.zeros((10, 64, 64), np.int16)) == []
    assert faults(np.repeat(thick[:1], 10, axis=0)) == []
    assert faults(thick[[3, 4, 3], :7]) == []


@pytest.mark.parametrize("last_first", [False, True])
def test_while_others_read(thick, last_first):
    slab = thick.copy()
    slab[[4, 6]] = slab[[6, 4]]
    order = SliceOrder(last_first=last_first)
    planes = list(order.watch(iter(slab[::-1] if last_first else slab)))
    assert np.array_equal(planes[::-1] if last_first else planes, slab)
    (fault,) = order.faults()
    assert (fault.code, fault.slices) == ("exchanged", (4, 6))
    assert fault.text.startswith("slices 4 and 6 of 31 seem to be exchanged: in each other's place")


def test_memory_is_that_of_the_means():
    rng = np.random.default_rng(0)
    order = SliceOrder()

    def read():
        for _ in order.watch(rng.integers(-1000, 1000, (256, 256)) for _ in range(100)):
            pass

    assert peak(read) < 100 * 4096 + 10 * 256 * 256 * 8  # a few slices, not 52 MB
    assert order.faults() == []


def test_names_of_slices():
    assert slices_text([3]) == "slice 3"
    assert slices_text([3, 5]) == "slices 3, 5"


def test_every_exchange_in_a_real_scan(shared_ct):
    slab = read_volume(shared_ct / "thick" / "Lung_Dx-A0001-B.nii.gz").slab
    planes = [block_means(plane) for plane in slab]
    digests = list(range(len(planes)))
    assert order_faults(planes, digests) == []
    for apart in (1, 2, 3):
        for first in range(1, len(planes) - 1 - apart):
            wrong = list(planes)
            wrong[first], wrong[first + apart] = wrong[first + apart], wrong[first]
            found = [(fault.code, fault.slices) for fault in order_faults(wrong, digests)]
            assert found == [("exchanged", (first, first + apart))]


def test_a_repeated_slice_is_not_exchanged_too(thick):
    """Without its own place the copy fits best near the original."""
    slab = noisy(thick[:11], 20)
    slab[5] = slab[0]
    assert faults(slab) == [("repeated", (0, 5))]
