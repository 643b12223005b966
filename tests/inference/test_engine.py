"""The streaming engine against brute force, and what it promises about memory, padding and its network."""

from typing import NamedTuple

import numpy as np
import pytest
import torch

from mpunet.inference.engine import reconstruct_slab, stream_thin


class Output(NamedTuple):
    image: torch.Tensor
    mask: torch.Tensor


def random_network(n_thick, ratio, seed=0):
    """Non-linear, mixes all slices of a window, and different for each thin slice of it."""
    size = (n_thick - 1) * ratio + 1
    mixing = torch.randn(size, n_thick, generator=torch.Generator().manual_seed(seed))
    return lambda windows: torch.tanh(torch.einsum("tn,bcnhw->bcthw", mixing, windows))


def brute_force(network, thick, n_thick, ratio, stride):
    """Every window at its place in full-size float64 arrays; nothing shared with the package."""
    depth = len(thick)
    padded = np.pad(thick, ((0, max(0, n_thick - depth)), (0, 0), (0, 0)), mode="reflect")
    total = (len(padded) - 1) * ratio + 1
    sums, counts = np.zeros((total, *thick.shape[1:])), np.zeros((total, 1, 1))
    last = len(padded) - n_thick
    for start in sorted({*range(0, last, stride), last}):
        window = torch.from_numpy(padded[start : start + n_thick])[None, None]
        place = slice(start * ratio, (start + n_thick - 1) * ratio + 1)
        sums[place] += network(window)[0, 0].double().numpy()
        counts[place] += 1
    assert counts.min() >= 1
    return (sums / counts)[: (depth - 1) * ratio + 1]


@pytest.mark.parametrize("depth", range(2, 41))
def test_equals_brute_force(depth):
    thick = np.random.default_rng(depth).random((depth, 3, 5), np.float32)
    for n_thick, ratio in ((8, 5), (4, 3), (2, 2)):
        network = random_network(n_thick, ratio)
        for stride in range(1, n_thick):
            options = {
                "n_thick": n_thick,
                "ratio": ratio,
                "stride": stride,
                "batch_size": 1 + (depth + stride) % 4,
                "multiple": 1,
            }
            thin = reconstruct_slab(network, thick, **options)
            assert thin.dtype == torch.float32
            np.testing.assert_allclose(thin, brute_force(network, thick, n_thick, ratio, stride), atol=1e-5)


def test_tensors_arrays_and_integers_are_the_same():
    thick = np.random.default_rng(0).integers(-5, 5, (11, 3, 4))
    options = {"n_thick": 4, "ratio": 2, "multiple": 1}
    expected = reconstruct_slab(random_network(4, 2), thick.astype(np.float32), **options)
    variants = (thick.astype(np.int16), thick.astype(">i2"), thick[::-1, ::-1].astype(np.float64)[::-1, ::-1])
    for variant in (*variants, *map(torch.from_numpy, (thick, thick.astype(np.int16)))):
        torch.testing.assert_close(reconstruct_slab(random_network(4, 2), variant, **options), expected)


def test_slices_come_as_soon_as_no_window_is_missing():
    calls = []

    def network(windows):
        calls.append(len(windows))
        return random_network(8, 5)(windows)

    stream = stream_thin(network, torch.rand(20, 2, 2), n_thick=8, ratio=5, stride=3, multiple=1)
    sizes = [(len(chunk), len(calls)) for chunk in stream]
    # Windows at 0, 3, 6, 9, 12: each new one closes the slices before its start; the last chunk is all that is open.
    assert sizes == [(15, 2), (15, 3), (15, 4), (15, 5), (36, 5)]


def test_in_plane_is_padded_by_repetition_and_cropped():
    seen = []

    def network(windows):
        seen.append(windows)
        return windows[:, :, [0, 0, 1, 1, 2, 2, 3]]

    thick = torch.rand(4, 5, 9)
    thin = reconstruct_slab(network, thick, n_thick=4, ratio=2, multiple=8)
    assert seen[0].shape == (1, 1, 4, 8, 16)
    torch.testing.assert_close(seen[0][0, 0, :, :5, :9], thick)
    torch.testing.assert_close(seen[0][0, 0, :, 7, :9], thick[:, 4])
    torch.testing.assert_close(seen[0][0, 0, :, :5, 15], thick[:, :, 8])
    torch.testing.assert_close(thin, thick[[0, 0, 1, 1, 2, 2, 3]])


def test_named_outputs():
    network = random_network(4, 2)
    thick = torch.rand(6, 3, 4)
    options = {"n_thick": 4, "ratio": 2, "multiple": 1}
    named = reconstruct_slab(lambda windows: Output(network(windows), windows), thick, **options)
    torch.testing.assert_close(named, reconstruct_slab(network, thick, **options))


def test_inference_mode_and_autocast_are_the_networks_only():
    states = []

    def network(windows):
        states.append((torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")))
        return windows[:, :, [0, 0, 1]] @ torch.eye(4)

    for autocast in (None, torch.bfloat16):
        for chunk in stream_thin(network, torch.rand(3, 4, 4), n_thick=2, ratio=2, multiple=1, autocast=autocast):
            assert not torch.is_inference_mode_enabled()
            assert not chunk.is_inference()  # so that what comes out can be used in training
            assert chunk.dtype == torch.float32
    assert states == [(True, False)] * 2 + [(True, True)] * 2


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda x: x, r"map windows \(1, 1, 8, 32, 32\) to \(1, 1, 36, 32, 32\), got \(1, 1, 8, 32, 32\); check that n_thick"),
        (lambda x: random_network(8, 4)(x), r"got \(1, 1, 29, 32, 32\)"),
        (lambda x: [x], "got list"),
    ],
)
def test_wrong_output(network, message):
    with pytest.raises(ValueError, match=message):
        reconstruct_slab(network, torch.rand(9, 4, 4), n_thick=8, ratio=5)


@pytest.mark.parametrize(
    ("thick", "options", "message"),
    [
        (torch.rand(1, 9, 4, 4), {}, r"a volume \(D, H, W\), got shape \(1, 9, 4, 4\)"),
        (torch.rand(1, 4, 4), {}, "at least 2 slices along depth, got 1"),
        (torch.rand(9, 4, 4), {"stride": 8}, "stride of 1 to 7"),
        (torch.rand(9, 4, 4), {"batch_size": 0}, "at least 1 window in a batch, got batch_size = 0"),
    ],
)
def test_refused(thick, options, message):
    with pytest.raises(ValueError, match=message):
        reconstruct_slab(random_network(8, 5), thick, n_thick=8, ratio=5, **options)
