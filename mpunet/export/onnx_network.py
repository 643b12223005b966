"""Networks in ONNX files, run by ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["OnnxNetwork", "require"]

CPU = ("CPUExecutionProvider",)


class OnnxNetwork:
    """Network of an ONNX file, as a function of windows for :class:`mpunet.Reconstructor`.

    Args:
        path: file of ``mpunet export``.
        providers: execution providers of ONNX Runtime, in order of preference.

    Attributes:
        n_thick: number of thick input slices, n.
        ratio: thick spacing / thin spacing, r.
        multiple: H and W must be multiples of this.
        size: the only in-plane size in pixels that the file accepts; None if any multiple is
            accepted.
        record: record of the training, see :class:`mpunet.weights.Record`.
        metadata: all metadata of the file, as text.

    Raises:
        ValueError: if onnxruntime is not installed, or the file does not exist, is damaged or was
            not written by mpunet.
    """

    def __init__(self, path: str | Path, *, providers: Sequence[str] = CPU) -> None:
        onnxruntime = require("onnxruntime")
        if not Path(path).is_file():
            raise ValueError(f"No ONNX file at {path}.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=list(providers))
        except Exception as error:  # errors of ONNX Runtime have no common base class
            raise ValueError(
                f"{path} cannot be loaded by ONNX Runtime ({str(error).strip()})."
            ) from error
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        try:
            self.n_thick, self.ratio, self.multiple = (
                int(self.metadata[name]) for name in ("n_thick", "ratio", "multiple")
            )
            self.record: dict[str, Any] = json.loads(self.metadata["record"])
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{path} does not describe its windows (n_thick, ratio, multiple and record in its "
                "metadata): it was not written by `mpunet export`. Call it in a function of your "
                "own and pass that to mpunet.Reconstructor."
            ) from error
        batch, _, _, height, _ = self._session.get_inputs()[0].shape
        self.size: int | None = height if isinstance(height, int) else None
        self._batch: int | None = batch if isinstance(batch, int) else None

    def __call__(self, thick: Tensor) -> Tensor:
        """Map windows (B, 1, n, H, W), intensity in [0, 1], to thin slices (B, 1, N, H, W).

        Raises:
            MemoryError: if ONNX Runtime is out of memory.
        """
        # A file of fixed size has a batch of 1.
        parts = torch.split(thick, self._batch or len(thick))
        return torch.cat([self._run(part) for part in parts]).to(thick.device)

    def _run(self, thick: Tensor) -> Tensor:
        name = self._session.get_inputs()[0].name
        try:
            (thin,) = self._session.run(None, {name: thick.contiguous().cpu().numpy()})
        except Exception as error:  # errors of ONNX Runtime have no common base class
            if "allocate memory" in str(error):
                raise MemoryError(str(error)) from error
            raise
        return torch.from_numpy(thin)


def require(name: str) -> Any:
    """Import a module of the extra ``mpunet[onnx]``.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError(
            f"ONNX files need {name}, which is not installed: pip install 'mpunet[onnx]'."
        ) from error
