"""Install a wheel in an empty environment and reconstruct a phantom there (part of `make build`).

What a user gets from `pip install`: the command line, the packaged network, and only the
dependencies that the wheel names.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

PHANTOM = """
import nibabel, pathlib, sys, mpunet
from mpunet.phantom import phantom_image
print("installed:", mpunet.__version__, mpunet.__file__)
if not pathlib.Path(mpunet.__file__).is_relative_to(sys.prefix):
    sys.exit(f"this is not the mpunet of {sys.prefix}")
pathlib.Path("truth").mkdir()
phantom = phantom_image(0, shape=(41, 32, 40), spacing=(1, 8, 8))
nibabel.save(phantom, "truth/phantom.nii.gz")
"""
READ = """
import nibabel
thin, truth = (nibabel.load(f"{folder}/phantom.nii.gz") for folder in ("thin", "truth"))
error = abs(thin.get_fdata() - truth.get_fdata()).mean()
print(f"{thin.shape} at {thin.header.get_zooms()[2]:g} mm, mean absolute error {error:.0f} HU")
assert thin.shape == truth.shape
assert error < 100
"""


def main(words: Sequence[str] | None = None) -> int:
    """Check the wheel; the exit status is that of the first command that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dist", type=Path, help="folder with one wheel")
    parser.add_argument("--constraint", type=Path, help="versions of the dependencies, for pip")
    parser.add_argument("--version", help="the version that is expected")
    arguments = parser.parse_args(words)
    wheels = sorted(arguments.dist.glob("*.whl"))
    if len(wheels) != 1:
        parser.error(f"expected one wheel in {arguments.dist}, found {len(wheels)}; remove others")
    if arguments.version and f"-{arguments.version}-" not in wheels[0].name:
        parser.error(f"expected version {arguments.version}, got {wheels[0].name}")
    with tempfile.TemporaryDirectory() as folder:
        bin_folder = Path(folder, "venv", "Scripts" if sys.platform == "win32" else "bin")
        venv.create(bin_folder.parent, with_pip=True)
        python, mpunet = str(bin_folder / "python"), str(bin_folder / "mpunet")
        versions = ["--constraint", arguments.constraint] if arguments.constraint else []
        install = [python, "-m", "pip", "install", "--quiet", *versions, wheels[0]]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        subprocess.run(list(map(str, install)), check=True, env=environment)
        for command in (
            [python, "-c", PHANTOM],
            [mpunet, "--help"],
            [mpunet, "info", "packaged"],
            [mpunet, "simulate", "truth", "thick", "--ratio", "5"],
            [mpunet, "predict", "thick", "thin", "--fast", "--device", "cpu"],
            [python, "-c", READ],
        ):
            print("$", *(word if "\n" not in word else "..." for word in command), flush=True)
            subprocess.run(command, check=True, cwd=folder, env=environment)
    return 0


if __name__ == "__main__":
    sys.exit(main())
