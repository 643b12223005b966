"""CTHNet (Yu et al., npj Digital Medicine 2024), Apache-2.0.

From github.com/smilenaxx/CTHNet-for-CT-Slice-Thickness-Reduction, where the class is named
TVSRN3d_v1.

Grid: 8 thick slices to 36 thin ones, thick k at thin 5k. The published network returns thin slices
3 to 32 of the 36 and the others come from the neighbouring windows; here all 36 are used.

Sizes: ratio 5; H and W multiples of 8. The published code is made for planes of 256 x 256 and for
one window at a time. At this size its shifted attention windows have no mask, at others they would
have one; here they have none at any size.

Needs the packages timm and einops.
"""

from __future__ import annotations

from peers.clone import WholeWindows, clone, without_cuda

NAME = "CTHNet-for-CT-Slice-Thickness-Reduction"


class AnySize(tuple):
    """Size for which the network was made, equal to any size that it gets."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


class CTHNet(WholeWindows):
    multiple = 8  # windows of 8 x 8 voxels, patches of 8 voxels

    def __init__(self, *, residual: bool = True) -> None:
        super().__init__(8, 5, residual=residual)
        with clone(f"{NAME}/code", f"github.com/smilenaxx/{NAME}") as root, without_cuda():
            from config import opt
            from net import model_TransSR

            opt.load_config(root.parent / "config" / "all.txt")
            opt.c_z, opt.ratio, opt.c_y, opt.c_x = self.n_thick, self.ratio, 64, 64
            net = model_TransSR.TVSRN3d_v1()
        for module in net.modules():
            if hasattr(module, "attn_mask"):
                module.input_resolution = AnySize(module.input_resolution)
        self.adopt(net)
