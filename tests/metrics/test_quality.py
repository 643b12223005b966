"""Image quality by protocol and region, against NumPy, scikit-image, torchmetrics and MONAI.

They run in double precision if they support it.
"""

from __future__ import annotations

import math
from typing import Any

import monai.metrics
import numpy as np
import numpy.typing as npt
import pytest
import torch
from skimage.metrics import structural_similarity
from torchmetrics.functional import mean_absolute_error, mean_squared_error
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from mpunet.metrics.quality import PROTOCOLS, REGIONS, Protocol, Quality, quality
from mpunet.metrics.ssim import ssim_map

HU = npt.NDArray[np.int16]
Floats = npt.NDArray[np.float64]
SHAPE = (13, 30, 37)
SOFT_TISSUE = Protocol(
    "soft tissue", -160.0, 240.0, 1, "narrow, so that much is clipped and SSIM is low"
)
EACH = [*PROTOCOLS.values(), SOFT_TISSUE]


def volumes() -> tuple[HU, HU, npt.NDArray[np.bool_]]:
    """A smooth reference wider than every HU window, a noisy prediction of it, and a mask.

    The mask touches the border of slices.
    """
    rng = np.random.default_rng(0)
    z, y, x = np.meshgrid(*(np.linspace(0, 3, n) for n in SHAPE), indexing="ij")
    reference = (2600 * np.sin(x + z) * np.cos(y) + 500).astype(np.int16)
    prediction = (reference + rng.normal(0, 60, SHAPE)).astype(np.int16)
    lung = np.zeros(SHAPE, bool)
    lung[:, :17, 5:21] = rng.random((13, 17, 16)) > 0.3
    return prediction, reference, lung


def intensities(protocol: Protocol) -> tuple[Floats, Floats]:
    """Prediction and reference in double precision, trimmed, clipped, and shifted to start at 0."""
    prediction, reference, _ = volumes()
    kept = slice(protocol.trim, SHAPE[0] - protocol.trim)
    low, high = protocol.low, protocol.high
    return prediction[kept].clip(low, high).astype(np.float64) - low, reference[kept].clip(
        low, high
    ).astype(np.float64) - low


def regions(protocol: Protocol) -> dict[str, npt.NDArray[np.bool_]]:
    lung = volumes()[2][protocol.trim : SHAPE[0] - protocol.trim]
    return {"whole": np.ones_like(lung), "lungs": lung, "outside": ~lung}


def padded(volume: Floats, protocol: Protocol) -> Floats:
    """Slices with what the window sees beyond them."""
    return np.pad(
        volume,
        ((0, 0), (5, 5), (5, 5)),
        mode="constant" if protocol.border == "zeros" else "reflect",
    )


def planes(volume: Any, protocol: Protocol) -> list[Any]:
    """The volume with each kind of slice that the protocol looks at first."""
    axes = range(3 if protocol.planes == "all" else 1)
    return [np.swapaxes(volume, 0, axis) for axis in axes]


def skimage_map(prediction: Floats, reference: Floats, data_range: float) -> Floats:
    options: dict[str, Any] = {
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
        "full": True,
    }
    pairs = zip(prediction, reference, strict=True)
    return np.stack(
        [structural_similarity(p, r, data_range=data_range, **options)[1] for p, r in pairs]
    )


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("protocol", EACH, ids=lambda protocol: protocol.name)
def test_regions_agree_with_numpy_and_scikit_image(protocol: Protocol, region: str) -> None:
    found = quality(*volumes(), protocol=protocol)[region]
    prediction, reference = intensities(protocol)
    mask, width = regions(protocol)[region], protocol.high - protocol.low
    error = (prediction - reference)[mask]
    similarity = []
    for p, r, inside in zip(
        *(planes(v, protocol) for v in (prediction, reference, mask)), strict=True
    ):
        full = skimage_map(padded(p, protocol), padded(r, protocol), width)[:, 5:-5, 5:-5]
        if region == "whole" and protocol.border == "exclude":
            full, inside = full[:, 5:-5, 5:-5], inside[:, 5:-5, 5:-5]
        similarity.append(full[inside].mean())
    rmse = np.sqrt(np.mean(error**2))
    assert found.mae == pytest.approx(np.abs(error).mean(), rel=1e-6)
    assert found.rmse == pytest.approx(rmse, rel=1e-6)
    assert found.psnr == pytest.approx(20 * np.log10(width / rmse), rel=1e-6)
    assert found.ssim == pytest.approx(np.mean(similarity), abs=1e-6)
    assert found.ssim < 0.995  # so that agreement says something


@pytest.mark.parametrize("protocol", EACH, ids=lambda protocol: protocol.name)
def test_whole_volumes_agree_with_torchmetrics(protocol: Protocol) -> None:
    prediction, reference = (torch.from_numpy(volume) for volume in intensities(protocol))
    width = protocol.high - protocol.low
    border, similarity = 5 if protocol.border == "zeros" else 10, []
    for turned in zip(*(planes(v.numpy(), protocol) for v in (prediction, reference)), strict=True):
        pads = [torch.from_numpy(padded(volume, protocol))[:, None] for volume in turned]
        _, full = structural_similarity_index_measure(
            *pads, sigma=1.5, data_range=width, return_full_image=True
        )
        similarity.append(full[:, 0, border:-border, border:-border].mean().item())
    expected = Quality(
        mean_absolute_error(prediction, reference).item(),
        mean_squared_error(prediction, reference, squared=False).item(),
        peak_signal_noise_ratio(prediction, reference, data_range=width).item(),
        float(np.mean(similarity)),
    )
    assert quality(*volumes(), protocol=protocol)["whole"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("protocol", EACH, ids=lambda protocol: protocol.name)
def test_whole_volumes_agree_with_monai(protocol: Protocol) -> None:
    pair = [torch.from_numpy(volume)[None, None] for volume in intensities(protocol)]
    width = protocol.high - protocol.low
    # MONAI takes the map where the window lies inside, in single precision.
    similarity = []
    ssim = monai.metrics.SSIMMetric(spatial_dims=2, data_range=1.0)
    for turned in zip(*(planes(v[0, 0].numpy(), protocol) for v in pair), strict=True):
        slices = [padded(v, protocol) if protocol.border == "zeros" else v for v in turned]
        maps = ssim(*(torch.from_numpy(volume)[:, None] / width for volume in slices))
        similarity.append(maps.mean().item())
    expected = Quality(
        monai.metrics.MAEMetric()(*pair).item(),
        monai.metrics.RMSEMetric()(*pair).item(),
        monai.metrics.PSNRMetric(max_val=width)(*pair).item(),
        float(np.mean(similarity)),
    )
    assert quality(*volumes(), protocol=protocol)["whole"] == pytest.approx(expected, rel=1e-6)


def test_protocols() -> None:
    assert PROTOCOLS["paper"][:4] == ("paper", -1024, 3071, 0)
    assert PROTOCOLS["rplhr"][:4] == ("rplhr", -1024, 2048, 5)
    assert PROTOCOLS["mss-ct"][:4] == ("mss-ct", -1024, 2048, 0)
    assert all(name == protocol.name for name, protocol in PROTOCOLS.items())


@pytest.mark.parametrize(
    ("name", "psnr", "ssim"),
    [
        # cal_psnr and cal_ssim of github.com/smilenaxx/RPLHR-CT, code/utils/non_model.py, used as
        # in code/test.py
        ("rplhr", 35.5097392, 0.9772082),
        # calc_psnr and calc_ssim of github.com/eeeric-code/I3Net, util_evaluation.py, used as in
        # test.py but without trim: SSIM is 0.9798607, 0.9846608 and 0.9925108 in the three planes
        ("mss-ct", 35.6832962, 0.9856775),
    ],
)
def test_the_same_numbers_as_published_code(name: str, psnr: float, ssim: float) -> None:
    found = quality(*volumes(), protocol=PROTOCOLS[name])["whole"]
    assert found.psnr == pytest.approx(psnr, abs=1e-5)
    assert found.ssim == pytest.approx(ssim, abs=1e-6)


@pytest.mark.parametrize(("name", "width"), [("paper", 4095), ("rplhr", 3072), ("mss-ct", 3072)])
def test_constant_volumes_have_a_closed_form(name: str, width: int) -> None:
    prediction, reference = np.full(SHAPE, 100, np.int16), np.full(SHAPE, -900, np.int16)
    found = quality(prediction, reference, protocol=PROTOCOLS[name])["whole"]
    assert found[:3] == pytest.approx((1000, 1000, 20 * math.log10(width / 1000)))
    if name == "paper":  # 1124 and 124 above the window's end; only the luminance term is left
        c1 = (0.01 * width) ** 2
        assert found.ssim == pytest.approx(
            (2 * 1124 * 124 + c1) / (1124**2 + 124**2 + c1), abs=1e-6
        )


def test_trimmed_slices_do_not_count() -> None:
    prediction, reference, lung = volumes()
    expected = quality(prediction, reference, lung, protocol=PROTOCOLS["rplhr"])
    prediction[:5], prediction[-5:] = 2000, -1000
    lung[:5], lung[-5:] = True, True
    assert quality(prediction, reference, lung, protocol=PROTOCOLS["rplhr"]) == expected
    prediction[5] = 2000
    assert (
        quality(prediction, reference, lung, protocol=PROTOCOLS["rplhr"])["whole"].mae
        > expected["whole"].mae + 100
    )


def test_regions_without_a_mask_and_with_an_empty_one() -> None:
    prediction, reference, _ = volumes()
    assert tuple(quality(prediction, reference)) == ("whole",)
    empty = quality(prediction, reference, np.zeros(SHAPE, np.uint8))
    assert tuple(empty) == REGIONS
    assert all(math.isnan(value) for value in empty["lungs"])
    assert empty["outside"][:3] == pytest.approx(empty["whole"][:3])


@pytest.mark.parametrize(("region", "other"), [("lungs", "outside"), ("outside", "lungs")])
def test_nan_stays_in_its_region(region: str, other: str) -> None:
    prediction, reference, _ = volumes()
    lung = np.zeros(SHAPE, bool)
    lung[:7] = True
    broken = prediction.astype(np.float32)
    broken[3 if region == "lungs" else 9, 15, 15] = np.nan
    found = quality(broken, reference, lung)
    assert all(math.isnan(value) for name in (region, "whole") for value in found[name])
    assert found[other] == quality(prediction, reference, lung)[other]


def test_perfect_prediction_is_perfect_to_the_last_digit() -> None:
    _, reference, lung = volumes()
    assert set(quality(reference, reference, lung).values()) == {Quality(0.0, 0.0, math.inf, 1.0)}


@pytest.mark.parametrize("level", [0, 2000, 4000])
def test_single_precision_suffices_for_faint_contrast(level: int) -> None:
    """Noise of a few steps upon a large constant, where the textbook's E[x^2] - E[x]^2 cancels."""
    rng = np.random.default_rng(level)
    prediction, reference = (
        level + rng.integers(0, 95, (1, 60, 60)).astype(np.float64) for _ in range(2)
    )
    expected = skimage_map(prediction, reference, 4095)[0, 5:-5, 5:-5]
    found = ssim_map(
        torch.from_numpy(prediction).float(), torch.from_numpy(reference).float(), window=(0, 4095)
    )
    assert found.double().mean().item() == pytest.approx(expected.mean(), abs=1e-6)
    assert found[0].numpy() == pytest.approx(expected, abs=1e-4)


def test_inputs_are_left_alone_and_gradients_do_not_matter() -> None:
    prediction, reference, _ = volumes()
    image = torch.from_numpy(prediction).float().requires_grad_()
    found = quality(image, reference)
    assert found["whole"] == pytest.approx(quality(prediction, reference)["whole"])
    assert np.array_equal(image.detach().numpy(), prediction)


def test_unfit_depth_and_protocol() -> None:
    prediction, reference, _ = volumes()
    with pytest.raises(
        ValueError,
        match=r"more than 10 slices, as the protocol rplhr leaves out 5 at each end, got 10",
    ):
        quality(prediction[:10], reference[:10], protocol=PROTOCOLS["rplhr"])
    assert quality(prediction[:11], reference[:11], protocol=PROTOCOLS["rplhr"])["whole"].mae > 0
    with pytest.raises(ValueError, match=r"at least 11 slices, as the protocol mss-ct .* got 10"):
        quality(prediction[:10], reference[:10], protocol=PROTOCOLS["mss-ct"])
    with pytest.raises(ValueError, match=r"low < high"):
        quality(prediction, reference, protocol=SOFT_TISSUE._replace(high=-160.0))
    with pytest.raises(ValueError, match=r"trim of at least 0"):
        quality(prediction, reference, protocol=SOFT_TISSUE._replace(trim=-1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("protocol", EACH, ids=lambda protocol: protocol.name)
def test_a_gpu_gives_the_same(protocol: Protocol) -> None:
    prediction, reference, lung = volumes()
    found = quality(torch.from_numpy(prediction).cuda(), reference, lung, protocol=protocol)
    for region, expected in quality(prediction, reference, lung, protocol=protocol).items():
        assert found[region] == pytest.approx(expected, rel=1e-6)
