"""The Dockerfile, without Docker: its steps in a chroot of Debian, which python:slim is made from."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import pytest

from mpunet.phantom.chest import phantom_image

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "").splitlines()
STEPS = [line.split(maxsplit=1) for line in LINES if line and not line.startswith("#")]
IGNORED = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
CONTEXT = [line[1:] for line in IGNORED if line.startswith("!")]


def last(name):
    return [rest for step, rest in STEPS if step == name][-1]


def test_what_the_image_promises():
    assert json.loads(last("ENTRYPOINT")) == ["mpunet"]
    assert last("USER").split(":")[0] not in ("root", "0")
    assert {step for step, _ in STEPS} <= {
        *("FROM", "ARG", "ENV", "RUN", "COPY", "USER", "WORKDIR", "ENTRYPOINT", "CMD")
    }
    assert not any("://" in line for line in LINES), "an index is a build argument"


def test_the_build_sees_the_package_and_nothing_else():
    assert CONTEXT == ["pyproject.toml", "README.md", "LICENSE", "mpunet"]
    assert all((ROOT / name).exists() for name in CONTEXT)
    assert IGNORED.index("*") < IGNORED.index("!mpunet") < IGNORED.index("**/__pycache__")


def isolated(script, **variables):
    """Run a script of shell commands with mounts of its own."""
    subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-euc", script],
        check=True,
        env={**os.environ, **variables},
    )


@pytest.mark.slow
@pytest.mark.skipif(
    not sys.platform.startswith("linux")
    or os.geteuid() != 0
    or not (shutil.which("debootstrap") or "MPUNET_CHROOT" in os.environ),
    reason="needs Linux, root and debootstrap",
)
def test_steps_and_a_run_in_a_chroot(tmp_path):
    """Takes the time to download Debian and torch. MPUNET_CHROOT is a folder that has Debian."""
    root = Path(os.environ.get("MPUNET_CHROOT", tmp_path / "root"))
    if not root.exists():
        subprocess.run(
            ["debootstrap", "--variant=minbase", "--include=python3-venv,ca-certificates",
             "bookworm", root],
            check=True,
        )  # fmt: skip
    build(root)
    scans, thin = tmp_path / "scans", tmp_path / "thin"
    for folder in (scans, thin):
        folder.mkdir()
    nib.save(phantom_image(0, shape=(9, 32, 40), spacing=(5, 8, 8)), scans / "a.nii.gz")
    thin.chmod(0o777)  # in a container, the user is given a folder of their own
    mounts = f"""
        mount --bind {root} {root}
        mkdir -p {root}/in {root}/out
        mount --bind {scans} {root}/in
        mount -o remount,bind,ro {root}/in
        mount --bind {thin} {root}/out
        mount -t tmpfs tmpfs {root}/tmp
        mount -t proc proc {root}/proc
        mount --rbind /dev {root}/dev
        mount -o remount,bind,ro {root}
        """
    environment = shlex.split(last("ENV").replace("$PATH", "/usr/local/bin:/usr/bin:/bin"))
    words = [*json.loads(last("ENTRYPOINT")), "predict", "/in", "/out", "--fast"]
    inside = f"! touch /opt/x 2>/tmp/x && ! touch /in/x 2>/tmp/x && cd {last('WORKDIR')} && "
    command = ["chroot", f"--userspec={last('USER')}", str(root), "env", "-i", *environment]
    command += ["sh", "-c", inside + shlex.join(words)]
    isolated(f"{mounts}\nexec unshare --net {shlex.join(command)}")
    (line,) = (thin / "manifest.jsonl").read_text().splitlines()
    assert json.loads(line)["status"] == "written"
    image = nib.load(thin / "a.nii.gz")
    assert image.shape == (40, 32, 41)
    assert image.header.get_zooms()[2] == pytest.approx(1)
    assert (thin / "a.nii.gz").stat().st_uid == int(last("USER").split(":")[0])


def build(root):
    """Run the steps of the first stage as root with network, as `docker build` does."""
    (root / "usr/bin/python").unlink(missing_ok=True)
    (root / "usr/bin/python").symlink_to("python3")
    # What pip needs on this machine.
    for path in ("/etc/resolv.conf", "/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt"):
        if Path(path).exists():
            shutil.copyfile(path, root / path[1:])
    wheels = os.environ.get("PIP_FIND_LINKS", "")
    shutil.rmtree(root / "src", ignore_errors=True)
    variables = {"TORCH": os.environ.get("MPUNET_TORCH", "torch"), "TORCH_INDEX": ""}
    for step, rest in STEPS[: [step for step, _ in STEPS].index("FROM", 2)]:
        if step == "ENV":
            variables |= dict(pair.split("=") for pair in shlex.split(rest))
        elif step == "COPY":
            assert rest == ". /src"
            (root / "src").mkdir()
            for name in CONTEXT:
                copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
                copy(ROOT / name, root / "src" / name)
        elif step == "RUN":
            folder = f"mkdir -p {root}{wheels}; mount --bind {wheels} {root}{wheels}"
            isolated(
                f"{folder if wheels.startswith('/') else ''}\n"
                f"mount -t proc proc {root}/proc; mount --rbind /dev {root}/dev\n"
                f"exec chroot {root} sh -euc {shlex.quote(rest)}",
                **variables,
            )
