"""HU metrics over whole cases, against literals and scikit-image."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.distributed
from processes import SERVER
from skimage.metrics import structural_similarity
from torch import Tensor

from mpunet.training.case_metrics import LUNG_METRICS, WHOLE_METRICS, CaseMetrics, hu_metrics

HU = npt.NDArray[np.int16]
SHAPE = (5, 24, 32)


def volumes() -> tuple[HU, HU, npt.NDArray[np.bool_]]:
    """A smooth reference in the HU window, a noisy prediction, and a mask away from the borders."""
    rng = np.random.default_rng(0)
    z, y, x = np.meshgrid(*(np.linspace(0, 3, n) for n in SHAPE), indexing="ij")
    reference = (600 * np.sin(x + z) * np.cos(y) - 300).astype(np.int16)
    prediction = (reference + rng.normal(0, 60, SHAPE)).clip(-1024, 3071).astype(np.int16)
    lung = np.zeros(SHAPE, bool)
    lung[1:4, 6:15, 7:20] = rng.random((3, 9, 13)) > 0.3
    return prediction, reference, lung


def skimage_ssim(prediction: HU, reference: HU) -> tuple[list[float], npt.NDArray[np.float64]]:
    """scikit-image's SSIM of each slice, and the map, on intensities from 0 to 4095."""
    pairs = [
        structural_similarity(  # type: ignore[no-untyped-call]
            p.astype(np.float64) + 1024,
            r.astype(np.float64) + 1024,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=4095,
            full=True,
        )
        for p, r in zip(prediction, reference, strict=True)
    ]
    return [float(mean) for mean, _ in pairs], np.stack([full for _, full in pairs])


def test_constant_offset_of_10_hu() -> None:
    reference = volumes()[1]
    metrics = hu_metrics(reference + np.int16(10), reference)
    assert metrics["mae"] == 10
    assert metrics["rmse"] == 10
    assert metrics["psnr"] == pytest.approx(20 * math.log10(4095 / 10))
    assert tuple(metrics) == WHOLE_METRICS


def test_closed_form_inside_and_outside_the_lung() -> None:
    prediction, reference, lung = volumes()
    metrics = hu_metrics(prediction, reference, lung)
    error = prediction.astype(np.float64) - reference
    for prefix, values in (("", error), ("lung_", error[lung])):
        rmse = np.sqrt(np.mean(values**2))
        assert metrics[f"{prefix}mae"] == pytest.approx(np.abs(values).mean(), rel=1e-6)
        assert metrics[f"{prefix}rmse"] == pytest.approx(rmse, rel=1e-6)
        assert metrics[f"{prefix}psnr"] == pytest.approx(20 * np.log10(4095 / rmse), rel=1e-6)
    assert tuple(metrics) == (*WHOLE_METRICS, *LUNG_METRICS)


def test_ssim_agrees_with_scikit_image() -> None:
    prediction, reference, lung = volumes()
    means, full = skimage_ssim(prediction, reference)
    metrics = hu_metrics(prediction, reference, lung)
    assert metrics["ssim"] == pytest.approx(np.mean(means), abs=1e-6)
    assert metrics["lung_ssim"] == pytest.approx(full[lung].mean(), abs=1e-6)
    assert metrics["ssim"] < 0.99  # so that agreement says something


def test_the_ssim_map_lies_on_the_mask() -> None:
    prediction, reference, _ = volumes()
    _, full = skimage_ssim(prediction, reference)
    for voxel in [(0, 6, 7), (4, 12, 25), (2, 17, 8)]:
        lung = np.zeros(SHAPE, np.uint8)
        lung[voxel] = 1
        assert hu_metrics(prediction, reference, lung)["lung_ssim"] == pytest.approx(
            full[voxel], abs=1e-4
        )


def test_perfect_prediction() -> None:
    reference, lung = volumes()[1:]
    metrics = hu_metrics(reference, reference, lung)
    expected = {"mae": 0, "rmse": 0, "psnr": math.inf, "ssim": 1}
    assert metrics == pytest.approx(
        expected | {f"lung_{name}": value for name, value in expected.items()}
    )


def test_values_outside_the_window_are_clipped() -> None:
    reference = np.full(SHAPE, -1024, np.int16)
    padded, metal = np.full(SHAPE, -2000, np.int16), np.full(SHAPE, 30000, np.int16)
    assert hu_metrics(padded, reference)["mae"] == 0
    worst = hu_metrics(metal, padded)
    assert worst["mae"] == 4095
    assert worst["psnr"] == pytest.approx(0, abs=1e-6)


def test_empty_lung_is_nan_and_nan_is_not_hidden() -> None:
    prediction, reference, lung = volumes()
    empty = hu_metrics(prediction, reference, np.zeros(SHAPE))
    assert all(math.isnan(empty[name]) for name in LUNG_METRICS)
    assert math.isfinite(empty["mae"])
    broken = prediction.astype(np.float32)
    broken[0, 12, 12] = np.nan  # in slice 0, where there is no lung
    metrics = hu_metrics(broken, reference, lung)
    assert all(math.isnan(metrics[name]) for name in WHOLE_METRICS)
    assert all(math.isfinite(metrics[name]) for name in LUNG_METRICS)


@pytest.mark.parametrize("chunk", [1, 2, 100])
@pytest.mark.parametrize(
    "convert", [torch.from_numpy, lambda a: a[::-1].copy()[::-1], lambda a: a.astype(np.float64)]
)
def test_chunks_and_kinds_of_array_make_no_difference(
    chunk: int, convert: Callable[[Any], Any]
) -> None:
    prediction, reference, lung = volumes()
    expected = hu_metrics(prediction, reference, lung)
    assert hu_metrics(convert(prediction), reference, convert(lung), chunk=chunk) == pytest.approx(
        expected, rel=1e-6
    )


def test_wrong_shapes() -> None:
    zeros = np.zeros(SHAPE)
    with pytest.raises(ValueError, match=r"one shape .*\(5, 24, 32\) and \(4, 24, 32\)"):
        hu_metrics(zeros, zeros[1:])
    with pytest.raises(ValueError, match=r"one shape"):
        hu_metrics(zeros, zeros, zeros[..., 1:])
    with pytest.raises(ValueError, match=r"in-plane at least 11, got \(5, 24, 10\)"):
        hu_metrics(zeros[..., :10], zeros[..., :10])
    with pytest.raises(ValueError, match=r"at least 1 slice, got 0"):
        hu_metrics(zeros, zeros, chunk=0)


def rows() -> dict[int, dict[str, float]]:
    """Values of cases 0 to 4; case 3 has no lung, case 4 no mask."""
    rng = random.Random(0)
    names = (*WHOLE_METRICS, *LUNG_METRICS)
    cases = {case: {name: rng.uniform(1, 50) for name in names} for case in range(5)}
    cases[3] |= dict.fromkeys(LUNG_METRICS, math.nan)
    cases[4] = {name: cases[4][name] for name in WHOLE_METRICS}
    return cases


def means_of(order: list[int]) -> dict[str, float]:
    metric = CaseMetrics()
    for case in order:
        metric.update(case, rows()[case])
    return {name: value.item() for name, value in metric.compute().items()}


def test_means_over_cases() -> None:
    cases, means = rows(), means_of([0, 1, 2, 3, 4])
    for name in WHOLE_METRICS:
        assert means[name] == pytest.approx(sum(cases[c][name] for c in range(5)) / 5, rel=1e-6)
    for name in LUNG_METRICS:
        assert means[name] == pytest.approx(sum(cases[c][name] for c in range(3)) / 3, rel=1e-6)


def test_repeats_are_dropped_and_order_does_not_matter() -> None:
    assert means_of([4, 2, 0, 2, 3, 1, 0, 0]) == means_of([0, 1, 2, 3, 4])


def test_lung_values_are_left_out_if_no_case_has_any() -> None:
    assert set(means_of([3, 4])) == set(WHOLE_METRICS)


def test_infinite_and_nan_values_of_the_whole_volume_are_handed_on() -> None:
    metric = CaseMetrics()
    metric.update(0, {"mae": 0.0, "rmse": math.nan, "psnr": math.inf, "ssim": 1.0})
    metric.update(1, {"mae": 2.0, "rmse": 3.0, "psnr": 40.0, "ssim": 0.5})
    means = metric.compute()
    assert means["psnr"] == math.inf
    assert means["rmse"].isnan()
    assert means["mae"] == 1
    assert means["ssim"] == 0.75
    metric.reset()
    metric.update(0, {"mae": 7.0, "rmse": 3.0, "psnr": 40.0, "ssim": 0.5})
    assert metric.compute()["mae"] == 7


def test_a_missing_value() -> None:
    with pytest.raises(ValueError, match="of case 8, got none for psnr"):
        CaseMetrics().update(8, {"mae": 1.0, "rmse": 1.0, "ssim": 1.0})


def means_of_shares(rank: int, store: str) -> list[dict[str, float]]:
    """What one of two ranks computes when the cases are shared in three ways."""
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    # Padded as a sampler does it, unequal, and one rank with nothing at all.
    results = [
        means_of(shares[rank])
        for shares in ([[0, 2, 4], [1, 3, 0]], [[4, 0], [1, 2, 3, 4]], [[3, 1, 4, 0, 2], []])
    ]
    torch.distributed.destroy_process_group()
    return results


def test_two_ranks_agree_with_one(tmp_path: Path) -> None:
    with SERVER.Pool(2) as pool:
        ranks = pool.starmap(
            means_of_shares, [(rank, str(tmp_path / "store")) for rank in range(2)], chunksize=1
        )
    assert ranks == [[means_of([0, 1, 2, 3, 4])] * 3] * 2


def test_forward_gives_the_values_of_one_case() -> None:
    metric = CaseMetrics()
    first: dict[str, Tensor] = metric(0, rows()[0])
    metric(1, rows()[1])
    assert first["mae"].item() == pytest.approx(rows()[0]["mae"])
    assert metric.compute()["mae"].item() == pytest.approx(
        (rows()[0]["mae"] + rows()[1]["mae"]) / 2
    )


def test_half_precision_around_it_changes_nothing() -> None:
    prediction, reference, lung = volumes()
    expected = hu_metrics(prediction, reference, lung)
    with torch.autocast(
        "cpu", torch.bfloat16
    ):  # what a validation step runs in when a trainer's precision is bf16-mixed
        assert hu_metrics(prediction, reference, lung) == expected
