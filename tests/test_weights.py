"""Weights files and checkpoints: what goes in comes out, and nothing else is taken."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import mpunet
from mpunet.__main__ import main
from mpunet.cli.info import describe
from mpunet.config import to_config
from mpunet.weights import Weights, load_network, read_weights, write_weights

RECORD = {
    "steps": 7,
    "training": {
        "number": 2,
        "cases": ["a", "b"],
        "pairs": 0,
        "turned": 0,
        "ratio": 5,
        "thin_spacing": [1.0, 1.25],
        "thick_spacing": [5.0, 6.25],
        "profile": ["gaussian"],
        "fwhm": [0.8, 1.0],
    },
    "consistency": {"low": 2.0, "high": 4.0, "cases": 3, "profile": "gaussian", "fwhm": 0.9},
    "notes": {"title": "A test's network", "licences": ["a: CC BY 3.0", "b: CC0"]},
}


@pytest.fixture
def weights() -> Weights:
    torch.manual_seed(0)
    net = mpunet.MPUNet(widths=(2, 2, 2, 2, 2, 2))
    return Weights(Path("memory"), to_config(net), net.state_dict(), RECORD)  # type: ignore[arg-type]


@pytest.fixture
def file(weights: Weights, tmp_path: Path) -> Path:
    write_weights(tmp_path / "net.safetensors", weights)
    return tmp_path / "net.safetensors"


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 0), (torch.float16, 1e-3)])
def test_what_is_written_is_read(
    weights: Weights, tmp_path: Path, dtype: torch.dtype, tolerance: float
) -> None:
    path = tmp_path / "deeper" / "net.safetensors"
    write_weights(path, weights, dtype=dtype)
    back = read_weights(path)
    assert back.net == weights.net
    assert back.record == {**RECORD, "version": mpunet.__version__}
    assert {tensor.dtype for tensor in back.tensors.values()} == {dtype}
    assert [p.name for p in path.parent.iterdir()] == ["net.safetensors"]
    thick = torch.rand(1, 1, 8, 32, 32)
    with torch.no_grad():
        expected, image = weights.network()(thick).image, back.network()(thick).image
    torch.testing.assert_close(image, expected, atol=tolerance, rtol=0)


def test_the_hash_is_that_of_the_tensors_alone(weights: Weights, file: Path) -> None:
    back = read_weights(file)
    assert back.sha256 == Weights(file, {}, dict(reversed(back.tensors.items())), {}).sha256
    name = next(iter(back.tensors))
    assert (
        Weights(file, {}, {**back.tensors, name: back.tensors[name] + 1}, {}).sha256 != back.sha256
    )
    assert weights.sha256 != back.sha256  # float32 is another type


def test_a_changed_weight_is_noticed(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged: its weights have the SHA-256"):
        read_weights(file)


@pytest.mark.parametrize(
    "content", [b"model:\n  net: 3\n", b"mm,weight\n0,1\n", b"\x8a\x05abc", b"\x80\x02G123", b"e"]
)
def test_files_of_other_kinds_are_no_checkpoints(tmp_path: Path, content: bytes) -> None:
    """Whatever torch raises for them, IndexError and struct.error among others."""
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.ckpt cannot be read as a checkpoint of tensors"):
        read_weights(tmp_path / "x.ckpt")


def test_files_of_others_are_refused(file: Path, tmp_path: Path) -> None:
    save_file(load_file(file), tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="no weights file of mpunet"):
        read_weights(tmp_path / "foreign.safetensors")
    (tmp_path / "text.safetensors").write_text("nothing of the kind")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        read_weights(tmp_path / "text.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        read_weights(tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match="No weights at"):
        read_weights(tmp_path / "nowhere.safetensors")


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("evil-was-here"),)  # type: ignore[return-value]


def test_a_pickle_that_wants_more_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "hyper_parameters": {"net": Evil()}}, tmp_path / "evil.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(
        pickle.dumps(Evil(), protocol=2)
    )  # the protocol of torch.save
    for name in ("evil.ckpt", "plain.ckpt"):
        with pytest.raises(ValueError, match="refused, as loading them could run any code"):
            load_network(tmp_path / name)
    assert not (tmp_path / "evil-was-here").exists()


def test_weights_that_do_not_fit_are_told(weights: Weights) -> None:
    wider = {**weights.net, "init_args": {**weights.net["init_args"], "widths": [4] * 6}}
    with pytest.raises(ValueError, match="do not fit the network"):
        Weights(Path("x"), wider, weights.tensors, {}).network()


def test_nothing_is_written_of_weights_that_float16_cannot_hold(
    weights: Weights, tmp_path: Path
) -> None:
    name = next(iter(weights.tensors))
    big = Weights(
        Path("x"), weights.net, {**weights.tensors, name: weights.tensors[name] + 1e6}, {}
    )
    with pytest.raises(ValueError, match="not finite in float16"):
        write_weights(tmp_path / "net.safetensors", big)
    with pytest.raises(ValueError, match=r"ending in \.safetensors"):
        write_weights(tmp_path / "net.ckpt", weights)
    assert not list(tmp_path.iterdir())


def test_info_tells_what_matters(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(file)]) == 0
    told = capsys.readouterr().out
    for part in (
        "A test's network",
        "ratio 5",
        "5 to 6.25 mm apart, to 1 to 1.25 mm",
        "a, b",
        "CC BY 3.0",
        "0.8 to 1 spacings",
    ):
        assert part in told
    assert main(["info", str(file), "--json"]) == 0
    known = json.loads(capsys.readouterr().out)
    assert known["record"]["training"] == RECORD["training"]
    assert known["sha256"] == read_weights(file).sha256


def test_a_reader_that_has_had_enough_is_no_error(file: Path) -> None:
    command = f"set -o pipefail; {sys.executable} -m mpunet info {file} --json | true"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stderr == ""


def test_info_of_weights_without_a_record(weights: Weights, tmp_path: Path) -> None:
    write_weights(tmp_path / "x.safetensors", Weights(Path("x"), weights.net, weights.tensors, {}))
    assert any(
        "not recorded" in line for line in describe(read_weights(tmp_path / "x.safetensors"))
    )


def test_export_of_a_checkpoint_with_notes(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.yaml").write_text("title: Other\nlimits: [no contrast, no children]\n")
    words = [
        "export",
        str(file),
        str(tmp_path / "out.safetensors"),
        "--notes",
        str(tmp_path / "notes.yaml"),
        "--dtype",
        "float32",
    ]
    assert main(words) == 0
    assert "no children" in capsys.readouterr().out
    back = read_weights(tmp_path / "out.safetensors")
    assert back.record["notes"] == {"title": "Other", "limits": ["no contrast", "no children"]}
    assert back.record["steps"] == 7
    (tmp_path / "notes.yaml").write_text("just text")
    assert main(words) == 2
    assert "Expected names and texts" in capsys.readouterr().err


def test_export_changes_what_has_no_weights(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"
    assert (
        main(["export", str(file), str(out), "--net.consistency", "0.8", "--dtype", "float32"]) == 0
    )
    before, after = read_weights(file), read_weights(out)
    assert after.net["init_args"] == {**before.net["init_args"], "consistency": 0.8}
    assert after.network().consistency is not None  # type: ignore[union-attr]
    assert main(["export", str(file), str(out), "--net.widths", "[4,4,4,4,4,4]"]) == 2
    assert "do not fit" in capsys.readouterr().err
    assert main(["export", str(file), str(out), "--net.colour", "red"]) == 2
    assert "unexpected keyword argument 'colour'" in capsys.readouterr().err
    assert read_weights(out).net == after.net


def test_export_of_a_mean(
    file: Path, weights: Weights, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.safetensors"
    tripled = {name: 3 * tensor for name, tensor in weights.tensors.items()}
    write_weights(other, replace(weights, tensors=tripled))
    words = ["export", str(file), str(tmp_path / "mean.safetensors"), "--dtype", "float32"]
    assert main([*words, "--mean_with", f"[{file}, {other}, {other}]"]) == 0
    back = read_weights(tmp_path / "mean.safetensors")
    for name, tensor in read_weights(file).tensors.items():
        torch.testing.assert_close(back.tensors[name], 2 * tensor.float(), atol=2e-4, rtol=2e-3)
    hashes = [read_weights(path).sha256 for path in (file, file, other, other)]
    assert back.record["mean_of"] == hashes
    assert back.record["training"] == RECORD["training"]
    assert "consistency" not in back.record
    printed = capsys.readouterr().out
    assert f"  mean of       weights with SHA-256 {hashes[0]}\n" in printed
    assert main([*words, "--mean_with", "[packaged_r3]"]) == 2
    assert "Expected networks with the same tensors for a mean" in capsys.readouterr().err
