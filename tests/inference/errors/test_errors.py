"""The error estimate: features in a stream, the model, its record, and the fit."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from mpunet.inference import Reconstructor
from mpunet.inference.engine import StreamingEngine
from mpunet.inference.errors import ErrorModel
from mpunet.inference.errors.features import NAMES, REACH, Slice, features
from mpunet.inference.errors.fit import Samples, draw, fit_error_model
from mpunet.inference.errors.stream import Strangeness, known_slices, with_errors
from mpunet.intensity import from_hu
from mpunet.models.interpolation import interpolation_matrix


def at(name):
    return NAMES.index(name)


def random_slices(depth, size=(9, 12), seed=0):
    rng = torch.Generator().manual_seed(seed)
    for t in range(depth):
        mean, spread, interpolated = 300 * torch.rand(3, *size, generator=rng) - 900
        yield Slice(mean, spread + 900, interpolated, (t % 5) / 5, 1 + t % 3, 5.0)


def test_features_equal_explicit_sums():
    slices = list(random_slices(8))
    found = torch.stack(list(features(slices)))
    assert found.shape == (8, len(NAMES), 9, 12)
    mean = np.stack([s.mean for s in slices]).astype(np.float64)
    spread = np.stack([s.spread for s in slices]).astype(np.float64)
    change = mean - np.stack([s.interpolated for s in slices])
    gradient = np.gradient(mean)
    for t in range(8):
        got = {name: found[t, k].numpy() for k, name in enumerate(NAMES)}
        np.testing.assert_allclose(got["spread"], np.log1p(spread[t]), rtol=1e-5)
        np.testing.assert_allclose(
            got["change"], np.sign(change[t]) * np.log1p(abs(change[t])), atol=1e-4
        )
        size = np.sqrt(sum(g[t] ** 2 for g in gradient))
        inner = np.s_[1:-1, 1:-1]  # torch's gradient has another rule at the border
        np.testing.assert_allclose(got["gradient"][inner], np.log1p(size)[inner], rtol=1e-4)
        near = slice(max(0, t - REACH), t + REACH + 1)
        y, x = 4, 6
        cube = np.s_[near, y - 2 : y + 3, x - 2 : x + 3]
        assert got["spread around"][y, x] == pytest.approx(np.log1p(spread[cube].mean()), rel=1e-5)
        assert got["HU around"][y, x] == pytest.approx(mean[cube].mean() / 1000, rel=1e-4)
        assert got["largest HU around"][y, x] == pytest.approx(mean[cube].max() / 1000)
        assert got["smallest HU around"][y, x] == pytest.approx(mean[cube].min() / 1000)
        flat = mean[t, y - 2 : y + 3, x - 2 : x + 3]
        assert got["deviation around"][y, x] == pytest.approx(np.log1p(flat.std()), rel=1e-3)
        assert (got["distance"] == np.float32(slices[t].distance)).all()
        assert (got["windows"] == np.float32(1 / slices[t].windows)).all()
        assert (got["spacing"] == np.float32(np.log(5))).all()


def test_features_do_not_depend_on_the_direction():
    slices = list(random_slices(9))
    forward, backward = (torch.stack(list(features(s))) for s in (slices, slices[::-1]))
    torch.testing.assert_close(backward.flip(0), forward)


@pytest.mark.parametrize("depth", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(1, 1), (3, 40)])
def test_features_of_small_volumes_are_finite(depth, size):
    found = list(features(random_slices(depth, size)))
    assert len(found) == depth
    assert all(part.isfinite().all() for part in found)


def test_features_hold_few_slices():
    taken = []
    stream = features(taken.append(t) or s for t, s in enumerate(random_slices(40)))
    for done in range(30):
        next(stream)
        assert len(taken) == done + REACH + 1


def network(windows):
    """Not linear, and different for each thin slice and when flipped."""
    size = (5, *windows.shape[3:])
    thin = torch.nn.functional.interpolate(windows, size=size, mode="trilinear", align_corners=True)
    return thin + 0.02 * torch.linspace(0, 1, windows.shape[4]) * thin.square()


def made_model(seed=0):
    torch.manual_seed(seed)
    return ErrorModel().requires_grad_(False).eval()


THICK = np.random.default_rng(1).normal(-800, 100, (6, 20, 18)).astype(np.float32)
OPTIONS = {"n_thick": 3, "ratio": 2, "multiple": 1, "flips": True, "device": "cpu"}


def test_known_slices():
    engine = StreamingEngine(network, prepare=from_hu, **OPTIONS)
    slices = list(known_slices(engine, THICK, THICK.shape))
    cubic = np.tensordot(interpolation_matrix(6, 2, "cubic"), THICK.clip(-1024), 1)
    for item, expected in zip(slices, cubic, strict=True):
        np.testing.assert_allclose(item.interpolated, expected, atol=1e-3)
    assert [item.distance for item in slices] == [0, 0.5] * 5 + [0]
    assert [item.windows for item in slices] == [1, 1, 2, 2, 3, 2, 3, 2, 2, 1, 1]


def test_the_spacing_of_a_scan_is_seen_and_that_of_an_array_counts_as_usual(monkeypatch):
    seen = []
    monkeypatch.setattr(ErrorModel, "forward", lambda self, found: seen.append(found) or found[0])
    both = Reconstructor(network, **OPTIONS, error=made_model())
    image = nib.Nifti1Image(THICK.T.astype(np.int16), np.diag([1, 1, 4.0, 1]))
    both.with_error(image)
    assert [float(found[at("spacing")].mean()) for found in seen] == pytest.approx([np.log(4)] * 11)
    seen.clear()
    both.with_error(THICK)
    assert all(found[at("spacing")].isnan().all() for found in seen)
    monkeypatch.undo()
    model = made_model()
    model.center[at("spacing")] = float(np.log(5))
    known, unknown = seen[0].clone(), seen[0]
    known[at("spacing")] = float(np.log(5))
    assert torch.equal(model(unknown), model(known))
    assert torch.equal(*(model.strange(part.movedim(0, -1)) for part in (unknown, known)))
    known[at("spacing")] = float(np.log(6))
    assert not torch.equal(model(unknown), model(known))


@pytest.mark.parametrize("last_first", [False, True])
def test_the_image_is_that_without_errors(last_first):
    """In either direction; the estimates agree, too."""
    plain, both = (Reconstructor(network, **OPTIONS, error=e) for e in (None, made_model()))
    found = both.with_error(THICK)
    assert np.array_equal(found.image, plain(THICK))
    assert np.array_equal(found.image, both(THICK))
    assert found.error.shape == found.image.shape
    assert (found.error >= 0).all()
    assert found.error.std() > 0
    if last_first:
        slices = both._stream(THICK[::-1], THICK.shape, last_first=True)
        backward = slices.slab_with_error()
        np.testing.assert_allclose(backward.image, found.image, atol=1e-3)
        np.testing.assert_allclose(backward.error, found.error, rtol=1e-3)


def test_errors_need_a_model():
    plain = Reconstructor(network, **OPTIONS)
    with pytest.raises(ValueError, match=r"from_checkpoint\(error=True\)"):
        plain.with_error(THICK)
    with pytest.raises(ValueError, match=r"no error estimates; use Reconstructor\(error"):
        list(plain._stream(THICK, THICK.shape).chunks_with_error())


def test_table_is_linear_between_its_knots():
    model = made_model()
    model.raw, model.calibrated = torch.tensor([1.0, 3, 5]), torch.tensor([2.0, 4, 4])
    found = model.calibrate(torch.tensor([0.0, 1, 2, 3, 4, 9]))
    assert found.tolist() == [2, 2, 3, 4, 4, 4]


def test_record_keeps_the_model():
    model = made_model()
    model.raw, model.calibrated = torch.tensor([0.0, 1, 5]), torch.tensor([1.0, 4, 6])
    model.cases, model.factors, model.strange_limit = ["a", "b"], [2.0, 2.5], 0.1
    again = ErrorModel.from_record(json.loads(json.dumps(model.to_record())))
    inputs = torch.randn(len(NAMES), 5, 6)
    torch.testing.assert_close(again(inputs), model(inputs), rtol=1e-4, atol=1e-3)
    assert (again.cases, again.factors, again.strange_limit) == (["a", "b"], [2.0, 2.5], 0.1)
    with pytest.raises(ValueError, match="another version of mpunet; fit it again"):
        ErrorModel.from_record({**model.to_record(), "features": ["spread"]})


def made_samples(patient, seed, scale=1.0, voxels=2000):
    """Errors whose mean is 10 HU, times 4 where the first feature is above 0."""
    rng = torch.Generator().manual_seed(seed)
    inputs = torch.randn(voxels, len(NAMES), generator=rng)
    mean = scale * torch.where(inputs[:, 0] > 0, 40.0, 10.0)
    error = mean * torch.empty(voxels).exponential_(generator=rng)
    return Samples(patient, patient, inputs, error, inputs[:, 1] > 0)


def test_fit_finds_the_expected_error_and_its_coverage():
    fit = fit_error_model([made_samples(p, k, voxels=4000) for k, p in enumerate("ab")], steps=100)
    inputs = torch.zeros(len(NAMES), 1, 2)
    inputs[0, 0] = torch.tensor([-1.5, 1.5])
    assert fit.model(inputs)[0].tolist() == pytest.approx([10, 40], rel=0.25)
    # 90 % of exponential errors are below ln 10 times their mean.
    assert fit.model.factors == pytest.approx([np.log(10)] * 2, rel=0.2)
    assert fit.model.cases == ["a", "b"]
    assert 0.01 < fit.model.strange_limit < 0.1
    strange = Strangeness(fit.model)
    strange.add(torch.full((len(NAMES), 8, 8), 9.0))
    assert strange.share == 1
    assert "unlike the scans that the error estimate knows: 100%" in strange.warning()
    usual = Strangeness(fit.model)
    usual.add(torch.zeros(len(NAMES), 8, 8))
    assert usual.warning() is None


def test_fit_learns_the_spacing_if_it_varies():
    rows = at("spacing")
    samples = []
    for k, (patient, spacing) in enumerate([("a", 5.0), ("a", 6.0), ("b", 5.0), ("b", 6.0)]):
        one = made_samples(patient, k, scale=spacing - 4)
        one.features[:, rows] = float(np.log(spacing))
        samples.append(one._replace(case=f"{patient}{k}"))
    inputs = torch.zeros(len(NAMES), 1, 3)
    inputs[0] = -1.5
    inputs[rows, 0] = torch.tensor([5.0, 6.0, torch.nan]).log()
    at_5, at_6, unknown = fit_error_model(samples, steps=100).model(inputs)[0].tolist()
    assert (at_5, at_6) == pytest.approx((10, 20), rel=0.4)
    assert at_6 > 1.5 * at_5
    assert at_5 < unknown < at_6
    for one in samples:
        one.features[:, rows] = float(np.log(5))
    same = fit_error_model(samples, steps=20).model(inputs)[0].tolist()
    assert same == pytest.approx([same[0]] * 3, rel=1e-4)


def test_calibration_is_of_patients_that_were_left_out():
    """A patient with errors five times as large widens the factor of nobody but that patient."""
    samples = [made_samples("a", 0), made_samples("b", 1), made_samples("c", 2, scale=5)]
    factors = fit_error_model(samples, steps=25).model.factors
    assert factors[2] > 2 * max(factors[:2])


def test_fit_needs_two_patients():
    with pytest.raises(ValueError, match="at least 2 patients, got a;"):
        fit_error_model([made_samples("a", 0), made_samples("a", 1)])


def test_drawn_voxels_come_half_from_the_lungs_and_have_their_errors():
    slices = list(random_slices(10, (30, 30)))
    lung = np.zeros((10, 30, 30), bool)
    lung[:, :10, :10] = True
    truth = np.stack([s.mean.numpy() + 7 for s in slices])
    samples = draw(slices, truth, lung, case="p1", voxels=1000)
    assert samples.patient == "p1"
    assert samples.features.shape == (len(samples.error), len(NAMES))
    assert len(samples.error) == pytest.approx(1000, rel=0.1)
    assert samples.lung.float().mean() == pytest.approx(0.5, abs=0.05)
    torch.testing.assert_close(
        samples.error, torch.full_like(samples.error, 7.0), atol=1e-3, rtol=0
    )


def test_with_errors_pairs_each_slice_with_its_own_estimate():
    model = made_model()
    slices = list(random_slices(7))
    expected = [model(found) for found in features(slices)]
    pairs = list(with_errors(iter(slices), model))
    for pair, item, error in zip(pairs, slices, expected, strict=True):
        assert torch.equal(pair[0, 0], item.mean)
        assert torch.equal(pair[1, 0], error)
