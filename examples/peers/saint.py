"""SAINT (Peng et al., CVPR 2020): github.com/cpeng93/SAINT, without a licence.

Grid: n thick slices to n * r thin ones, thick k at thin r * k; the r - 1 slices after the last thick
one are dropped. One network interpolates sagittal and coronal slices, another joins both in axial
slices.

Sizes: any plane, any ratio and number of thick slices. The published test code is made for planes of
512 x 512 and for one slice at a time; here the same layers run on several. The network gets the
spacing in mm, which windows do not carry: it is an argument.

Our choices: both networks train together, on the loss of the second; intensities are [0, 1] instead
of 0 to 4000, so that published weights do not fit; results are not rounded.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from types import ModuleType

import torch
import torch.nn.functional as F
from peers.clone import Peer, clone
from torch import Tensor

SLICES = 32  # sagittal or coronal slices at a time, which limits the memory


class SAINT(Peer):
    """SAINT.

    Args:
        n_thick: number of thick input slices.
        ratio: thick spacing / thin spacing.
        spacing: thin slice spacing and in-plane spacing in mm.
        residual: see :class:`peers.clone.Peer`.
    """

    def __init__(
        self,
        n_thick: int = 8,
        ratio: int = 5,
        *,
        spacing: tuple[float, float] = (1.0, 0.7),
        residual: bool = True,
    ) -> None:
        super().__init__(n_thick, ratio, residual=residual)
        sys.modules.setdefault("scipy.misc", ModuleType("scipy.misc"))  # imported but not used
        with clone("SAINT", "github.com/cpeng93/SAINT"):
            from model import meta_multi

            options = Namespace(G0=64, RDNkSize=3, RDNconfig="C", scale=[ratio], stage=2)
            self.net = meta_multi.MSR_RDN(options)
        self.register_buffer("distances", distances(ratio, *spacing), persistent=False)
        # The second network adds its output to the mean of what the first predicts.
        for last in (self.net.GW.meta_block[-1], self.net.RFN.UPNet[-1]):
            self.start_near_interpolation(last)

    def thin(self, thick: Tensor) -> Tensor:
        volume = thick[:, 0].permute(0, 2, 3, 1)  # (B, H, W, n)
        sagittal = self.along_rows(volume)
        coronal = self.along_rows(volume.transpose(1, 2)).transpose(1, 2)
        both = torch.stack([sagittal, coronal], 1).permute(0, 4, 1, 2, 3)  # (B, N, 2, H, W)
        return self.net.RFN(both.flatten(0, 1)).unflatten(0, both.shape[:2]).transpose(1, 2)

    def along_rows(self, volume: Tensor) -> Tensor:
        """Interpolate each plane of (B, rows, columns, n), seen with its two neighbours."""
        shape = volume.shape
        padded = F.pad(volume, (0, 0, 0, 0, 1, 1))
        triples = torch.stack([padded[:, i : i + shape[1]] for i in range(3)], 2).flatten(0, 1)
        fine = torch.cat(
            [
                self.net(part, self.distances.expand(len(part), -1, -1, -1))
                for part in triples.split(SLICES)
            ]
        )  # (B * rows, r, columns, n)
        order = fine.permute(0, 2, 3, 1).flatten(2)[..., : self.n_thin]
        return order.unflatten(0, shape[:2])


def distances(ratio: int, thin_mm: float, in_plane_mm: float) -> Tensor:
    """Return the distances in mm of each thin slice from the 3 x 3 thick voxels around it.

    Returns:
        (1, r, 3, 3), the neighbouring thick slices from the next to the last one before.
    """
    thin = torch.arange(ratio)[:, None, None] + ratio * torch.tensor([1, 0, -1])[None, :, None]
    across = torch.tensor([-1, 0, 1])[None, None, :]
    return torch.hypot(thin * thin_mm, across * in_plane_mm)[None]
