"""TVSRN (Yu et al., MICCAI 2022): github.com/smilenaxx/RPLHR-CT, Apache-2.0.

Grid: 4 thick slices to 16 thin ones, thick k at thin 5k. The published network returns thin slices
3 to 12 of the 16 and the others come from the neighbouring windows; here all 16 are used.

Sizes: ratio 5; H and W multiples of 8. The published code is made for planes of 256 x 256 and for
one window at a time. Its token for missing slices, which has this size, is not trained there
because ``.cuda()`` makes a copy of it: it is zero, here of any size.

Needs the packages timm and einops.
"""

from __future__ import annotations

from peers.clone import WholeWindows, clone, without_cuda
from torch import Tensor


class TVSRN(WholeWindows):
    multiple = 8  # windows of 8 x 8 voxels, patches of 8 voxels

    def __init__(self, *, residual: bool = True) -> None:
        super().__init__(4, 5, residual=residual)
        with clone("RPLHR-CT/code", "github.com/smilenaxx/RPLHR-CT") as root, without_cuda():
            from config import opt
            from net import model_TransSR

            opt.load_config(root.parent / "config" / "default.txt")
            opt.c_z, opt.ratio, opt.c_y, opt.c_x = self.n_thick, self.ratio, 64, 64
            net = model_TransSR.TVSRN()
        del net.x_patch_mask
        self.adopt(net)

    def thin(self, thick: Tensor) -> Tensor:
        missing = self.n_thin - self.n_thick
        self.net.x_patch_mask = thick.new_zeros(missing, self.net.c, *thick.shape[3:])
        return super().thin(thick)
