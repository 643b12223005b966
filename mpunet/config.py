"""Modules written down as plain values, so that a checkpoint can rebuild them and ``torch.load(weights_only=True)`` can read it."""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from typing import Any

from torch import nn
from typing_extensions import Self

__all__ = ["Configurable", "from_config", "public_path", "to_config"]


class Configurable:
    """Mixin for modules that are built from plain values: remembers the constructor's arguments for :func:`to_config`."""

    init_args: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Note the arguments, defaults included; copies and unpickled objects come without any and keep their original's."""
        self = super().__new__(cls)
        bound = inspect.signature(cls.__init__).bind_partial(self, *args, **kwargs)
        bound.apply_defaults()
        values = list(bound.arguments.items())[1:]
        object.__setattr__(
            self, "init_args", {k: list(v) if isinstance(v, tuple) else v for k, v in values}
        )
        return self


def to_config(module: nn.Module) -> dict[str, Any]:
    """``{"class_path": ..., "init_args": {...}}`` of a :class:`Configurable` module, as jsonargparse writes it in YAML."""
    cls = type(module)
    if not isinstance(module, Configurable):
        raise ValueError(
            f"{cls.__name__} does not remember its arguments, so a checkpoint could not rebuild it. "
            "Derive it from mpunet.config.Configurable beside torch.nn.Module."
        )
    return {"class_path": public_path(cls), "init_args": dict(module.init_args)}


def public_path(cls: type) -> str:
    """The shortest path that a class can be imported by: ``mpunet.MPUNet``, not the file that it is in today.

    >>> public_path(nn.Conv3d)
    'torch.nn.Conv3d'
    """
    parts = cls.__module__.split(".")
    for end in range(1, len(parts)):
        package = sys.modules.get(".".join(parts[:end]))
        if getattr(package, cls.__qualname__, None) is cls:
            return ".".join((*parts[:end], cls.__qualname__))
    return f"{cls.__module__}.{cls.__qualname__}"


def from_config(config: dict[str, Any]) -> nn.Module:
    """The module that a ``{"class_path": ..., "init_args": {...}}`` describes."""
    module_name, _, class_name = str(config.get("class_path")).rpartition(".")
    try:
        cls = getattr(import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"Cannot import the class {config.get('class_path')!r}: {error}"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ValueError(
            f"Expected the class path of a torch.nn.Module, got {config['class_path']!r}."
        )
    module: nn.Module = cls(**(config.get("init_args") or {}))
    return module
