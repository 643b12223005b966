"""A wider network that starts as the function of a narrower one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mpunet.models.backbone import ProgressiveUp
from mpunet.models.mpunet import MPUNet

__all__ = ["widened"]


def widened(narrow: Mapping[str, Tensor], net: MPUNet) -> dict[str, Tensor]:
    """Put the weights of a narrower network into a wider one, which then computes the same.

    The channels of the narrower network come first. New channels have the values of ``net``, such
    as random ones, and the weights by which old channels would read them are zero. So training
    starts from the narrower network's result and can use the new channels from the first step (our
    choice, after Chen et al. 2016, "Net2Net").

    Args:
        narrow: ``state_dict`` of an MPU-Net with at most as many channels in every layer.
        net: network with the progressive decoder and without normalisation.

    Returns:
        The tensors of ``net`` that ``narrow`` has values for. Those that are wider in ``narrow``,
        or have another kernel (as for another ratio), are left out.
    """
    wide = net.state_dict()
    # The second deconvolution of a decoder stage reads the shortcut's channels, then the others.
    shortcuts = {
        f"{name}.up.deconv.weight": f"{name}.shortcut.deconv.weight"
        for name, module in net.named_modules()
        if isinstance(module, ProgressiveUp)
    }
    transposed = {
        f"{name}.weight"
        for name, module in net.named_modules()
        if isinstance(module, nn.ConvTranspose3d)
    }
    tensors = {}
    for name, old in narrow.items():
        new = wide.get(name, torch.empty(0)).clone()
        if (
            new.ndim != old.ndim
            or new.shape[2:] != old.shape[2:]
            or any(a > b for a, b in zip(old.shape, new.shape, strict=True))
        ):
            continue
        if old.ndim < 2:
            new[tuple(map(slice, old.shape))] = old
        else:
            # Views of (C_out, C_in, ...).
            source, target = (x.transpose(0, 1) if name in transposed else x for x in (old, new))
            columns = torch.arange(source.shape[1])
            if shortcut := shortcuts.get(name):
                columns[len(narrow[shortcut]) :] += len(wide[shortcut]) - len(narrow[shortcut])
            target[: len(source)] = 0
            target[: len(source), columns] = source.to(target.dtype)
        tensors[name] = new
    return tensors
