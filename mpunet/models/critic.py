"""Critic of "MPU-Net + W-GAN": scores how realistic a stack of thin slices looks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mpunet.config import Configurable
from mpunet.models.blocks import ConvLayer

__all__ = ["Critic"]


class Critic(Configurable, nn.Module):
    """3D convolutional critic: strided convolutions, mean over all positions, one linear layer.

    The paper says only that a Wasserstein GAN was added to MPU-Net and that it does not help
    (Table 1: RMSE 42.31 HU with it, 38.79 HU without). From WGAN-GP (Gulrajani et al., 2017,
    section 4): no batch normalisation, because the gradient penalty is computed for each sample
    separately.

    Our choices: 3 x 3 x 3 convolutions of stride 2 with leaky ReLU, their number and widths; the
    mean over positions, so that crops of any size fit; and a linear layer without bias, because a
    constant cancels in differences of scores.

    Args:
        widths: channels of each convolution; each convolution halves depth, height and width,
            rounded up.

    Raises:
        ValueError: if ``widths`` is empty or contains a value below 1.

    >>> import torch
    >>> Critic(widths=(4, 8))(torch.rand(2, 1, 36, 33, 40)).shape
    torch.Size([2])
    """

    def __init__(self, *, widths: Sequence[int] = (16, 32, 64, 128)) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise ValueError(f"Expected at least one width, each at least 1, got {list(widths)}.")
        channels = (1, *widths)
        self.features = nn.Sequential(
            *(
                ConvLayer(before, after, stride=(2, 2, 2))
                for before, after in zip(channels, widths, strict=False)
            )
        )
        self.head = nn.Linear(widths[-1], 1, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        """Score thin slices; a higher score means more realistic.

        Args:
            image: (B, 1, N, h, w), intensity in [0, 1] or near it.

        Returns:
            Scores (B,).

        Raises:
            ValueError: if the image has another shape.
        """
        if image.ndim != 5 or image.shape[1] != 1:
            raise ValueError(f"Expected thin slices (B, 1, N, h, w), got {tuple(image.shape)}.")
        scores: Tensor = self.head(self.features(image).mean(dim=(2, 3, 4)))
        return scores[:, 0]
