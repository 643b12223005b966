"""Rows of a benchmark: one YAML file per method, applied on top of a base that all rows share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

__all__ = ["Row", "find_rows"]


class Row(NamedTuple):
    """A method of a benchmark.

    Attributes:
        name: file name without order number and suffix: ``03_vnet.yaml`` is ``vnet``.
        config: the YAML file; together with the base, a configuration of ``mpunet fit``. Or, for an
            external program, a file with ``command`` and, if it is not 5, ``ratio`` alone.
    """

    name: str
    config: Path

    def section(self, *keys: str) -> Any:
        """Read a section of the file, such as ``("model", "net")``; None if it is missing."""
        value: Any = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    @property
    def command(self) -> str | None:
        """Command line of an external program; None if the row is a network.

        Raises:
            ValueError: if the file has other sections than ``command`` and ``ratio``.
        """
        sections = self.section() or {}
        if "command" not in sections:
            return None
        if set(sections) - {"command", "ratio"} or not isinstance(sections["command"], str):
            raise ValueError(
                f"Expected a row with a command line and perhaps a ratio, nothing else, got "
                f"{', '.join(sections)} in {self.config}."
            )
        return sections["command"]

    @property
    def needs_imagenet(self) -> bool:
        """Whether the objective includes feature matching, which needs VGG-16."""
        return bool(self.section("model", "objective", "init_args", "feature"))


def find_rows(paths: list[Path]) -> list[Row]:
    """Find the rows in a list of YAML files and folders.

    A folder stands for all its YAML files except ``base.yaml``, sorted by name.

    Raises:
        ValueError: if a path does not exist, no row is found, or two rows have the same name.
    """
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
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise ValueError(
            f"Expected a different name for each row, got {', '.join(sorted(repeated))} twice."
        )
    return rows
