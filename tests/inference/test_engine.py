"""The streaming engine against brute force, and its guarantees on memory, padding and network."""

import itertools
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from mpunet.inference.engine import StreamingEngine, reconstruct_slab
from mpunet.inference.tiles import plan_tiles


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
    """Every stride; tiles, batches and slice order vary by case; all combinations at 3 depths."""
    thick = np.random.default_rng(depth).random((depth, 3, 5), np.float32)
    every = list(itertools.product((None, 2, (1, 3)), (1, 2, 3, 4), (False, True)))
    for n_thick, ratio in ((8, 5), (4, 3), (2, 2)):
        network = random_network(n_thick, ratio)
        for stride in range(1, n_thick):
            expected = brute_force(network, thick, n_thick, ratio, stride)
            chosen = (
                every
                if depth in (5, 13, 24)
                else [every[(depth + 7 * stride + n_thick) % len(every)]]
            )
            for tile, batch_size, last_first in chosen:
                engine = StreamingEngine(
                    network,
                    n_thick=n_thick,
                    ratio=ratio,
                    stride=stride,
                    multiple=1,
                    tile=tile,
                    batch_size=batch_size,
                )
                planes = iter(thick[::-1] if last_first else thick)
                thin = torch.cat(
                    list(engine.stream(planes, shape=thick.shape, last_first=last_first))
                )
                assert thin.dtype == torch.float32
                np.testing.assert_allclose(
                    thin.flip(0) if last_first else thin, expected, atol=1e-5
                )


def test_tiles_of_a_network_that_sees_neighbours_equal_brute_force():
    """Explicit sums over windows and tiles in float64.

    Only the weights come from the package; they have tests of their own.
    """
    torch.manual_seed(0)
    network = nn.Conv3d(1, 1, (1, 5, 5), padding=(0, 2, 2))
    thick, size = torch.rand(5, 40, 23), (40, 23)

    def expand(windows):
        return network(windows)[:, :, [0, 0, 1, 1, 2]]

    sums, counts = torch.zeros(9, *size, dtype=torch.float64), torch.zeros(9, 1, 1)
    for start in (0, 1, 2):
        for rows, columns, weight in plan_tiles(*size, (16, 12), torch.device("cpu")):
            part = thick[start : start + 3, rows, columns]
            h, w = part.shape[1:]
            padded = nn.functional.pad(
                part[None, None], (0, -w % 4, 0, -h % 4, 0, 0), mode="replicate"
            )
            with torch.no_grad():
                sums[2 * start : 2 * start + 5, rows, columns] += (
                    weight * expand(padded)[0, 0, :, :h, :w].double()
                )
        counts[2 * start : 2 * start + 5] += 1
    options = {"n_thick": 3, "ratio": 2, "multiple": 4}
    tiled = reconstruct_slab(expand, thick, tile=(13, 12), **options)
    np.testing.assert_allclose(tiled, sums / counts, atol=1e-5)
    whole = reconstruct_slab(expand, thick, **options)
    assert (
        tiled - whole
    ).abs().max() > 1e-3  # so that the comparison above says something about tiles
    assert reconstruct_slab(expand, thick, tile=40, **options).equal(whole)


def test_tensors_arrays_and_integers_are_the_same():
    thick = np.random.default_rng(0).integers(-5, 5, (11, 3, 4))
    options = {"n_thick": 4, "ratio": 2, "multiple": 1}
    expected = reconstruct_slab(random_network(4, 2), thick.astype(np.float32), **options)
    variants = (
        thick.astype(np.int16),
        thick.astype(">i2"),
        thick[::-1, ::-1].astype(np.float64)[::-1, ::-1],
    )
    for variant in (*variants, *map(torch.from_numpy, (thick, thick.astype(np.int16)))):
        torch.testing.assert_close(
            reconstruct_slab(random_network(4, 2), variant, **options), expected
        )


def test_slices_come_as_soon_as_no_window_is_missing():
    calls = []

    def network(windows):
        calls.append(len(windows))
        return random_network(8, 5)(windows)

    taken = []
    planes = (taken.append(i) or torch.rand(2, 2) for i in range(20))
    engine = StreamingEngine(network, n_thick=8, ratio=5, stride=3, multiple=1)
    sizes = [
        (len(chunk), len(calls), len(taken)) for chunk in engine.stream(planes, shape=(20, 2, 2))
    ]
    # Windows at 0, 3, 6, 9, 12: each new window completes the slices before its start; the last
    # chunk has all remaining slices.
    assert sizes == [(15, 2, 11), (15, 3, 14), (15, 4, 17), (15, 5, 20), (36, 5, 20)]


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
        engine = StreamingEngine(network, n_thick=2, ratio=2, multiple=1, autocast=autocast)
        for chunk in engine.stream(torch.rand(3, 4, 4)):
            assert not torch.is_inference_mode_enabled()
            assert not chunk.is_inference()  # so that what comes out can be used in training
            assert chunk.dtype == torch.float32
    assert states == [(True, False)] * 2 + [(True, True)] * 2


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            lambda x: x,
            r"map windows \(1, 1, 8, 32, 32\) to \(1, 1, 36, 32, 32\), "
            r"got \(1, 1, 8, 32, 32\); check that n_thick",
        ),
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
        (torch.rand(9, 4, 4), {"tile": 0}, "tiles of at least 1 pixel, got tile = 0"),
        (
            torch.rand(9, 4, 4),
            {"batch_size": 0},
            "at least 1 window in a batch, got batch_size = 0",
        ),
    ],
)
def test_refused(thick, options, message):
    with pytest.raises(ValueError, match=message):
        reconstruct_slab(random_network(8, 5), thick, n_thick=8, ratio=5, **options)


class Small:
    """A device that holds so many voxels of a call of the network."""

    def __init__(self, voxels, message="CUDA out of memory. Tried to allocate 2.00 GiB"):
        self.voxels, self.message = voxels, message
        self.calls = []

    def __call__(self, windows):
        self.calls.append(tuple(windows.shape))
        if windows.numel() > self.voxels:
            raise torch.OutOfMemoryError(self.message)
        return random_network(4, 2)(windows)


class TestOutOfMemory:
    thick = np.random.default_rng(0).random((9, 20, 12), np.float32)
    options = MappingProxyType({"n_thick": 4, "ratio": 2, "multiple": 4})

    def test_batch_is_halved_then_planes_are_cut(self, caplog):
        expected = reconstruct_slab(random_network(4, 2), self.thick, **self.options)
        network = Small(4 * 8 * 8)
        engine = StreamingEngine(network, batch_size=4, **self.options)
        thin = torch.cat(list(engine.stream(self.thick)))
        torch.testing.assert_close(thin, expected, atol=1e-6, rtol=0)
        # Tile sides are half the longer one, rounded up to a multiple of 4.
        assert [c for c in dict.fromkeys(network.calls) if np.prod(c) > network.voxels] == [
            (4, 1, 4, 20, 12), (2, 1, 4, 20, 12), (1, 1, 4, 20, 12), (1, 1, 4, 12, 12),
        ]  # fmt: skip
        assert (engine.batch_size, engine.tile) == (1, (8, 8))
        assert [record.message for record in caplog.records] == [
            "Out of memory on cpu with windows of 4 × 4 × 20 × 12 voxels: "
            "continuing with 2 in a batch.",
            "Out of memory on cpu with windows of 2 × 4 × 20 × 12 voxels: "
            "continuing with 1 in a batch.",
            "Out of memory on cpu with windows of 1 × 4 × 20 × 12 voxels: "
            "continuing with tiles of 12 × 12.",
            "Out of memory on cpu with windows of 1 × 4 × 12 × 12 voxels: "
            "continuing with tiles of 8 × 8.",
        ]

    def test_what_was_found_serves_the_next_volume(self):
        network = Small(2 * 4 * 20 * 12)
        engine = StreamingEngine(network, batch_size=4, **self.options)
        for _ in range(2):
            list(engine.stream(self.thick))
        assert [c[0] for c in network.calls].count(4) == 1

    def test_in_the_middle_of_a_volume(self):
        """What was summed up before stays right."""
        expected = reconstruct_slab(random_network(4, 2), self.thick, **self.options)
        network = Small(10**9)
        engine = StreamingEngine(network, batch_size=2, **self.options)
        stream = engine.stream(self.thick)
        first = [next(stream)]
        network.voxels = 4 * 8 * 8
        torch.testing.assert_close(torch.cat([*first, *stream]), expected, atol=1e-6, rtol=0)

    def test_as_a_cpu_says_it(self):
        network = Small(4 * 20 * 12)

        def on_cpu(windows):
            try:
                return network(windows)
            except torch.OutOfMemoryError:
                raise RuntimeError(
                    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
                ) from None

        engine = StreamingEngine(on_cpu, batch_size=2, **self.options)
        assert len(torch.cat(list(engine.stream(self.thick)))) == 17
        assert engine.batch_size == 1

    def test_nothing_left_to_try(self):
        with pytest.raises(
            MemoryError,
            match=r"Not enough memory on cpu even for a tile of 1 × 4 × 4 × 4 voxels: "
            r"CUDA out of memory",
        ):
            reconstruct_slab(Small(0), self.thick, **self.options)

    def test_other_errors_are_not_hidden(self):
        def broken(windows):
            raise RuntimeError("size mismatch")

        with pytest.raises(RuntimeError, match="size mismatch"):
            reconstruct_slab(broken, self.thick, **self.options)


@pytest.mark.parametrize("depth", [5, 8, 21])
def test_windows_are_flipped_in_turns_and_their_results_back(depth):
    """Each window is flipped separately here; both slice orders, tiles, and several batch sizes."""
    thick = np.random.default_rng(depth).random((depth, 4, 6), np.float32)
    network = random_network(8, 5)
    uneven = lambda windows: network(windows * torch.linspace(0, 1, windows.shape[3])[:, None])  # noqa: E731 - and not the same upside down
    ways = [(), (0, 1, 2), (1,), (0, 2), (2,), (0, 1), (1, 2), (0,)]
    window = np.pad(thick, ((0, max(0, 8 - depth)), (0, 0), (0, 0)), mode="reflect")
    sums, counts = (
        np.zeros(((len(window) - 1) * 5 + 1, 4, 6)),
        np.zeros(((len(window) - 1) * 5 + 1, 1, 1)),
    )
    for start in range(len(window) - 7):
        axes = ways[start % 8]
        mirrored = torch.from_numpy(np.flip(window[start : start + 8], axes).copy())
        sums[start * 5 :][:36] += np.flip(uneven(mirrored[None, None])[0, 0].numpy(), axes)
        counts[start * 5 :][:36] += 1
    expected = (sums / counts)[: (depth - 1) * 5 + 1]
    for batch_size, last_first in itertools.product((1, 3), (False, True)):
        engine = StreamingEngine(
            uneven, n_thick=8, ratio=5, multiple=1, batch_size=batch_size, flips=True
        )
        planes = iter(thick[::-1] if last_first else thick)
        thin = torch.cat(list(engine.stream(planes, shape=thick.shape, last_first=last_first)))
        np.testing.assert_allclose(
            thin.numpy()[::-1] if last_first else thin.numpy(), expected, atol=1e-6
        )
    # A network that has the symmetry itself gives the same, in tiles too.
    mean = lambda windows: windows.mean(dim=2, keepdim=True).expand(-1, -1, 36, -1, -1)  # noqa: E731
    options = {"n_thick": 8, "ratio": 5, "multiple": 1, "tile": 3}
    plain, turned = (
        reconstruct_slab(mean, thick, flips=flips, **options) for flips in (False, True)
    )
    torch.testing.assert_close(plain, turned)
