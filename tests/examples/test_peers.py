"""Adapters of examples/peers, on stand-ins with the interface of the real networks, and on clones.

A stand-in interpolates linearly in the way in which the real network is called, so that a slice at
a wrong place is seen. The tests on clones run if MPUNET_PEERS names their folder.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mpunet.benchmark import find_rows
from mpunet.models import Bicubic

EXAMPLES = Path(__file__).parents[2] / "examples"
CTHNET = "CTHNet-for-CT-Slice-Thickness-Reduction"

SWIN = """
import torch, torch.nn.functional as F
from torch import nn
from config import opt
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_resolution, self.attn_mask = (opt.c_y, opt.c_x), None
class {name}(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.depth, self.block = 1, (opt.c_z - 1) * opt.ratio + 1, Block()
        mask = torch.ones(self.depth - opt.c_z, self.c, opt.c_y, opt.c_x)
        {mask}
        self.positions_z = torch.zeros(self.depth, 1, 1).cuda()
        self.conv_last = nn.Conv3d(1, 1, 1)
    def forward(self, x):
        x = x.squeeze().unsqueeze(0)[None]
        assert x.shape == (1, 1, opt.c_z, opt.c_y, opt.c_x)
        {check}
        x = F.interpolate(x, (self.depth, opt.c_y, opt.c_x), mode="trilinear", align_corners=True)
        return self.conv_last(x + self.positions_z)[:, :, 3:-3]
"""
CONFIG = """
class Opt:
    def load_config(self, path):
        with open(path) as file:
            self.text = file.read()
opt = Opt()
"""
FAKES = {
    "RPLHR-CT/config/default.txt": "",
    "RPLHR-CT/code/config.py": CONFIG,
    "RPLHR-CT/code/net/model_TransSR.py": SWIN.format(
        name="TVSRN",
        mask="self.x_patch_mask = nn.Parameter(mask).cuda()",
        check="x = x + torch.cat([x[0, 0, :, None], self.x_patch_mask])[opt.c_z :].sum()",
    ),
    f"{CTHNET}/config/all.txt": "",
    f"{CTHNET}/code/config.py": CONFIG,
    f"{CTHNET}/code/net/model_TransSR.py": SWIN.format(
        name="TVSRN3d_v1",
        mask="",
        check="assert self.block.input_resolution == (opt.c_y, opt.c_x)",
    ),
    "I3Net/opt/i3net.json": json.dumps({"n_feats": 64}),
    "I3Net/model_zoo/i3net/basic_model.py": """
import torch
from torch import nn
class DCT(nn.Module):
    matrix = None
    def check_dct_matrix(self, h, w):
        if self.matrix is None:
            self.matrix = torch.eye(w)
    def forward(self, x):
        self.check_dct_matrix(*x.shape[2:])
        return x @ self.matrix.T
class I3Net(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.args, slices, self.dct = args, args.hr_slice_patch, DCT()
        self.tail = nn.Sequential(nn.ReLU(), nn.Conv2d(args.lr_slice_patch, slices, 1))
    def forward(self, x):
        x = x.permute(0, 3, 1, 2)
        out = self.tail(self.dct(x))
        out[:, :: self.args.upscale] = x
        return out.permute(0, 2, 3, 1)
""",
    "SAINT/model/meta_multi.py": """
import scipy.misc
import torch
from torch import nn
class GW(nn.Module):
    def __init__(self):
        super().__init__()
        self.meta_block = nn.Sequential(nn.Conv2d(1, 1, 1))
class RFN(nn.Module):
    def __init__(self):
        super().__init__()
        self.UPNet = nn.Sequential(nn.Conv2d(2, 1, 1))
    def forward(self, x):
        return x.mean(1, keepdim=True) + 0 * self.UPNet(x)
class MSR_RDN(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.ratio, self.GW, self.RFN = args.scale[0], GW(), RFN()
    def forward(self, x, dist):
        assert dist.shape == (len(x), self.ratio, 3, 3)
        before, here, after = x.unbind(1)
        later = torch.cat([here[..., 1:], here[..., -1:]], -1)
        part = torch.arange(self.ratio).view(1, -1, 1, 1) / self.ratio
        fine = here[:, None] * (1 - part) + later[:, None] * part
        return fine + (before - 2 * here + after)[:, None]
""",
    "ACVTT/models/ACVTT.py": """
from torch import nn
class ACVTT(nn.Module):
    def __init__(self, args):
        super().__init__()
        assert args.shared_ref_enc and not args.pre_transfer
        self.last_conv, self.long_skip = nn.Conv2d(1, 1, 1), args.long_skip
    def forward(self, data, slice_ref=None, pre_upsampled=False):
        assert data.shape[:2] == (1, 1) and not data.shape[2] % 8 and slice_ref.shape[:2] == (3, 1)
        return {"out": self.last_conv(data) * 0 + (data if self.long_skip else 0)}
""",
}
# Class and in-plane size, which is not that of the stand-ins' constructor.
PEERS = {
    "tvsrn": ("TVSRN", (16, 24)),
    "cthnet": ("CTHNet", (16, 24)),
    "i3net": ("I3Net", (256, 256)),
    "saint": ("SAINT", (12, 10)),
    "acvtt": ("ACVTT", (16, 24)),
}


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)


@pytest.fixture
def clones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FAKES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("MPUNET_PEERS", str(tmp_path))
    monkeypatch.setitem(sys.modules, "scipy.misc", ModuleType("scipy.misc"))  # no longer in SciPy
    return tmp_path


def peer(name: str, **options: object) -> torch.nn.Module:
    cls = getattr(importlib.import_module(f"peers.{name}"), PEERS[name][0])
    network: torch.nn.Module = cls(**options)
    return network.eval()


def windows(network: torch.nn.Module, size: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 1, network.n_thick, *size, generator=generator)


def linear(network: torch.nn.Module, thick: Tensor) -> Tensor:
    size = (network.n_thin, *thick.shape[3:])
    return F.interpolate(thick, size, mode="trilinear", align_corners=True)


class TestStandIns:
    @pytest.mark.parametrize("name", ["tvsrn", "cthnet"])
    def test_all_slices_of_each_window(self, clones: Path, name: str) -> None:
        """Also those that the published network drops, at another size than it was made for."""
        network = peer(name, residual=False)
        torch.nn.init.ones_(network.net.conv_last.weight)
        torch.nn.init.zeros_(network.net.conv_last.bias)
        thick = windows(network, PEERS[name][1])
        for _ in range(2):  # nothing is left of the first call
            torch.testing.assert_close(network(thick).image, linear(network, thick))

    def test_i3net_copies_thick_slices_unless_residual(self, clones: Path) -> None:
        network = peer("i3net", residual=False)
        thick = windows(network, (256, 256))
        assert torch.equal(network(thick).image[:, :, ::5], thick)
        residual = peer("i3net")
        change = residual(thick).image - Bicubic(4, 5)(thick).image
        assert 0 < change[:, :, ::5].abs().max() < 0.02
        with pytest.raises(
            ValueError, match=r"planes of 256 x 256, got \(512, 256\): set data.crop"
        ):
            network(torch.zeros(1, 1, 4, 512, 256))

    def test_i3net_trains_after_a_validation(self, clones: Path) -> None:
        network = peer("i3net")
        thick = windows(network, (256, 256))[:1]
        with torch.inference_mode():
            network(thick)
        thick.requires_grad_()
        network(thick).image.sum().backward()
        assert thick.grad is not None

    def test_saint_sees_both_planes_and_neighbours(self, clones: Path) -> None:
        network = peer("saint", residual=False)
        thick = windows(network, (12, 10))
        thick[0] = thick[0, :, :, :1, :1]  # constant planes: linear but for the border
        thin = network(thick).image
        assert thin.shape == (2, 1, 36, 12, 10)
        torch.testing.assert_close(
            thin[:1, ..., 1:-1, 1:-1], linear(network, thick[:1])[..., 1:-1, 1:-1]
        )
        plane = thick[1, 0, 3]
        padded = F.pad(plane, (1, 1, 1, 1))
        around = padded[2:, 1:-1] + padded[:-2, 1:-1] + padded[1:-1, 2:] + padded[1:-1, :-2]
        torch.testing.assert_close(thin[1, 0, 15], plane + (around - 4 * plane) / 2)

    def test_saint_distances(self, clones: Path) -> None:
        found = importlib.import_module("peers.saint").distances(5, 1.0, 0.7)
        assert found.shape == (1, 5, 3, 3)
        assert found[0, 0, 1].tolist() == pytest.approx([0.7, 0, 0.7])
        assert found[0, 2, :, 1].tolist() == pytest.approx([7, 2, 3])
        assert found[0, 2, 2, 2].item() == pytest.approx((3**2 + 0.7**2) ** 0.5)

    def test_acvtt_interpolates_first(self, clones: Path) -> None:
        network = peer("acvtt", residual=False)
        thick = windows(network, (16, 24))
        torch.testing.assert_close(network(thick).image, linear(network, thick))

    @pytest.mark.parametrize("name", PEERS)
    def test_residual_starts_near_the_cubic_interpolation(self, clones: Path, name: str) -> None:
        network = peer(name)
        thick = windows(network, PEERS[name][1])
        if name == "saint":  # the stand-in's interpolation does not shrink
            network.net.forward = lambda x, dist: x.new_zeros(len(x), 5, *x.shape[2:])
        cubic = Bicubic(network.n_thick, network.ratio)(thick).image
        torch.testing.assert_close(network(thick).image, cubic, atol=0.02, rtol=0)

    def test_clones_do_not_see_each_other(self, clones: Path) -> None:
        """Two of them have modules named config and net; mine of this name stay."""
        mine = ModuleType("config")
        sys.modules["config"] = mine
        try:
            first, second = peer("tvsrn"), peer("cthnet")
            assert sys.modules["config"] is mine
        finally:
            del sys.modules["config"]
        assert (first.n_thin, second.n_thin) == (16, 36)
        assert not [name for name in sys.modules if name.split(".")[0] in ("net", "model_zoo")]
        assert not [place for place in sys.path if str(clones) in place]

    def test_without_a_clone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MPUNET_PEERS", str(tmp_path))
        with pytest.raises(
            FileNotFoundError, match=rf"github.com/khuhm/ACVTT at {tmp_path}; the v"
        ):
            peer("acvtt")
        with pytest.raises(FileNotFoundError, match=rf"smilenaxx/RPLHR-CT at {tmp_path}; the v"):
            peer("tvsrn")


def test_each_row_names_an_adapter_or_a_program() -> None:
    rows = find_rows([EXAMPLES / "peers"])
    classes = [row.section("model", "net", "class_path") for row in rows]
    adapters = [f"peers.{name}.{cls}" for name, (cls, _) in PEERS.items()]
    assert sorted(c for c in classes if str(c).startswith("peers.")) == sorted(adapters)
    for row in rows:
        if row.command:
            script = row.command.split()[1]
            assert (EXAMPLES.parent / script).is_file(), script
    tied = {row.name: row for row in rows}["i3net"]
    assert tied.section("data", "crop") == [256, 256]
    assert tied.section("inference", "tile") == 256


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif("MPUNET_PEERS" not in os.environ, reason="needs clones in $MPUNET_PEERS")
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("tvsrn", 2_387_489),
        ("cthnet", 10_606_217),
        ("i3net", 23_206_928),
        ("saint", 3_158_817),
        ("acvtt", 9_246_401),
    ],
)
def test_clone(name: str, parameters: int) -> None:
    """On the real network: the first and last thick slice change thin slices at their place.

    Untrained attention spreads each change over all slices, so it is switched off. What tells the
    places of TVSRN is its training: its layers alone do not.
    """
    torch.manual_seed(0)
    network = peer(name, residual=False)
    assert sum(p.numel() for p in network.parameters()) == parameters
    if name == "cthnet":
        network.net.positions_z.zero_()
        for decoder in (network.net.Decoder_T1, network.net.Decoder_I1):
            decoder.forward_features = torch.zeros_like
    size = (256, 256) if name == "i3net" else (16, 16)
    thick = windows(network, size)[:1]
    found = []
    with torch.inference_mode():
        before = network(thick).image
        for k in (0, network.n_thick - 1):
            changed = thick.clone()
            changed[:, :, k] += 0.3
            found.append((network(changed).image - before)[0, 0].abs().mean((1, 2)))
    assert before.shape == (1, 1, network.n_thin, *size)
    if name == "i3net":  # it copies the thick slices
        assert [int(change.argmax()) for change in found] == [0, network.n_thin - 1]
    elif name != "tvsrn":  # it joins depth and channels in another order than it splits them
        first, last = (
            (change * torch.arange(len(change))).sum() / change.sum() for change in found
        )
        assert first < network.n_thin / 4
        assert last > network.n_thin * 0.7
