"""Networks with their weights on disk: weights files, and folders as on the Hugging Face Hub.

A weights file contains the class and arguments of the network in its table of text. A folder has
the layout of huggingface_hub's ``PyTorchModelHubMixin``: ``model.safetensors`` has the tensors, and
``config.json`` the arguments of the class. Ours also has the class, the SHA-256 of the tensors and
the record of the training, which the mixin ignores.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from typing_extensions import Self

from mpunet import __version__
from mpunet.config import Configurable, from_config, public_path
from mpunet.memory import channels_last

__all__ = [
    "CONFIG",
    "FORMAT",
    "PACKAGED",
    "TENSORS",
    "Pretrained",
    "Stored",
    "load_tensors",
    "packaged",
    "read_stored",
    "tensors_sha256",
]

FORMAT = "mpunet-weights-1"
CONFIG, TENSORS = "config.json", "model.safetensors"
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")  # owner/name

PACKAGED = Path(__file__).with_name("packaged") / "mpunet_r5.safetensors"
"""Default weights file, also named "packaged": the network of ratio 5 that is part of mpunet."""


class Stored(NamedTuple):
    """A network on disk.

    Attributes:
        source: file that contains the tensors.
        net: class and arguments, ``{"class_path": ..., "init_args": {...}}``; without
            ``class_path`` if a folder was not written by mpunet.
        tensors: ``state_dict`` of the network.
        record: record of the training.
    """

    source: Path
    net: dict[str, Any]
    tensors: dict[str, Tensor]
    record: dict[str, Any]


class Pretrained(Configurable):
    """Mixin of networks that can be saved to a folder and loaded from it, or from the Hub."""

    def save_pretrained(
        self, folder: str | Path, *, record: Mapping[str, Any] | None = None
    ) -> None:
        """Write ``config.json`` and ``model.safetensors``, in the layout of the Hugging Face Hub.

        Both are complete before they replace existing files. Other files of the folder stay.

        Args:
            folder: folder to write to; created if it is missing.
            record: record of the training, see :class:`mpunet.weights.Record`.
        """
        if not isinstance(self, nn.Module):
            raise TypeError(f"Expected a torch.nn.Module, got {type(self).__name__}.")
        # safetensors cannot write tensors in the memory layout channels_last.
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        config = {
            **self.init_args,
            "class_path": public_path(type(self)),
            "mpunet_version": __version__,
            "sha256": tensors_sha256(tensors),
            "record": dict(record or {}),
        }
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".", suffix=".partial") as partial:
            Path(partial, CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
            Path(partial, TENSORS).write_bytes(save(tensors, metadata={"format": "pt"}))
            for name in (TENSORS, CONFIG):
                os.replace(Path(partial, name), Path(folder, name))

    @classmethod
    def from_pretrained(cls, source: str | Path, *, revision: str | None = None) -> Self:
        """Load a network with its weights, in float32, on the CPU and in evaluation mode.

        Args:
            source: folder of :meth:`save_pretrained`, weights file of ``mpunet export``, name of
                weights that come with mpunet, such as "packaged", or "owner/name" of a repository
                on the Hugging Face Hub (requires the extra ``mpunet[hub]``).
            revision: branch, tag or commit of the repository on the Hub. Default: its main branch.

        Raises:
            ValueError: if there is no network of this class at ``source``, or it is damaged.

        >>> import mpunet
        >>> mpunet.MPUNet.from_pretrained("packaged_r3").ratio
        3
        """
        stored = read_stored(_locate(str(source), revision))
        try:
            network: Any = from_config({"class_path": public_path(cls), **stored.net})
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        load_tensors(network, stored.tensors, stored.source)
        if not isinstance(network, cls):
            raise ValueError(
                f"Expected the weights of {cls.__name__} in {source}, got those of "
                f"{stored.net['class_path']}; use from_pretrained of that class."
            )
        return network


def load_tensors(network: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> nn.Module:
    """Load a ``state_dict`` into a network and set it to evaluation mode.

    Raises:
        ValueError: if the tensors of ``source`` do not fit.
    """
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(
            f"The weights in {source} do not fit the network described there: {error}"
        ) from error
    return channels_last(network.eval())


def packaged() -> dict[str, Path]:
    """Return names and files of the weights that are part of mpunet.

    The names are "packaged" for the default, "packaged_r3" and "packaged_r5" for the ratios, and
    "packaged_r5_wide" for slice profiles wider than the thick spacing.
    """
    files = sorted(PACKAGED.parent.glob("mpunet_r*.safetensors"))
    return {
        "packaged": PACKAGED,
        **{file.stem.replace("mpunet", "packaged"): file for file in files},
    }


def read_stored(path: Path) -> Stored:
    """Read a weights file or a folder with ``config.json`` and ``model.safetensors``.

    Raises:
        ValueError: if there is none, it is damaged, or it has another format.
    """
    path = path / TENSORS if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"No weights at {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            table: Mapping[str, Any] = file.metadata() or {}
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read as safetensors ({error}): it is damaged or has another format."
        ) from error
    config = path.with_name(CONFIG)
    try:
        if table.get("format") == FORMAT:
            net, record = json.loads(table["net"]), json.loads(table["record"])
        elif path.name == TENSORS and config.is_file():
            table = dict(json.loads(config.read_text(encoding="utf-8")))
            net, record = _net_and_record(table)
        else:
            raise ValueError(
                f"{path} is no weights file of mpunet: expected the format {FORMAT!r}, got "
                f"{table.get('format')!r}. `mpunet export CHECKPOINT FILE.safetensors` creates one."
            )
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged: its description cannot be read ({error}).") from error
    found = tensors_sha256(tensors)
    # A folder that was not written by mpunet has no SHA-256.
    if found != table.get("sha256", None if table.get("format") == FORMAT else found):
        raise ValueError(
            f"{path} is damaged: its weights have the SHA-256 {found}, but it was written with "
            f"{table.get('sha256')}."
        )
    return Stored(path, net, tensors, record)


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes of tensors, ordered by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def _net_and_record(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide ``config.json`` into the network and the record of its training."""
    ours = ("class_path", "mpunet_version", "sha256", "record")
    net: dict[str, Any] = {"init_args": {k: v for k, v in config.items() if k not in ours}}
    if "class_path" in config:
        net["class_path"] = config["class_path"]
    return net, dict(config.get("record") or {})


def _locate(source: str, revision: str | None) -> Path:
    """Return the file or folder of a network; download it if it is the name of a repository."""
    path = packaged().get(source, Path(source))
    if path.exists():
        return path
    if not REPOSITORY.fullmatch(source):
        raise ValueError(
            f"No weights at {source}: expected a folder with {CONFIG} and {TENSORS}, a weights "
            f"file, one of {', '.join(packaged())}, or owner/name of a repository on the Hugging "
            "Face Hub."
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ValueError(
            f"There is no file or folder {source}. If it is a repository on the Hugging Face Hub, "
            "install huggingface_hub: pip install 'mpunet[hub]'."
        ) from error
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=[CONFIG, TENSORS]))
    except OSError as error:  # errors of HTTP, too
        raise ValueError(
            f"{source} is no local file or folder, and cannot be downloaded from the Hugging Face "
            f"Hub: {str(error).splitlines()[0] if str(error) else type(error).__name__}."
        ) from error
