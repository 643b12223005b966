import pytest
import torch

from mpunet.models import MPUNet
from mpunet.training.widen import widened

NARROW = {"widths": (2, 3, 4, 3, 2, 3), "stem_width": 3, "head_width": 2}
WIDE = {"widths": (3, 5, 6, 3, 4, 4), "stem_width": 4, "head_width": 5}


def make(seed: int, **options) -> MPUNet:
    torch.manual_seed(seed)
    net = MPUNet(**options).eval()
    for parameter in net.parameters():  # biases and last layers too, which start at zero
        torch.nn.init.normal_(parameter, std=0.2)
    return net


@pytest.mark.parametrize("norm", ["none", "instance"])
@pytest.mark.parametrize("wide", [WIDE, {**NARROW, "head_width": 3}, NARROW])
def test_a_wider_network_computes_the_same(wide: dict, norm: str) -> None:
    narrow, net = make(0, **NARROW, norm=norm), make(1, **wide, norm=norm)
    thick = torch.rand(1, 1, 8, 64, 64)
    with torch.no_grad():
        before = net(thick).image
        net.load_state_dict(widened(narrow.state_dict(), net))
        after, expected = net(thick), narrow(thick)
    for one, other in zip(after, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.allclose(before, expected.image, atol=1e-2)


def test_new_channels_are_not_dead() -> None:
    """Every weight that lets old channels read new ones gets a gradient, so it can leave zero."""
    narrow, net = make(0, **NARROW), make(1, **WIDE)
    tensors = widened(narrow.state_dict(), net)
    net.load_state_dict(tensors)
    net(torch.rand(1, 1, 8, 64, 64)).image.square().mean().backward()
    zero = {name: tensor == 0 for name, tensor in tensors.items()}
    assert sum(mask.any().item() for mask in zero.values()) > 20
    for name, parameter in net.named_parameters():
        assert parameter.grad[zero[name]].ne(0).float().mean() > 0.9 or not zero[name].any(), name


def test_what_cannot_grow_is_left_out() -> None:
    narrow, net = make(0, **NARROW).state_dict(), make(1, **WIDE, ratio=3)
    left = set(net.state_dict()) - set(widened(narrow, net))
    assert left
    assert all(".deconv." in name for name in left)
    assert "head.branches.inner.0.0.weight" not in widened(
        make(0, **{**NARROW, "head_width": 6}).state_dict(), net
    )
