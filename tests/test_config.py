"""Modules as plain values: arguments are recovered, also after copies, and rebuild the module."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from mpunet.config import Configurable, from_config, to_config
from mpunet.models import MPUNet


class Scale(Configurable, nn.Module):
    def __init__(self, factor=2.0, sizes=(1, 2), *, name="a"):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(float(factor)))
        self.sizes = sizes
        self.name = name


class Doubled(Scale):
    """A subclass of its own signature: its arguments count, not those that it hands on."""

    def __init__(self, half=1.0):
        super().__init__(2 * half, (3,), name="doubled")


def test_literal():
    path = f"{__name__}.Scale"
    assert to_config(Scale()) == {
        "class_path": path,
        "init_args": {"factor": 2.0, "sizes": [1, 2], "name": "a"},
    }
    assert to_config(Scale(5, name="b"))["init_args"] == {"factor": 5, "sizes": [1, 2], "name": "b"}
    assert to_config(Doubled(4.0)) == {
        "class_path": f"{__name__}.Doubled",
        "init_args": {"half": 4.0},
    }


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_copies_keep_their_arguments(copied):
    out = copied(Scale(5.0, (7,), name="b"))
    assert to_config(out)["init_args"] == {"factor": 5.0, "sizes": [7], "name": "b"}
    assert out.factor == 5.0


def test_round_trip_gives_the_same_network():
    net = MPUNet(4, 3, widths=(2, 3, 4), norm="group", residual="linear", streams=("mask", "inner"))
    config = to_config(net)
    assert config["class_path"] == "mpunet.MPUNet"
    assert config["init_args"]["widths"] == [2, 3, 4]
    assert config["init_args"]["layers"] == 2  # a default: it must survive if the default changes
    again = from_config(config)
    assert to_config(again) == config
    again.load_state_dict(net.state_dict())
    thick = torch.rand(1, 1, 4, 8, 8)
    torch.testing.assert_close(again(thick).image, net(thick).image, rtol=0, atol=0)


def test_configs_survive_safe_loading():
    config = to_config(MPUNet(widths=(2, 2, 2), streams=("inner",)))
    buffer = io.BytesIO()
    torch.save(config, buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True) == config


def test_a_config_without_arguments_means_the_defaults():
    assert from_config({"class_path": f"{__name__}.Scale"}).sizes == (1, 2)
    assert isinstance(
        from_config({"class_path": "torch.nn.Identity", "init_args": None}), nn.Identity
    )


def test_wrong_arguments_are_python_errors():
    with pytest.raises(TypeError, match="widht"):
        MPUNet(widht=(2, 2))


def test_refused():
    with pytest.raises(
        ValueError, match=r"Linear does not record its arguments.*mpunet.config.Configurable"
    ):
        to_config(nn.Linear(1, 1))
    for path in ("mpunet.models.Missing", "no.such.module.Net", "Net", "", None):
        with pytest.raises(ValueError, match="Cannot import the class"):
            from_config({"class_path": path})
    with pytest.raises(
        ValueError, match=r"Expected the class path of a torch.nn.Module, got 'os.getcwd'"
    ):
        from_config({"class_path": "os.getcwd"})
