"""The automatic reader on shapes whose answer is known, at any spacing, and on a phantom."""

from __future__ import annotations

import numpy as np
import pytest

from mpunet.geometry import grid_spacing, thick_affine
from mpunet.lungs import lung_mask
from mpunet.phantom import chest_phantom
from mpunet.reader_study import blob_reader
from mpunet.reader_study.blob_reader import blob_findings
from mpunet.reader_study.matching import match_findings
from mpunet.slices import thicken
from mpunet.slices.interpolate import interpolated

LUNG, TISSUE = -850.0, 30.0


def scene(distance, shape=(48, 48, 48), spacing=(1.0, 1.0, 1.0)):
    """Lung with tissue where ``distance(z, y, x)`` in mm is negative, with partial volume.

    The origin is in the middle.
    """
    z, y, x = (
        ((np.arange(n) - (n - 1) / 2) * mm).reshape([-1 if i == axis else 1 for i in range(3)])
        for axis, (n, mm) in enumerate(zip(shape, spacing, strict=True))
    )
    inside = np.clip(0.5 - distance(z, y, x), 0, 1)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * spacing
    return LUNG + (TISSUE - LUNG) * inside, affine


def ball(diameter, centre=(0, 0, 0)):
    return lambda z, y, x: (
        np.sqrt((z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2) - diameter / 2
    )


def read(slab, affine, **options):
    return blob_findings(slab, affine, np.ones(slab.shape, bool), **options)


@pytest.mark.parametrize("diameter", [4, 5, 6, 8, 10, 12, 14])
def test_a_ball_is_found_where_it_is_as_large_as_it_is(diameter):
    (found,) = read(*scene(ball(diameter, (1, -2, 3))))
    assert found.position == pytest.approx((1, -2, 3), abs=0.6)
    assert found.diameter == pytest.approx(diameter, rel=0.25)


def test_score_of_a_ball_in_closed_form():
    # At sigma = r / sqrt(3) each eigenvalue of the Hessian of a ball with value 1, times sigma^2,
    # is -(4 pi r^3 / 3) / sigma^3 (2 pi)^-1.5 e^-1.5.
    expected = (TISSUE - LUNG) * 4 * np.pi / 3 * 3**1.5 * (2 * np.pi) ** -1.5 * np.exp(-1.5)
    assert expected == pytest.approx(0.308 * 880, rel=0.01)
    # Differences over 1 mm see a little less than derivatives.
    assert read(*scene(ball(12)))[0].score == pytest.approx(expected, rel=0.08)


@pytest.mark.parametrize("direction", [(1, 0, 0), (0, 1, 0), (1, 1, 0), (1, 2, 3)])
def test_a_straight_vessel_is_no_nodule(direction):
    unit = np.array(direction) / np.linalg.norm(direction)

    def tube(z, y, x):
        along = z * unit[0] + y * unit[1] + x * unit[2]
        return np.sqrt(np.maximum(z**2 + y**2 + x**2 - along**2, 0)) - 2.5

    # Where it leaves the volume it has an end, which may look like anything.
    assert [f for f in read(*scene(tube)) if np.abs(f.position).max() < 15] == []


def test_a_fissure_is_no_nodule():
    assert read(*scene(lambda z, y, x: np.abs(0.6 * z + 0.8 * y + 0 * x) - 1.0)) == []


def test_two_nodules_beside_each_other_are_two():
    one, other = ball(6, (0, 0, -5)), ball(6, (0, 0, 5))
    found = read(*scene(lambda z, y, x: np.minimum(one(z, y, x), other(z, y, x))))
    assert sorted(f.position[2] for f in found) == pytest.approx([-5, 5], abs=0.6)


@pytest.mark.parametrize(
    "spacing", [(1.0, 1.6, 1.6), (0.5, 0.7, 0.7), (1.25, 0.45, 0.45), (2.5, 0.8, 0.8)]
)
def test_any_spacing_shows_the_same_ball(spacing):
    shape = [round(48 / mm) for mm in spacing]
    (found,) = read(*scene(ball(9), shape, spacing))
    assert found.position == pytest.approx((0, 0, 0), abs=0.81)  # half a voxel
    assert found.diameter == pytest.approx(9, rel=0.25)


def test_thick_slices_show_what_their_interpolation_shows():
    thin, affine = scene(ball(11, (1, 2, 0)), (61, 48, 48))
    thick = thicken(thin, 5)
    from_thick = read(thick, thick_affine(affine, 0, 5), min_score=50)
    from_spline = read(np.concatenate(list(interpolated(thick, 5))), affine, min_score=50)
    assert len(from_thick) == len(from_spline) == 1
    assert from_thick[0].position == pytest.approx(from_spline[0].position, abs=1e-6)
    assert from_thick[0].score == pytest.approx(from_spline[0].score, rel=1e-3)
    assert from_thick[0].score < 0.8 * read(thin, affine)[0].score


def test_positions_follow_the_affine():
    slab, _ = scene(ball(6, (3, -4, 5)))
    turn = np.array([[0, 0.8, -0.6], [0, 0.6, 0.8], [-1, 0, 0]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn, (100, -50, 20)
    (found,) = read(slab, affine)
    assert found.position == pytest.approx(
        turn @ (np.array([3, -4, 5]) + 23.5) + (100, -50, 20), abs=0.9
    )


@pytest.mark.parametrize("depth_mm", [1.0, 5.0])
def test_chunks_leave_no_trace(monkeypatch, depth_mm):
    rng = np.random.default_rng(0)
    balls = [
        ball(d, c)
        for d, c in zip(
            rng.uniform(5, 12, 12), rng.uniform(-1, 1, (12, 3)) * (65, 15, 15), strict=True
        )
    ]
    slab, affine = scene(
        lambda z, y, x: np.minimum.reduce([b(z, y, x) for b in balls]), (160, 48, 48)
    )
    if depth_mm > 1:
        slab, affine = thicken(slab, 5), thick_affine(affine, 0, 5)
    whole = read(slab, affine, min_score=30)
    monkeypatch.setattr(blob_reader, "CHUNK_MM", 20.0)
    parts = read(slab, affine, min_score=30)
    assert len(whole) >= 8
    np.testing.assert_allclose(
        [(*f.position, f.diameter) for f in parts],
        [(*f.position, f.diameter) for f in whole],
        atol=1e-6,
    )
    np.testing.assert_allclose([f.score for f in parts], [f.score for f in whole], rtol=2e-3)


def test_only_the_lung_is_read():
    slab, affine = scene(ball(6))
    lung = np.ones(slab.shape, bool)
    assert len(blob_findings(slab, affine, lung)) == 1
    lung[:, 15:33] = False
    assert blob_findings(slab, affine, lung) == []
    assert blob_findings(slab, affine, np.zeros_like(lung)) == []


def test_what_cannot_be_read():
    slab, affine = scene(ball(6))
    with pytest.raises(
        ValueError, match=r"lung mask on its grid, got \(48, 48, 48\) and \(47, 48, 48\)"
    ):
        blob_findings(slab, affine, np.ones((47, 48, 48), bool))
    with pytest.raises(ValueError, match="lowest score above 0 HU, got 0"):
        read(slab, affine, min_score=0)


def test_a_phantom_shows_more_in_thin_slices():
    chest = chest_phantom(109, spacing=(1.0, 2.0, 2.0), shape=(81, 100, 140))
    nodules = [n for n in chest.nodules if n.solid and n.diameter >= 5]
    thick = thicken(chest.thin, 5)
    found = {}
    for slab, affine in ((chest.thin, chest.affine), (thick, thick_affine(chest.affine, 0, 5))):
        findings = blob_findings(slab, affine, lung_mask(slab, grid_spacing(affine)))
        found[len(slab)] = len(
            match_findings(findings, [blob_reader.Finding(n.centre, n.diameter) for n in nodules])
        )
        assert len(findings) < 30
    assert found[len(chest.thin)] == len(nodules) >= 3
    assert found[len(thick)] < len(nodules)
