"""ACVTT (Uhm et al., IEEE TMI 2025): github.com/khuhm/ACVTT, Apache-2.0.

Grid: any number of thick slices and any ratio, thick k at thin r * k. The input is interpolated
first; then a network corrects each coronal and each sagittal slice with the textures of some axial
slices, and the mean of both is taken. The published second stage, another network that joins both
instead of the mean, is not used here.

Sizes: H and W multiples of 8; the thin depth is padded. The network takes one slice at a time, here
``torch.vmap`` runs it on several, which encodes the axial slices once for all of them. These are
three of the window, in the published test three of the whole volume.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from peers.clone import Peer, clone
from torch import Tensor

SLICES = 16  # coronal or sagittal slices at a time, which limits the memory
REFERENCES = 3


class Options(SimpleNamespace):
    """Options of the network; those that are not named here are off, as in scripts/train.py."""

    def __getattr__(self, name: str) -> bool:
        if name.startswith("__"):
            raise AttributeError(name)
        return False


class ACVTT(Peer):
    """ACVTT.

    Args:
        n_thick: number of thick input slices, at least 4.
        ratio: thick spacing / thin spacing.
        residual: see :class:`peers.clone.Peer`. Without it, the network adds its output to the
            linear interpolation, as published.
        channels: channels of the first level; published are 64.
    """

    multiple = 8

    def __init__(
        self, n_thick: int = 8, ratio: int = 5, *, residual: bool = True, channels: int = 64
    ) -> None:
        super().__init__(n_thick, ratio, residual=residual)
        with clone("ACVTT", "github.com/khuhm/ACVTT"):
            from models.ACVTT import ACVTT as Network  # noqa: N811

            self.net = Network(
                Options(
                    num_level=4,
                    num_channel=channels,
                    num_block=2,
                    kernel_size=3,
                    long_skip=not residual,
                    transfer_level=[0, 1, 2, 3],
                    block_size_per_level=[8, 4, 2, 1],
                    win_block_size_per_level=[2, 2, 2, 2],
                    shared_ref_enc=True,
                    do_norm=True,
                    norm_type_for_attn="sep_layernorm",
                    layernorm_affine=True,
                    layernorm_bias=True,
                    do_proj_qkv=True,
                    kernel_size_proj_in=1,
                    do_proj_after_attn=True,
                    kernel_size_proj_out=1,
                    apply_attention=True,
                    attn_softmax=True,
                    alpha_transf=1.0,
                )
            )
        self.start_near_interpolation(self.net.last_conv)

    def thin(self, thick: Tensor) -> Tensor:
        size = (self.n_thin, *thick.shape[3:])
        fine = F.interpolate(thick, size, mode="trilinear", align_corners=True)
        # Not reflected as published, which needs more slices than it adds.
        fine = F.pad(fine, (0, 0, 0, 0, 0, -self.n_thin % 8), mode="replicate")
        step = self.n_thick // (REFERENCES + 1)
        chosen = thick[:, 0, step : step * REFERENCES + 1 : step, None]  # (B, 3, 1, H, W)
        both = []
        for volume, references in zip(fine[:, 0], chosen, strict=True):
            planes = [
                self.planes(volume.movedim(axis, 0), references).movedim(0, axis) for axis in (1, 2)
            ]
            both.append((planes[0] + planes[1]) / 2)
        return torch.stack(both)[:, None, : self.n_thin]

    def planes(self, slices: Tensor, references: Tensor) -> Tensor:
        """Correct slices (S, N, width) with reference slices (3, 1, H, W)."""

        def one(plane: Tensor) -> Tensor:
            return self.net(plane[None, None], references, pre_upsampled=True)["out"][0, 0]

        return torch.vmap(one, chunk_size=SLICES)(slices)
