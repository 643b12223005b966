"""Configurations of modules as plain values.

A checkpoint that stores them can rebuild its modules, and ``torch.load(weights_only=True)`` can
read it.
"""

from __future__ import annotations

import difflib
import inspect
import sys
from importlib import import_module
from typing import Any

from torch import nn
from typing_extensions import Self

__all__ = ["Configurable", "from_config", "import_class", "public_path", "same_class", "to_config"]


class Configurable:
    """Mixin for modules built from plain values.

    Attributes:
        init_args: arguments of the constructor, including defaults, for :func:`to_config`.
    """

    init_args: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Record the arguments, including defaults.

        Copies and unpickled objects are created without arguments; they keep ``init_args`` of their
        original.
        """
        self = super().__new__(cls)
        bound = inspect.signature(cls.__init__).bind_partial(self, *args, **kwargs)
        bound.apply_defaults()
        values = list(bound.arguments.items())[1:]
        object.__setattr__(
            self, "init_args", {k: list(v) if isinstance(v, tuple) else v for k, v in values}
        )
        return self


def to_config(module: nn.Module) -> dict[str, Any]:
    """Return the configuration of a :class:`Configurable` module.

    Returns:
        ``{"class_path": ..., "init_args": {...}}``, the format of jsonargparse in YAML files.

    Raises:
        ValueError: if the module is not :class:`Configurable`.
    """
    cls = type(module)
    if not isinstance(module, Configurable):
        raise ValueError(
            f"{cls.__name__} does not record its arguments, so a checkpoint could not rebuild it. "
            "Derive it from mpunet.config.Configurable in addition to torch.nn.Module."
        )
    return {"class_path": public_path(cls), "init_args": dict(module.init_args)}


def public_path(cls: type) -> str:
    """Return the shortest import path of a class, for example ``mpunet.MPUNet``.

    It stays valid if the class moves to another file of the package.

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
    """Build the module of a configuration ``{"class_path": ..., "init_args": {...}}``.

    Raises:
        ValueError: if the class cannot be imported or is not a ``torch.nn.Module``, or the
            arguments are not those of the class.
    """
    if "class_path" not in config:
        given = ", ".join(f"{name} = {value!r}" for name, value in config.items())
        raise ValueError(
            f"Expected class_path and init_args of a module, got {given}: one of these is no "
            "argument of the class, or its value has another type."
        )
    cls = import_class(config["class_path"])
    arguments = config.get("init_args") or {}
    signature = inspect.signature(cls.__init__)
    try:
        signature.bind(None, **arguments)
    except TypeError as error:
        known = list(signature.parameters)[1:]
        unknown = next((name for name in arguments if name not in known), "")
        near = difflib.get_close_matches(unknown, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; its arguments: {', '.join(known)}."
        raise ValueError(f"The init_args do not fit {cls.__name__}: {error}{hint}") from error
    module: nn.Module = cls(**arguments)
    return module


def import_class(path: str) -> type[nn.Module]:
    """Import a class by its path, for example ``mpunet.MPUNet``.

    Raises:
        ValueError: if it cannot be imported or is not a ``torch.nn.Module``.
    """
    module_name, _, class_name = str(path).rpartition(".")
    try:
        cls = getattr(import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"Cannot import the class {path!r}: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ValueError(f"Expected the class path of a torch.nn.Module, got {path!r}.")
    return cls


def same_class(one: str | None, other: str | None) -> bool:
    """Return whether two paths, such as mpunet.MPUNet and mpunet.models.MPUNet, name one class."""
    try:
        return import_class(str(one)) is import_class(str(other))
    except ValueError:
        return one == other
