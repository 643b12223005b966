"""The spread over windows, against brute force."""

import numpy as np
import pytest
import torch

from mpunet.geometry import window_starts
from mpunet.inference.engine import StreamingEngine
from mpunet.inference.overlap import OverlapMean


@pytest.mark.parametrize("stride", [1, 3, 6, 7])
def test_mean_spread_and_windows_equal_brute_force(stride):
    rng = np.random.default_rng(stride)
    starts = [start * 5 for start in window_starts(13, 8, stride)]
    # A large mean with a small spread: the sum of squares would lose it in float32.
    windows = 0.9 + 1e-4 * rng.standard_normal((len(starts), 36, 2, 3))
    overlap = OverlapMean(starts, 36, 61, (2, 3), torch.device("cpu"), spread=True)
    alone = OverlapMean(starts, 36, 61, (2, 3), torch.device("cpu"))
    parts, means = [], []
    for start, window in zip(starts, windows, strict=True):
        for kept, found in ((overlap, parts), (alone, means)):
            if start > kept.done:
                found.append(kept.finish(start))
            kept.add(start, torch.from_numpy(window).float())
    parts.append(overlap.finish(61))
    means.append(alone.finish(61))
    mean, spread, counts = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    stacked = np.full((len(starts), 61, 2, 3), np.nan)
    for k, (start, window) in enumerate(zip(starts, windows.astype(np.float32), strict=True)):
        stacked[k, start : start + 36] = window
    expected = (~np.isnan(stacked[..., 0, 0])).sum(0)
    assert counts.tolist() == expected.tolist()
    many = expected > 1
    np.testing.assert_allclose(mean, np.nanmean(stacked, 0), rtol=1e-6)
    np.testing.assert_allclose(spread[many], np.nanstd(stacked[:, many], 0, ddof=1), rtol=2e-3)
    assert not spread[~many].any()
    assert np.array_equal(mean, torch.cat([part.mean for part in means]).numpy())
    assert all(part.spread is None for part in means)


@pytest.mark.parametrize(("last_first", "flips", "tile"), [(False, True, None), (True, True, 8)])
def test_spread_of_the_engine(last_first, flips, tile):
    """Windows that are flipped count like others."""
    torch.manual_seed(0)
    layer = torch.nn.Conv3d(1, 1, 3, padding=1)
    seen = []

    def network(windows):
        with torch.no_grad():
            return layer(windows)[:, :, [0, 0, 1, 1, 2, 2, 3]]

    thick = torch.rand(7, 12, 10)
    options = {"n_thick": 4, "ratio": 2, "multiple": 1, "flips": flips, "tile": tile}
    for start in range(4):
        # A volume of the window alone, flipped as the engine flips the window of that number.
        engine = StreamingEngine(network, **{**options, "flips": False})
        dims = [d - 2 for d in ((), (2, 3, 4), (3,), (2, 4))[start]] if flips else []
        part = thick[start : start + 4].flip(dims) if dims else thick[start : start + 4]
        thin = torch.cat(list(engine.stream(part)))
        seen.append(thin.flip(dims) if dims else thin)
    stacked = torch.full((4, 13, 12, 10), torch.nan)
    for start, thin in enumerate(seen):
        stacked[start, 2 * start : 2 * start + 7] = thin
    engine = StreamingEngine(network, **options)
    planes = thick.flip(0) if last_first else thick
    chunks = list(engine.stream_with_spread(planes, shape=thick.shape, last_first=last_first))
    mean, spread, windows = (torch.cat(part) for part in zip(*chunks, strict=True))
    if last_first:
        mean, spread, windows = mean.flip(0), spread.flip(0), windows.flip(0)
    assert windows.tolist() == [1, 1, 2, 2, 3, 3, 4, 3, 3, 2, 2, 1, 1]
    np.testing.assert_allclose(mean, np.nanmean(stacked, 0), atol=1e-5)
    many = windows > 1
    np.testing.assert_allclose(
        spread[many], np.nanstd(stacked[:, many], 0, ddof=1), atol=1e-5, rtol=1e-4
    )
    assert not spread[~many].any()
    plain = torch.cat(list(engine.stream(planes, shape=thick.shape, last_first=last_first)))
    assert torch.equal(plain.flip(0) if last_first else plain, mean)
