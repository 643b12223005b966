"""Guarantees of `mpunet predict` on archives: broken files, killed processes, full disks.

The command runs in separate processes, as users run it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from processes import Command, command, die_at, die_between

import mpunet
from mpunet.inference.manifest import read_manifest

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="uses signals, permissions and mounts of Linux"
)

AFFINE = np.diag([-0.8, -0.8, 5.0, 1.0])


def chest(seed: int, shape: tuple[int, int, int] = (32, 32, 4)) -> np.ndarray:
    """Noise around -300 HU, with air."""
    return np.random.default_rng(seed).normal(-300, 250, shape).clip(-1000, 1000).astype(np.int16)


def save(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE, **header: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(voxels, affine)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


def command_words(checkpoint: Path, scans: Path, output: Path, *extra: str) -> list[str]:
    folders = ["--data.predict_dir", str(scans), "--writer.output_dir", str(output)]
    quiet = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    return ["predict", "--ckpt_path", str(checkpoint), *folders, *quiet, *extra]


def voxels(folder: Path) -> dict[str, np.ndarray]:
    """Every visible volume of a folder, read to its end."""
    paths = [path for path in sorted(folder.rglob("*.nii*")) if not path.name.startswith(".")]
    return {
        path.relative_to(folder).as_posix(): np.asarray(nib.load(path).dataobj) for path in paths
    }


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


def break_scans(folder: Path) -> dict[str, str]:
    """Forty broken files of twenty kinds; each one's name and what its reason must say."""
    reasons: dict[str, str] = {}

    def add(name: str, reason: str) -> Path:
        path = folder / f"sub{len(reasons) % 3}" / name
        reasons[path.relative_to(folder).as_posix()] = reason
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def patch(path: Path, offset: int, data: bytes) -> None:
        raw = bytearray(path.read_bytes())
        raw[offset : offset + len(data)] = data
        path.write_bytes(raw)

    for i in range(2):
        good = chest(1000 + i)
        for suffix in (".nii", ".nii.gz"):
            path = save(add(f"cut{i}{suffix}", "cut short"), good)
            path.write_bytes(path.read_bytes()[: -200 - i])
        patch(save(add(f"magic{i}.nii", "not a NIfTI file"), good), 344, b"zip\0")
        add(f"zero{i}.nii.gz", "not a NIfTI file").write_bytes(b"")
        add(f"text{i}.nii.gz", "not a NIfTI file").write_text("no scan")
        path = save(add(f"bit{i}.nii.gz", "damaged or cut short"), good)
        patch(
            path,
            path.stat().st_size // 2,
            bytes([path.read_bytes()[path.stat().st_size // 2] ^ 16]),
        )
        patch(
            save(add(f"lie{i}.nii", "damaged or cut short"), good),
            42,
            np.array([30000, 30000, 30000], "<i2").tobytes(),
        )
        save(add(f"2d{i}.nii.gz", "got 2D"), good[..., 0])
        save(add(f"4d{i}.nii.gz", "got 4D"), np.stack([good, good], -1))
        save(add(f"single{i}.nii.gz", "at least 2 slices"), good[..., :1])
        save(add(f"empty{i}.nii", "empty volume"), good[:, :0])
        save(
            add(f"nan{i}.nii.gz", "NaN or infinite voxels"),
            np.where(good > 200, np.nan, good).astype(np.float32),
        )
        save(add(f"unit{i}.nii.gz", "not HU"), ((good + 1024) / 4095).astype(np.float32))
        save(add(f"raw{i}.nii.gz", "not HU"), (good + 1024).astype(np.uint16))
        save(add(f"complex{i}.nii.gz", "one real number per voxel"), good.astype(np.complex64))
        patch(save(add(f"singular{i}.nii", "singular"), good), 280, bytes(16))
        add(f"folder{i}.nii.gz", "folder").mkdir()
        add(f"link{i}.nii.gz", "no such file").symlink_to(folder / "gone")
        save(add(f"locked{i}.nii.gz", "ermission denied"), good).chmod(0)
        os.mkfifo(add(f"pipe{i}.nii.gz", "folder or device"))
    return reasons


def test_two_hundred_scans_of_which_forty_are_broken(untrained: Path, tmp_path: Path) -> None:
    scans, output = tmp_path / "scans", tmp_path / "thin"
    for i in range(160):
        save(
            scans / f"case{i // 50}" / f"{i}.nii{'.gz' if i % 4 else ''}",
            chest(i, (24 + i % 9, 32, 2 + i % 11)),
        )
    reasons = break_scans(scans)
    assert len(reasons) == 40
    words = [sys.executable, "-m", "mpunet", *command_words(untrained, scans, output)]
    words += ["--inference.stride", "fast"]
    if os.geteuid() == 0:
        # For root nothing is unreadable, unless it gives that power away.
        if shutil.which("setpriv") is None:
            pytest.skip("as root, needs setpriv to have a file that cannot be read")
        powers = "-dac_override,-dac_read_search"
        words = ["setpriv", "--bounding-set", powers, "--inh-caps", "-all", *words]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    out = done.stdout
    assert "160 volumes written" in out
    assert "40 failed" in out

    records = [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]
    assert len(records) == len({record["file"] for record in records}) == 200
    failed = {
        record["file"]: record["reason"] for record in records if record["status"] == "failed"
    }
    assert failed.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in failed[name], (name, failed[name])
        assert "\n" not in failed[name]

    outputs = voxels(output)
    assert len(outputs) == 160
    assert hidden(output) == []
    reconstruct = mpunet.Reconstructor.from_checkpoint(untrained, device="cpu", stride="fast")
    for i in range(0, 160, 7):
        name = f"case{i // 50}/{i}.nii{'.gz' if i % 4 else ''}"
        expected = np.asarray(reconstruct(nib.load(scans / name)).dataobj)
        # Another process may round a value that ends in .5 the other way.
        np.testing.assert_allclose(outputs[name], expected, rtol=0, atol=1)
        assert (outputs[name] != expected).mean() < 1e-3
    for name, thin in outputs.items():
        assert thin.shape[2] == (nib.load(scans / name).shape[2] - 1) * 5 + 1


def test_a_terminated_run_leaves_nothing_half_written(untrained: Path, tmp_path: Path) -> None:
    scans, output = tmp_path / "scans", tmp_path / "thin"
    for i in range(30):
        save(scans / f"{i:02d}.nii.gz", chest(i, (128, 128, 40)))
    process = start_and_wait_for_a_partial_file(command_words(untrained, scans, output), output)
    process.process.terminate()
    assert process.wait(60).status == 143
    assert hidden(output) == []
    assert len(voxels(output)) < 30


@pytest.mark.slow
def test_killed_at_every_step(untrained: Path, tmp_path: Path) -> None:
    """Runs are killed between operations on files, each between others, until one gets through."""
    scans, output, undisturbed = tmp_path / "scans", tmp_path / "thin", tmp_path / "undisturbed"
    for i in range(8):
        save(scans / f"{i}.nii{'.gz' if i % 2 else ''}", chest(i, (32, 32, 8)))
    words = [*command_words(untrained, scans, output), "--inference.stride", "fast"]
    command(*command_words(untrained, scans, undisturbed), "--inference.stride", "fast")
    expected = {path.name: path.read_bytes() for path in undisturbed.glob("*.nii*")}
    assert len(expected) == 8

    def results() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in output.glob("[0-9]*")}

    amid = 40_000  # bytes of the first result
    assert Command(words, before=partial(die_at, amid)).wait().status == -signal.SIGXFSZ
    (left,) = output.iterdir()
    assert left.name.startswith(".0.")
    assert left.stat().st_size == amid
    log = tmp_path / "log"
    for _ in range(30):
        ended = Command(words, before=partial(die_between, output, log)).wait()
        found = results()
        assert found == {name: expected[name] for name in found}  # whole at any time
        if ended.status == 0:
            break
        assert ended.status == -signal.SIGKILL, ended
    moments = {tuple(line.split(", ")) for line in log.read_text().splitlines()}
    assert moments >= {
        ("flock temporary", "remove temporary"),  # of an earlier run
        ("open temporary x", "flock temporary"),
        ("flock temporary", "rename temporary"),
        ("rename temporary", "remove temporary"),
        ("remove temporary", "open manifest.jsonl a"),
        ("open manifest.jsonl a", "open temporary x"),
    }
    assert results() == expected
    assert hidden(output) == []
    assert read_manifest(output).keys() == expected.keys()


def start_and_wait_for_a_partial_file(words: list[str], output: Path) -> Command:
    before = set(output.rglob(".*.partial.*"))
    process = Command(words)
    deadline = time.monotonic() + 120
    while not set(output.rglob(".*.partial.*")) - before:
        assert process.process.is_alive(), "the run ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return process


def test_full_disk(untrained: Path, tmp_path: Path) -> None:
    scans, disk, undisturbed = tmp_path / "scans", tmp_path / "disk", tmp_path / "undisturbed"
    for i in range(6):
        save(scans / f"{i}.nii.gz", chest(i, (40, 40, 10)))
    command(*command_words(untrained, scans, undisturbed))
    expected = voxels(undisturbed)
    one = max(path.stat().st_size for path in undisturbed.glob("*.nii.gz"))
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={int(3.5 * one)}", "tmpfs", str(disk)]
    if (
        shutil.which("mount") is None
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("needs the right to mount a tmpfs")
    try:
        out = command(*command_words(untrained, scans, disk), status=3)
        assert "3 volumes written" in out
        assert "3.nii.gz: cannot write" in out
        assert (
            "No space left on device; free space and start again, finished volumes are skipped"
            in out
        )
        assert out.count("not tried: the disk of") == 2
        assert hidden(disk) == []
        outputs = voxels(disk)
        assert sorted(outputs) == ["0.nii.gz", "1.nii.gz", "2.nii.gz"]
        subprocess.run(["mount", "-o", f"remount,size={20 * one}", str(disk)], check=True)
        assert "3 of 6 volumes are already in" in command(*command_words(untrained, scans, disk))
        outputs = voxels(disk)
        assert outputs.keys() == expected.keys()
        for name, thin in outputs.items():
            np.testing.assert_array_equal(thin, expected[name])
        states = {
            r["file"]: r["status"]
            for r in map(json.loads, (disk / "manifest.jsonl").read_text().splitlines())
        }
        assert states == dict.fromkeys(expected, "written")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_little_memory_is_answered_with_tiles(untrained: Path, tmp_path: Path) -> None:
    """The lowest sufficient limit: whole planes do not fit, tiles do, results are nearly equal."""
    scans = tmp_path / "scans"
    save(scans / "a.nii.gz", chest(0, (512, 512, 9)))
    command(*command_words(untrained, scans, tmp_path / "plenty"))
    words = command_words(
        untrained,
        scans,
        tmp_path / "little",
        "--inference.batch_size",
        "2",
        "--inference.limit_memory",
    )
    refused = Command([*words, "0.1"]).wait()
    assert refused.status == 2
    # What the libraries take differs from machine to machine.
    limit = float(refused.err.split("at least ")[1].split()[0])
    while True:
        done = Command([*words, f"{limit:.2f}"]).wait()
        if done.status == 0:
            break
        # Not even the libraries fit, as memory is not the same in each process; or the network.
        assert (done.status == 2 and "at least" in done.err) or "ot enough memory" in done.out
        limit += 0.05
        assert limit < 4
    assert "continuing with 1 in a batch" in done.err
    assert "continuing with tiles of 256 × 256" in done.err
    *_, record = map(json.loads, (tmp_path / "little" / "manifest.jsonl").read_text().splitlines())
    assert record["tile"] is not None
    little, plenty = (
        voxels(tmp_path / name)["a.nii.gz"].astype(int) for name in ("little", "plenty")
    )
    assert np.abs(little - plenty).mean() < 5
