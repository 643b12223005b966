"""The command ``mpunet view``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from mpunet.report.view import view

__all__ = ["run"]


def run(args: Sequence[str]) -> int:
    """Run :func:`mpunet.report.view.view` with command line arguments."""
    parser = ArgumentParser(prog="mpunet view", description=view.__doc__)
    parser.add_argument(
        "volumes", nargs="+", type=Path, help="NIfTI files, in the order in which they are shown"
    )
    parser.add_function_arguments(view, skip={"volumes"})
    options = vars(parser.parse_args(list(args)))
    view(options.pop("volumes"), **options)
    print(f"{options['output']}: open it in a browser.")
    return 0
