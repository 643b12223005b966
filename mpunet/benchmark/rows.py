"""Rows of a benchmark: each a YAML file that says what is special about one method, on top of a base that all share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

__all__ = ["Row", "find_rows"]


class Row(NamedTuple):
    """A method.

    Attributes:
        name: the file's name without order number and suffix: ``03_vnet.yaml`` is ``vnet``.
        config: the file; with the base, a configuration of ``mpunet fit``.
    """

    name: str
    config: Path

    def section(self, *keys: str) -> Any:
        """A section of the file, such as ``("model", "net")``; None where it has none."""
        value: Any = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    @property
    def needs_imagenet(self) -> bool:
        """Whether its objective matches features of VGG-16."""
        return bool(self.section("model", "objective", "init_args", "feature"))


def find_rows(paths: list[Path]) -> list[Row]:
    """The rows of YAML files, or of all YAML files of a folder in the order of their names, but for its ``base.yaml``."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(file for file in path.glob("*.yaml") if file.name != "base.yaml")
        elif path.is_file():
            files.append(path)
        else:
            raise ValueError(f"Expected a YAML file or a folder of them, found nothing at {path}.")
    rows = [Row(re.sub(r"^\d+[_-]", "", file.stem), file) for file in files]
    if not rows:
        raise ValueError(f"Expected rows (*.yaml) in {', '.join(map(str, paths))}, found none.")
    names = [row.name for row in rows]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(
            f"Expected a name of its own for each row, got {', '.join(sorted(twice))} twice."
        )
    return rows
