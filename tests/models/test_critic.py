"""The critic: its value by hand, any size, and each sample for itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mpunet.config import from_config, to_config
from mpunet.models import Critic


def test_value_of_a_critic_with_known_weights() -> None:
    critic = Critic(widths=(1,))
    conv, head = critic.features[0][0], critic.head
    nn.init.zeros_(conv.weight)
    conv.weight.data[0, 0, 1, 1, 1] = 2.0  # takes every second voxel, twice
    conv.bias.data[:] = -0.5
    head.weight.data[:] = 3.0
    image = torch.arange(16.0).view(2, 1, 2, 2, 2) / 8
    # The single position of each sample is its voxel (0, 0, 0): 2 * 0 - 0.5 = -0.5, times 0.1
    # because it is negative; and 2 * 1 - 0.5.
    torch.testing.assert_close(critic(image), torch.tensor([3 * -0.05, 3 * 1.5]))


def test_score_is_a_mean_over_positions() -> None:
    """The score of a constant image depends on its size only by the padded border.

    Without weights off the centre it is exactly the same.
    """
    critic = Critic(widths=(2, 3))
    for layer in critic.features:
        centre = layer[0].weight.data[:, :, 1, 1, 1].clone()
        nn.init.zeros_(layer[0].weight)
        layer[0].weight.data[:, :, 1, 1, 1] = centre
    scores = [
        critic(torch.full((1, 1, *size), 0.7)) for size in ((1, 1, 1), (36, 33, 40), (7, 5, 3))
    ]
    torch.testing.assert_close(scores[1], scores[0])
    torch.testing.assert_close(scores[2], scores[0])


@pytest.mark.parametrize("size", [(36, 33, 41), (3, 5, 2), (1, 1, 1)])
def test_any_size_gives_a_gradient_in_every_parameter(size: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    critic = Critic(widths=(4, 6, 8))
    scores = critic(torch.rand(3, 1, *size))
    assert scores.shape == (3,)
    scores.square().sum().backward()
    for name, parameter in critic.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_samples_do_not_see_each_other() -> None:
    critic, images = Critic(), torch.rand(3, 1, 6, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(critic(images)[1], images)
    assert gradient[1].abs().sum() > 0
    assert gradient[[0, 2]].abs().sum() == 0


def test_plain_values_rebuild_it() -> None:
    critic = Critic(widths=(2, 4))
    config = to_config(critic)
    assert config == {"class_path": "mpunet.models.Critic", "init_args": {"widths": [2, 4]}}
    assert from_config(config).load_state_dict(critic.state_dict()) == ([], [])
    assert list(critic.state_dict()) == [
        "features.0.0.weight",
        "features.0.0.bias",
        "features.1.0.weight",
        "features.1.0.bias",
        "head.weight",
    ]


def test_refused() -> None:
    with pytest.raises(ValueError, match=r"at least one width, each at least 1, got \[\]"):
        Critic(widths=())
    with pytest.raises(ValueError, match=r"each at least 1, got \[4, 0\]"):
        Critic(widths=(4, 0))
    with pytest.raises(ValueError, match=r"\(B, 1, N, h, w\), got \(2, 3, 8, 8, 8\)"):
        Critic()(torch.zeros(2, 3, 8, 8, 8))
