"""Networks from the user's own clones of their repositories: none of their code is in this one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn

from mpunet.models import ThickToThin, ThickToThinOutput
from mpunet.models.interpolation import DepthInterpolation


class Peer(ThickToThin):
    """A network of others on our grid: thick slice k is thin slice r * k.

    A subclass defines ``thin``, which maps (B, 1, n, H, W) to (B, 1, N, H, W).

    Args:
        n_thick: number of thick input slices, n.
        ratio: thick spacing / thin spacing, r.
        residual: predict the difference from the cubic interpolation, as all networks of our tables
            do (our choice), instead of the image as published.
    """

    def __init__(self, n_thick: int, ratio: int, *, residual: bool) -> None:
        super().__init__()
        self.n_thick, self.ratio, self.residual = n_thick, ratio, residual
        self.interpolate = DepthInterpolation(n_thick, ratio, "cubic")

    def start_near_interpolation(self, last: nn.Module) -> None:
        """Shrink the last layer, so that training starts close to the interpolation."""
        if self.residual:
            nn.init.normal_(last.weight, std=1e-3)
            nn.init.zeros_(last.bias)

    def forward(self, thick: Tensor) -> ThickToThinOutput:
        self.check_input(thick)
        image = self.thin(thick).float()
        return ThickToThinOutput(self.interpolate(thick) + image if self.residual else image)


class WholeWindows(Peer):
    """A network of the authors of TVSRN, which drops slices at both ends of a window.

    They come from the neighbouring windows in the published code. Here all are used. The networks
    are made for one window at a time, and keep positions outside their state.
    """

    def adopt(self, net: nn.Module) -> None:
        """Take over the network, before ``thin`` is called."""
        self.net = net
        positions = net.__dict__.pop("positions_z")
        net.register_buffer("positions_z", positions, persistent=False)
        self.whole: list[Tensor] = []  # all slices, before the network drops some
        net.conv_last.register_forward_hook(lambda *found: self.whole.append(found[2]))
        self.start_near_interpolation(net.conv_last)

    def thin(self, thick: Tensor) -> Tensor:
        opt = self.net.forward.__globals__["opt"]
        opt.c_y, opt.c_x = thick.shape[3:]
        for window in thick.split(1):
            self.net(window)
        found = torch.cat(self.whole)
        self.whole.clear()
        return found


@contextmanager
def clone(folder: str, url: str) -> Iterator[Path]:
    """Make the modules of a clone importable, and hide those of other clones.

    Several of the repositories have modules named ``config``, ``net``, ``models`` or ``utils``.

    Args:
        folder: folder in $MPUNET_PEERS whose modules are imported.
        url: where the repository is.

    Raises:
        FileNotFoundError: if there is no clone.
    """
    root = Path(os.environ.get("MPUNET_PEERS", "peers")).expanduser().absolute() / folder
    if not root.is_dir():
        raise FileNotFoundError(
            f"needs a clone of {url} at {root.parents[len(Path(folder).parts) - 1]}; "
            "the variable MPUNET_PEERS names the folder of the clones"
        )
    own = {path.stem for path in root.iterdir()}

    def pop_own() -> dict:
        return {name: sys.modules.pop(name) for name in [*sys.modules] if name.split(".")[0] in own}

    hidden = pop_own()
    sys.path.insert(0, str(root))
    try:
        yield root
    finally:
        sys.path.remove(str(root))
        pop_own()
        sys.modules.update(hidden)


def without_cuda() -> patch:
    """Leave tensors where they are while code that calls ``.cuda()`` builds a network.

    The network can then be moved to any device.
    """
    return patch.object(torch.Tensor, "cuda", lambda tensor, *_, **__: tensor)
