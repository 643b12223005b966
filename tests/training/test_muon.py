"""Muon: its orthogonal matrices, its AdamW against PyTorch's, and a resumed training."""

import copy

import pytest
import torch
from torch import nn

from mpunet import MPUNet, MPUNetModule
from mpunet.training.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(8, 216), (16, 16), (48, 24), (3, 2)])
def test_singular_values_come_near_1_and_directions_stay(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    out = orthogonalised(matrix)
    values = torch.diagonal(u.T @ out @ vh.T)
    wide = s > 0.05 * s.norm()
    assert wide.any()
    assert ((values[wide] > 0.65) & (values[wide] < 1.25)).all()
    off = u.T @ out @ vh.T - torch.diag(values)
    assert off.abs().max() < 1e-9


def test_zeros_stay_zeros():
    assert orthogonalised(torch.zeros(3, 4)).eq(0).all()


def test_size_and_direction_of_a_step():
    """For a gradient with orthogonal rows, the step is parallel to it.

    The length of each row is 0.2 * sqrt(columns) * lr.
    """
    kernel = nn.Parameter(torch.zeros(4, 2, 3, 3, 3))
    rows = torch.linalg.qr(torch.randn(54, 4, generator=torch.Generator().manual_seed(0)))[0].T
    optimizer = Muon([kernel], muon_lr=0.01, weight_decay=0.0)
    kernel.grad = 7 * rows.reshape(kernel.shape)
    optimizer.step()
    lengths = kernel.detach().flatten(1).norm(dim=1)
    cosine = -(kernel.detach().flatten(1) * rows).sum(dim=1) / lengths
    torch.testing.assert_close(cosine, torch.ones(4))
    expected = 0.2 * 54**0.5 * 0.01
    assert ((lengths > 0.65 * expected) & (lengths < 1.25 * expected)).all()


def test_all_but_kernels_is_left_to_adamw():
    """Biases, and kernels from or to a single channel, step by step as PyTorch's AdamW has them."""
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Conv3d(1, 3, 3), nn.Conv3d(3, 1, 3))
    theirs = copy.deepcopy(ours)
    options = {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.1}
    optimizers = (
        Muon(ours.parameters(), **options),
        torch.optim.AdamW(theirs.parameters(), **options),
    )
    for step in range(5):
        x = torch.randn(1, 1, 6, 6, 6, generator=torch.Generator().manual_seed(step))
        for net, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def train(net, optimizer, steps):
    thick = torch.rand(1, 1, 8, 32, 32, generator=torch.Generator().manual_seed(1))
    target = torch.rand(1, 1, 36, 32, 32, generator=torch.Generator().manual_seed(2))
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (net(thick).image - target).abs().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def network():
    torch.manual_seed(0)
    return MPUNet(widths=(4, 4, 6, 6, 8, 8)).to(memory_format=torch.channels_last_3d)


def test_it_trains_and_goes_on_where_it_stopped():
    net = network()
    optimizer = Muon(net.parameters())
    losses = train(net, optimizer, 6)
    assert losses[-1] < losses[0]

    other = network()
    before = Muon(other.parameters())
    train(other, before, 3)
    later = Muon(other.parameters())
    later.load_state_dict(copy.deepcopy(before.state_dict()))
    assert train(other, later, 3) == pytest.approx(losses[3:], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "decay"),
    [
        ({}, 0.01),
        ({"muon_lr": 3e-3}, 1.0),
        ({"weight_decay": 0.1}, 0.1),
        ({"muon_lr": 3e-3, "weight_decay": 0.1}, 0.1),
    ],
)
def test_weight_decay_unless_it_is_given(options, decay):
    """An orthogonalised step does not shrink with the gradient: without decay, noise adds up."""
    assert MPUNetModule(network(), **options).weight_decay == decay


def test_what_is_no_signal_stays_bounded():
    """With gradients of noise only, a kernel stays near He's size by the default decay only."""

    def size(**options):
        torch.manual_seed(0)
        kernel = nn.Parameter(torch.randn(8, 8, 3, 3, 3) * (2 / 216) ** 0.5)
        optimizer = Muon([kernel], muon_lr=3e-3, **options)
        for _ in range(1500):
            kernel.grad = torch.randn_like(kernel)
            optimizer.step()
        return kernel.detach().square().mean().sqrt().item() / (2 / 216) ** 0.5

    assert size() < 1
    assert size(weight_decay=0.01) > 1.5


def test_refused():
    parameter = nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"of at least 0, got 0.001, -1 and"):
        Muon([parameter], muon_lr=-1)
    with pytest.raises(ValueError, match=r"below 1, got 1.0 and"):
        Muon([parameter], momentum=1.0)
