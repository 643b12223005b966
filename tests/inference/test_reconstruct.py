"""Volume in, volume out: positions to 0.001 mm, input types preserved, precision selected."""

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

import mpunet
from mpunet.config import to_config
from mpunet.inference.options import first_device
from mpunet.inference.reconstruct import Reconstructor, autocast_dtype
from mpunet.io.volume import volume_from_image
from mpunet.weights import Weights, write_weights


class Linear(nn.Module):
    """Linear interpolation between the thick slices of a window, ends aligned."""

    def __init__(self, n_thick=8, ratio=5):
        super().__init__()
        self.n_thick, self.ratio, self.multiple = n_thick, ratio, 1
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, windows):
        size = ((self.n_thick - 1) * self.ratio + 1, *windows.shape[3:])
        return self.gain * nn.functional.interpolate(
            windows, size=size, mode="trilinear", align_corners=True
        )


def reconstructor(ratio=5, **options):
    return Reconstructor(
        Linear(8, ratio),
        n_thick=8,
        ratio=ratio,
        multiple=1,
        precision="float32",
        device="cpu",
        **options,
    )


def rotation(x, y, z):
    (cx, cy, cz), (sx, sy, sz) = np.cos([x, y, z]), np.sin([x, y, z])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


# Directions of the voxel axes and the one that is the slice axis.
GRIDS = [
    (np.diag([-1, -1, 1]), 2),
    (np.diag([1, -1, -1]), 2),
    (rotation(0.3, -0.2, 0.4) @ np.diag([-1, -1, 1]), 2),
    (rotation(-0.5, 0.1, 0.7) @ np.diag([1, -1, 1]), 2),
    (np.array([[0, 1, 0], [0, 0, -1], [1, 0, 0]]), 0),
    (rotation(0.2, 0.3, -0.1) @ np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]), 1),
]


def voxel_positions(affine, shape):
    """World coordinates in mm of every voxel, (*shape, 3)."""
    return nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))


def check_world_positions(folder, directions, axis, depth, ratio, **options):
    """Check world coordinates after reading, reconstructing and writing.

    Thick voxels, 5 mm apart, contain a world coordinate; thin voxels must then contain their own.

    Yields, for each world axis, the thin image and the positions of thin and thick voxels.
    """
    shape = np.array([4, 3, 3])
    spacing = np.array([0.7, 0.8, 0.8])
    shape[axis], spacing[axis] = depth, 5
    affine = nib.affines.from_matvec(directions * spacing, [-31.4, 15.9, -265])
    positions = voxel_positions(affine, shape)
    centre, hu_per_mm = positions.mean((0, 1, 2)), 10
    for world in range(3):
        hu = (positions[..., world] - centre[world]) * hu_per_mm
        nib.save(nib.Nifti1Image(hu.astype(np.float32), affine), folder / "thick.nii")
        # Coordinates along an axis in the slices span a few HU only, so they are no CT.
        reconstruct = reconstructor(
            ratio, stride=1 + (depth + 2 * world) % 7, check_hu=False, **options
        )
        reconstruct.file(folder / "thick.nii", folder / "thin.nii", dtype="float32")

        image = nib.load(folder / "thin.nii")
        thin = voxel_positions(image.affine, image.shape)
        np.testing.assert_allclose(
            image.get_fdata() / hu_per_mm + centre[world], thin[..., world], atol=1e-3
        )
        yield image, thin, positions


@pytest.mark.parametrize("depth", range(2, 41))
def test_world_positions_are_reproduced_from_file_to_file(tmp_path, depth):
    for ratio in range(2, 7):
        directions, axis = GRIDS[(depth + ratio) % len(GRIDS)]
        options = {"batch_size": 4, "tile": (None, 2, 3)[depth % 3]}
        for image, thin, thick in check_world_positions(
            tmp_path, directions, axis, depth, ratio, **options
        ):
            assert image.shape[axis] == (depth - 1) * ratio + 1
            np.testing.assert_allclose(
                thin.take([0, -1], axis), thick.take([0, -1], axis), atol=1e-3
            )


class TestKinds:
    thick = np.linspace(-1000, 1000, 5).repeat(12).reshape(5, 3, 4)
    thin = np.linspace(-1000, 1000, 21)

    def test_array(self):
        for thick in (self.thick, self.thick.astype(np.int16), self.thick.astype(">f4")):
            result = reconstructor()(thick)
            assert result.dtype == np.float32
            assert result.shape == (21, 3, 4)
            np.testing.assert_allclose(result[:, 1, 2], self.thin, atol=1e-3)

    def test_tensor(self):
        for thick in (
            torch.from_numpy(self.thick).requires_grad_(),
            torch.from_numpy(self.thick).short(),
        ):
            result = reconstructor()(thick)
            assert isinstance(result, torch.Tensor)
            assert result.dtype == torch.float32
            np.testing.assert_allclose(result[:, 1, 2], self.thin, atol=1e-3)

    def test_image(self):
        affine = np.diag([-0.8, -0.8, 5, 1])
        image = nib.Nifti1Image(self.thick.transpose(2, 1, 0).astype(np.int16), affine)
        image.header["descrip"] = b"kernel B31f"
        result = reconstructor()(image)
        assert result.get_data_dtype() == np.int16
        np.testing.assert_array_equal(np.asanyarray(result.dataobj)[2, 1], self.thin)
        np.testing.assert_allclose(result.affine, np.diag([-0.8, -0.8, 1, 1]), atol=1e-6)
        assert result.header["descrip"] == b"kernel B31f"

    def test_volume_is_rounded_and_clipped(self):
        volume = volume_of_column(np.array([-3000, -1000, 0.0, 3, 5000]))
        result = reconstructor(ratio=2).stream(volume).slab("int16")
        assert result.dtype == np.int16
        # -3000 and 5000 are clipped to -1024 and 3071; 1.5 is between 0 and 3, and 1537 between 3
        # and 3071.
        assert result[:, 0, 0].tolist() == [-1024, -1012, -1000, -500, 0, 2, 3, 1537, 3071]

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (np.zeros((5, 4)), r"a volume \(D, H, W\), got shape \(5, 4\)"),
            (np.zeros((5, 0, 4)), r"a volume \(D, H, W\), got shape \(5, 0, 4\)"),
            (thick / 2000 + 0.5, "intensities of 0 to 1 are not HU"),
            (torch.from_numpy(thick / 2000 + 0.5), "intensities of 0 to 1 are not HU"),
            (np.where(thick < -900, np.nan, thick), "12 NaN or infinite voxels of 60"),
            (thick[:1] + np.linspace(0, 500, 4), "at least 2 slices along depth, got 1"),
            ("scan.nii.gz", "expected a NIfTI image, got str"),
        ],
    )
    def test_refused(self, image, message):
        with pytest.raises(ValueError, match=message):
            reconstructor()(image)

    @pytest.mark.parametrize(
        "kind",
        [
            np.asarray,
            lambda thick: nib.Nifti1Image(thick.transpose(2, 1, 0), np.diag([-0.8, -0.8, 5, 1])),
        ],
    )
    def test_nan_of_a_network_is_refused(self, kind):
        broken = nn.Sequential(Linear(), nn.Threshold(0.9, float("nan")))
        reconstruct = Reconstructor(
            broken, n_thick=8, ratio=5, multiple=1, precision="float32", device="cpu"
        )
        with pytest.raises(
            ValueError, match="The network returned NaN; with precision fp16 or bf16, try float32"
        ):
            reconstruct(kind(self.thick))

    def test_check_hu_can_be_off(self):
        assert reconstructor(check_hu=False)(self.thick / 2000)[0, 0, 0] == pytest.approx(
            -0.5, abs=1e-3
        )


def volume_of_column(column):
    voxels = np.broadcast_to(column.astype(np.float32), (2, 3, len(column)))
    return volume_from_image(nib.Nifti1Image(voxels, np.diag([-0.8, -0.8, 5, 1])))


def test_module_is_evaluated():
    network = nn.Sequential(nn.Dropout(0.5), Linear())
    network.train()
    result = Reconstructor(
        network, n_thick=8, ratio=5, multiple=1, precision="float32", device="cpu"
    )(TestKinds.thick)
    np.testing.assert_allclose(result[:, 0, 0], TestKinds.thin, atol=1e-3)


def test_from_checkpoint(tmp_path):
    net = mpunet.MPUNet(4, 3, widths=(2, 2, 2))
    training = {"thick_spacing": [3.0, 3.0]}
    write_weights(
        tmp_path / "x.safetensors",
        Weights(tmp_path, to_config(net), net.state_dict(), {"training": training}),
    )
    reconstruct = Reconstructor.from_checkpoint(tmp_path / "x.safetensors", stride=2, device="cpu")
    engine = reconstruct.engine
    assert (engine.n_thick, engine.ratio, engine.multiple, engine.stride) == (4, 3, 4, 2)
    assert reconstruct(TestKinds.thick).shape == (13, 3, 4)
    assert reconstruct.spacing == (3.0, 3.0)
    assert Reconstructor.from_checkpoint(tmp_path / "x.safetensors", spacing=None).spacing is None


def test_bad_options_are_refused_at_once():
    with pytest.raises(ValueError, match="stride of 1 to 7"):
        reconstructor(stride=8)
    with pytest.raises(ValueError, match="stride of 1 to 7, 'best' or 'fast', got 'slow'"):
        reconstructor(stride="slow")
    with pytest.raises(ValueError, match="windows of at least 2 thick slices, got 1"):
        Reconstructor(Linear(), n_thick=1, ratio=5)


class TestPrecision:
    cpu = torch.device("cpu")

    def test_given(self):
        assert autocast_dtype(self.cpu, "float32") is None
        assert autocast_dtype(self.cpu, "bf16") == torch.bfloat16
        assert autocast_dtype(self.cpu, "fp16") == torch.float16

    @pytest.mark.parametrize(
        ("capabilities", "expected"),
        [({"avx512_bf16": True}, torch.bfloat16), ({"avx512_f": True}, None)],
    )
    def test_auto_on_cpu_follows_the_processor(self, monkeypatch, capabilities, expected):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
        assert autocast_dtype(self.cpu) == expected

    @pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, None)])
    def test_auto_with_older_torch(self, monkeypatch, native, expected):
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native, raising=False)
        assert autocast_dtype(self.cpu) == expected

    def test_bf16_reaches_the_network_and_float32_comes_back(self):
        network = nn.Sequential(Linear(), nn.Linear(4, 4, bias=False))
        nn.init.eye_(network[1].weight)
        make = {"n_thick": 8, "ratio": 5, "multiple": 1, "device": "cpu"}
        exact = Reconstructor(network, **make, precision="float32")(TestKinds.thick)
        rough = Reconstructor(network, **make, precision="bf16")(TestKinds.thick)
        assert rough.dtype == np.float32
        # bfloat16 has 8 significant bits: the difference is at most half of 2**-8 of intensity 1,
        # and not 0.
        assert 0 < np.abs(rough - exact).max() <= 4095 / 2**8


@pytest.mark.parametrize(
    ("cuda", "mps", "device"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_the_first_device_that_exists(monkeypatch, cuda, mps, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert first_device() == device
