"""What is embedded for the viewer: coding, orientation, positions, crops."""

import base64
import zlib

import nibabel as nib
import numpy as np
import pytest
from helpers import nifti, save

from mpunet.report.hu_codec import HU_LEVELS, HU_STEPS, encode_slice, to_codes
from mpunet.report.viewer import PLANES, encode_case

SHAPE = (6, 8, 10)
RIGHT_FRONT_TOP = (5, 0, 0)  # in a slab: superior, anterior, right


def decode(text, shape):
    """Pixel by pixel, as the page does it."""
    residual = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(shape)
    codes = np.zeros((shape[0] + 1, shape[1] + 1), int)
    for row, column in np.ndindex(*shape):
        left, above, corner = codes[row + 1, column], codes[row, column + 1], codes[row, column]
        predicted = sorted([left, above, left + above - corner])[1]
        codes[row + 1, column + 1] = (residual[row, column] + predicted) % 256
    return codes[1:, 1:].astype(np.uint8)


def pictures(volume, plane):
    """(slices, rows, columns) of a shown volume, in its unit."""
    shown = volume["planes"][plane]
    codes = [decode(text, (shown["rows"], shown["columns"])) for text in shown["slices"]]
    return np.array(volume["levels"])[np.array(codes)]


def marked(value=500):
    """A body of soft tissue with air in front, and a bright voxel at its right, front and top."""
    slab = np.full(SHAPE, 0, np.int16)
    slab[:, 1] = -1000
    slab[RIGHT_FRONT_TOP] = value
    return slab


def test_a_slice_comes_back_exactly():
    codes = np.random.default_rng(0).integers(0, 256, (17, 23), dtype=np.uint8)
    np.testing.assert_array_equal(decode(encode_slice(codes), (17, 23)), codes)


def test_rounding_is_at_most_half_a_step():
    assert len(HU_LEVELS) == 256
    assert (np.diff(HU_LEVELS) > 0).all()
    hu = np.arange(-1024, 3072)
    error = np.abs(HU_LEVELS[to_codes(hu)] - hu)
    for low, high, step in HU_STEPS:
        assert error[(hu >= low) & (hu <= high - step)].max() == step / 2
    assert error[(hu >= -200) & (hu < 200)].max() <= 2


@pytest.mark.parametrize("codes", ["LPS", "RAS", "LAI", "SPL", "ASR", "PIR"])
def test_every_orientation_is_right_side_up(tmp_path, codes):
    path = save(tmp_path / "a.nii.gz", marked(), codes=codes, spacing=(2.0, 0.7, 0.7))
    case = encode_case("a", {"a": path})
    (volume,) = case["volumes"]
    for plane, slices in (("coronal", 8), ("sagittal", 10), ("axial", 6)):
        found = np.argwhere(pictures(volume, plane) > 200)
        assert found.tolist() == [[0, 0, 0]], plane  # front, right or top slice; upper left corner
        assert len(case["positions"][plane]) == slices
    # mm towards left, posterior and inferior. In helpers.nifti, the first slice is at 0 and the
    # corner at R 80, A 60.
    assert case["positions"]["axial"][0] == pytest.approx(-10)
    assert case["positions"]["sagittal"][0] == pytest.approx(-80)
    assert case["positions"]["coronal"][0] == pytest.approx(-60)
    assert volume["planes"]["coronal"]["first"] == pytest.approx([-80, -10])
    assert volume["planes"]["axial"]["spacing"] == pytest.approx([0.7, 0.7])
    assert case["notes"] == []


def test_all_planes_show_the_same_voxels(tmp_path):
    slab = np.random.default_rng(0).integers(-300, 300, (5, 7, 9), dtype=np.int16)
    slab[2, 3, 4] = -1000
    case = encode_case("a", {"a": save(tmp_path / "a.nii.gz", slab, codes="SAR")})
    coronal, sagittal, axial = (pictures(case["volumes"][0], plane) for plane in PLANES)
    np.testing.assert_array_equal(
        axial, HU_LEVELS[to_codes(slab[::-1])]
    )  # a slab's slices go up, the viewer's down
    np.testing.assert_array_equal(coronal, axial.transpose(1, 0, 2))
    np.testing.assert_array_equal(sagittal, axial.transpose(2, 0, 1))


def test_other_grids_show_their_nearest_slices(tmp_path):
    thin = np.zeros((11, 6, 6), np.int16)
    thin[:, 0, 0] = -1000
    thin[:] += (10 * np.arange(11, dtype=np.int16))[:, None, None]
    files = {
        "thick": save(tmp_path / "thick.nii.gz", thin[::5], spacing=(5, 1, 1)),
        "short": save(tmp_path / "short.nii.gz", thin[2:9], start=2.0, spacing=(1, 1, 1)),
        "shifted": save(tmp_path / "shifted.nii.gz", thin, start=0.4, spacing=(1, 1, 1)),
        "truth": save(tmp_path / "truth.nii.gz", thin, spacing=(1, 1, 1), codes="RAI"),
    }
    case = encode_case("a", files, reference="truth")
    volumes = {volume["name"]: volume for volume in case["volumes"]}
    assert list(volumes) == list(files)
    assert case["positions"]["axial"] == pytest.approx(
        -np.arange(10, -1, -1)
    )  # all slices of the reference, top first
    assert volumes["thick"]["planes"]["axial"]["at"] == pytest.approx([-10, -5, 0])
    assert volumes["short"]["planes"]["axial"]["at"] == pytest.approx(-np.arange(8, 1, -1))
    assert {name: volume["compared"] for name, volume in volumes.items()} == {
        "thick": False,
        # Part of the reference's grid, as for a method that ends at the last thick slice.
        "short": True,
        "shifted": False,
        "truth": True,
    }
    np.testing.assert_array_equal(
        pictures(volumes["thick"], "axial")[:, 3, 3], [100, 48, 0]
    )  # 50 HU lies between 48 and 52


def test_slices_are_spread_over_the_body_and_cropped_to_it(tmp_path):
    slab = np.full((40, 60, 60), -1000, np.int16)
    slab[8:32, 20:40, 12:48] = 40
    path = save(tmp_path / "a.nii.gz", slab, spacing=(1, 1, 1))
    case = encode_case("a", {"a": path}, slices=4)
    assert case["positions"]["axial"] == pytest.approx([-28, -22, -16, -10], abs=1)
    shown = case["volumes"][0]["planes"]["axial"]
    assert (shown["rows"], shown["columns"]) == (30, 46)  # 5 mm around it
    everything = encode_case("a", {"a": path})
    small = encode_case("a", {"a": path}, size=30e3)
    assert len(everything["positions"]["axial"]) == 24
    pixels = 30 * 46 + 34 * 46 + 34 * 30  # axial, coronal and sagittal
    assert len(small["positions"]["axial"]) == int(30e3 / (0.75 * pixels)) == 10


def test_an_oblique_scan_says_so(tmp_path):
    image = nifti(marked())
    angle = np.radians(12)
    turned = np.eye(4)
    turned[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    for name, affine in (("straight", image.affine), ("oblique", turned @ image.affine)):
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), tmp_path / f"{name}.nii.gz")
    oblique = encode_case("a", {"oblique": tmp_path / "oblique.nii.gz"})
    assert "turned by up to 12°" in oblique["notes"][0]
    # Along its own axes nothing is distorted, and ``directions`` gives the world position of the
    # first voxel.
    plane = oblique["volumes"][0]["planes"]["axial"]
    own = [plane["first"][0], plane["first"][1], plane["at"][0]]
    corner = turned @ image.affine @ [0, 0, 5, 1]
    np.testing.assert_allclose(np.array(oblique["directions"]) @ own, -corner[:3], atol=1e-3)
    both = encode_case(
        "a", {n: tmp_path / f"{n}.nii.gz" for n in ("straight", "oblique")}, reference="straight"
    )
    assert "oblique is turned by 12° against straight" in both["notes"][0]
    assert not both["volumes"][1]["compared"]


def test_a_volume_that_is_not_hu(tmp_path):
    slab = np.linspace(0, 1, 480, dtype=np.float32).reshape(SHAPE)
    path = save(tmp_path / "a.nii.gz", slab)
    case = encode_case("a", {"a": path})
    (volume,) = case["volumes"]
    assert volume["unit"] == ""
    assert volume["window"] is None  # all share the one window
    ((name, centre, width),) = case["windows"]
    assert name == "Percentiles 1–99"
    assert 0 < centre < 1
    assert 0 < width <= 1
    np.testing.assert_allclose(pictures(volume, "axial")[::-1], slab, atol=0.5 / 255 + 1e-6)
    mixed = encode_case("a", {"a": path, "hu": save(tmp_path / "hu.nii.gz", marked())})
    assert mixed["volumes"][0]["window"] is not None
    assert mixed["windows"][0] == ("Lung", -600, 1500)


def test_errors(tmp_path):
    path = save(tmp_path / "a.nii.gz", marked())
    with pytest.raises(ValueError, match=r"missing.nii.gz: no such file"):
        encode_case("a", {"a": path, "b": tmp_path / "missing.nii.gz"})
    with pytest.raises(ValueError, match="reference 'truth' among them"):
        encode_case("a", {"a": path}, reference="truth")
    with pytest.raises(ValueError, match="at least 1 slice"):
        encode_case("a", {"a": path}, slices=0)
    (tmp_path / "text.nii").write_text("no image")
    with pytest.raises(ValueError, match=r"text.nii: not a NIfTI file"):
        encode_case("a", {"a": tmp_path / "text.nii"})


@pytest.mark.parametrize(("codes", "map_codes"), [("LPS", "LPS"), ("RAS", "RAS"), ("RAS", "SLP")])
def test_an_error_map_is_shown_on_the_grid_of_its_volume(tmp_path, codes, map_codes):
    errors = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) % 256
    path = save(tmp_path / "a.nii.gz", marked(), codes=codes)
    image, shown = encode_case(
        "a", {"a": path}, error_maps={"a": save(tmp_path / "e.nii.gz", errors, codes=map_codes)}
    )["volumes"]
    assert (image["error_of"], shown["error_of"], shown["unit"]) == (None, "a", "HU")
    plane = "axial"
    assert {**shown["planes"][plane], "slices": 0} == {**image["planes"][plane], "slices": 0}
    found = pictures(shown, plane)  # from the head down, rows towards the back
    np.testing.assert_allclose(np.sort(found.ravel()), np.sort(errors.ravel()), atol=0.5)
    assert pictures(image, plane).argmax() == np.ravel_multi_index((0, 0, 0), found.shape)
    corner = errors[RIGHT_FRONT_TOP]
    assert found[0, 0, 0] == pytest.approx(corner, abs=0.5)


def test_an_error_map_on_another_grid(tmp_path):
    path = save(tmp_path / "a.nii.gz", marked())
    for name, other in (
        ("cut", {"slab": marked()[1:]}),
        ("moved", {"slab": marked(), "start": 1.0}),
    ):
        errors = save(tmp_path / f"{name}.nii.gz", other.pop("slab"), **other)
        with pytest.raises(ValueError, match=f"on the grid of a, got {name}.nii.gz"):
            encode_case("a", {"a": path}, error_maps={"a": errors})


def test_real_ct_is_right_side_up(shared_ct):
    (path,) = (shared_ct / "val").glob("*.nii.gz")
    (volume,) = encode_case("a", {"a": path}, slices=1)["volumes"]
    bone = np.argwhere(pictures(volume, "axial")[0] > 300)
    assert bone[:, 0].mean() > 0.55 * volume["planes"]["axial"]["rows"]  # the spine is below
    (coronal,) = pictures(volume, "coronal")
    tenth = len(coronal) // 10
    lung = (coronal < -600).sum(axis=1)
    assert lung[:tenth].sum() < lung[4 * tenth : 5 * tenth].sum()  # narrow apices above
    domes = coronal[int(0.70 * len(coronal)) : int(0.76 * len(coronal))] > -100
    right, _, left = np.array_split(domes, 3, axis=1)
    assert (
        right.mean() > left.mean() + 0.2
    )  # the liver's dome stands higher than the left diaphragm
