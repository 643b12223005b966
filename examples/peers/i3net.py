"""I3Net (Song et al., IEEE TMI 2024): github.com/eeeric-code/I3Net, without a licence.

Grid: 4 thick slices to 16 thin ones, thick k at thin 5k. The published network copies the thick
slices into its output: it was made for thin slices of which some are missing. With ``residual`` it
predicts all 16.

Sizes: planes of exactly 256 x 256, because a layer has a fixed number of 64 = 256 / 4 channels. A
row must therefore set ``data.crop`` and ``inference.tile`` to 256. Any ratio.

Needs the package einops.
"""

from __future__ import annotations

import json
from argparse import Namespace

from peers.clone import Peer, clone
from torch import Tensor

SIZE = 256


class I3Net(Peer):
    multiple = SIZE

    def __init__(self, ratio: int = 5, *, residual: bool = True) -> None:
        super().__init__(4, ratio, residual=residual)
        with clone("I3Net", "github.com/eeeric-code/I3Net") as root:
            from model_zoo.i3net import basic_model

            options = json.loads((root / "opt" / "i3net.json").read_text())
            options |= {"upscale": ratio, "lr_slice_patch": 4, "hr_slice_patch": self.n_thin}
            self.net = basic_model.I3Net(Namespace(**options))
        for module in self.net.modules():
            # The network makes these matrices at the first call. Made in inference mode, in a
            # validation, they could not be used in training.
            if hasattr(module, "check_dct_matrix"):
                module.check_dct_matrix(SIZE, SIZE)
        self.predicted: list[Tensor] = []  # before the thick slices are copied into it, in place
        self.net.tail.register_forward_hook(lambda *found: self.predicted.append(found[2].clone()))
        self.start_near_interpolation(self.net.tail[-1])

    def thin(self, thick: Tensor) -> Tensor:
        if thick.shape[3:] != (SIZE, SIZE):
            raise ValueError(
                f"Expected planes of {SIZE} x {SIZE}, got {tuple(thick.shape[3:])}: set data.crop "
                f"to [{SIZE}, {SIZE}] and inference.tile to {SIZE}."
            )
        copied = self.net(thick[:, 0].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        predicted = self.predicted.pop()
        return (predicted if self.residual else copied)[:, None]
