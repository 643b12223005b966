"""The manifest: whole lines, whatever happens; one file in the end; the last word counts."""

import json

import pytest

from mpunet.inference import manifest as manifest_module
from mpunet.inference.manifest import Manifest, read_manifest


def record(file, **fields):
    base = dict.fromkeys(["reason", "shape", "spacing", "seconds", "checkpoint", "stride", "tile"])
    return {
        "file": file,
        "status": "written",
        **base,
        "version": "1",
        "time": "2026-01-01T00:00:00+00:00",
        **fields,
    }


def test_lines_and_the_last_of_a_file(tmp_path):
    manifest = Manifest(tmp_path)
    manifest.add(record("a.nii", status="failed", reason="broken"))
    manifest.add(record("sub/b.nii"))
    manifest.add(record("a.nii", shape=[4, 5, 6]))
    lines = (tmp_path / "manifest.jsonl").read_text().splitlines()
    assert [json.loads(line)["file"] for line in lines] == ["a.nii", "sub/b.nii", "a.nii"]
    assert read_manifest(tmp_path) == {
        "a.nii": record("a.nii", shape=[4, 5, 6]),
        "sub/b.nii": record("sub/b.nii"),
    }


def test_no_manifest(tmp_path):
    assert read_manifest(tmp_path) == {}


def test_half_a_line_of_a_killed_process(tmp_path):
    Manifest(tmp_path).add(record("a.nii"))
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(path.read_bytes() + b'{"file": "b.n')
    Manifest(tmp_path).add(record("c.nii"))
    assert list(read_manifest(tmp_path)) == ["a.nii", "c.nii"]
    assert path.read_bytes().count(b"\n") == 3


def test_ranks_are_merged(tmp_path):
    for rank in (0, 1, 2):
        Manifest(tmp_path, rank).add(record(f"{rank}.nii"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".manifest.rank1.jsonl",
        ".manifest.rank2.jsonl",
        "manifest.jsonl",
    ]
    Manifest(tmp_path).merge()
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.jsonl"]
    assert list(read_manifest(tmp_path)) == ["0.nii", "1.nii", "2.nii"]


def test_a_line_that_cannot_be_written_waits(tmp_path, monkeypatch):
    manifest = Manifest(tmp_path)
    manifest.add(record("a.nii"))

    def full(path, lines):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(manifest_module, "_append", full)
        manifest.add(record("b.nii"))
        assert not manifest.flush()
    assert list(read_manifest(tmp_path)) == ["a.nii"]
    assert manifest.flush()
    assert list(read_manifest(tmp_path)) == ["a.nii", "b.nii"]


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs RLIMIT_FSIZE")
def test_nothing_stays_of_a_line_that_does_not_fit(tmp_path):
    """A limit on file size ends a write in its middle, as a full disk does."""
    import resource
    import subprocess
    import sys

    path = tmp_path / "manifest.jsonl"
    path.write_bytes(b"x" * 99 + b"\n")
    code = f"""if True:
        import resource, signal
        from pathlib import Path
        from mpunet.inference.manifest import Manifest
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (110, resource.RLIM_INFINITY))
        manifest = Manifest(Path({str(tmp_path)!r}))
        manifest.add({record("a.nii")!r})
        print(manifest.flush())
    """
    assert resource.RLIMIT_FSIZE is not None
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert out.strip() == "False"
    assert path.read_bytes() == b"x" * 99 + b"\n"
