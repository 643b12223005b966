"""Weights files on the command line: to predict with, to measure, to begin a training with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

import mpunet.pretrained
import mpunet.weights
from mpunet.__main__ import main
from mpunet.cli.lightning_cli import MPUNetCLI
from mpunet.config import from_config
from mpunet.inference import spacing
from mpunet.io.thick_file import write_thick
from mpunet.models import DepthConsistency
from mpunet.phantom.chest import phantom_image
from mpunet.slices.sampled_profile import SampledProfile, write_profile
from mpunet.weights import Weights, read_weights, write_weights

QUIET = [
    "--trainer.enable_progress_bar",
    "false",
    "--trainer.enable_model_summary",
    "false",
    "--trainer.accelerator",
    "cpu",
]
WIDTHS = [2, 2, 2, 2, 2, 2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thin phantom to train on, ``train``, and its thick slices, ``scans``."""
    root = tmp_path_factory.mktemp("data")
    for name in ("train", "scans"):
        (root / name).mkdir()
    nib.save(
        phantom_image(0, shape=(56, 30, 32), spacing=(1.0, 10.0, 10.0)),
        root / "train" / "case.nii.gz",
    )
    write_thick(root / "scans" / "case.nii.gz", root / "train" / "case.nii.gz", 5)
    return root


@pytest.fixture(scope="module")
def checkpoint(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    assert fit(data, root, "--model.net.widths", str(WIDTHS), "--data.fwhm", "[0.8, 1.0]") == 0
    return root / "last.ckpt"


@pytest.fixture(scope="module")
def file(checkpoint: Path) -> Path:
    path = checkpoint.with_name("net.safetensors")
    write_weights(path, read_weights(checkpoint), dtype=torch.float32)
    return path


def fit(data: Path, root: Path, *extra: str) -> int:
    return main(
        [
            "fit",
            *QUIET,
            "--data.train_dir",
            str(data / "train"),
            "--data.cache_dir",
            str(root / "cache"),
            "--data.crop",
            "[32, 32]",
        ]
        + ["--trainer.max_steps", "2", "--data.crops_per_epoch", "4", "--trainer.logger", "false"]
        + [
            "--trainer.default_root_dir",
            str(root),
            "--checkpoint.dirpath",
            str(root),
            "--checkpoint.enable_version_counter",
            "false",
            *extra,
        ]
    )


def predict(scans: Path, thin: Path, *extra: str) -> int:
    return main(
        [
            "predict",
            *QUIET,
            "--data.predict_dir",
            str(scans),
            "--writer.output_dir",
            str(thin),
            *extra,
        ]
    )


def voxels(folder: Path) -> np.ndarray:
    return np.asarray(nib.load(folder / "case.nii.gz").dataobj)


def manifest(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_a_checkpoint_records_what_it_was_trained_on(checkpoint: Path) -> None:
    assert torch.load(checkpoint, weights_only=True)["training"] == {
        "number": 1,
        "cases": ["case"],
        "pairs": 0,
        "turned": 0,
        "ratio": 5,
        "thin_spacing": [1.0, 1.0],
        "thick_spacing": [5.0, 5.0],
        "profile": ["gaussian"],
        "fwhm": [0.8, 1.0],
        "flips": True,
    }
    assert mpunet.Reconstructor.from_checkpoint(checkpoint).engine.flips
    assert not mpunet.Reconstructor.from_checkpoint(checkpoint, flips=False).engine.flips


def test_a_weights_file_predicts_what_its_checkpoint_does(
    data: Path, checkpoint: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert predict(data / "scans", tmp_path / "a", "--ckpt_path", str(checkpoint)) == 0
    assert predict(data / "scans", tmp_path / "b", "--ckpt_path", str(file)) == 0
    monkeypatch.setattr(mpunet.pretrained, "PACKAGED", file)
    assert predict(data / "scans", tmp_path / "c") == 0
    np.testing.assert_array_equal(voxels(tmp_path / "a"), voxels(tmp_path / "b"))
    np.testing.assert_array_equal(voxels(tmp_path / "a"), voxels(tmp_path / "c"))
    thin = mpunet.Reconstructor.from_checkpoint(device="cpu")(
        nib.load(data / "scans" / "case.nii.gz")
    )
    np.testing.assert_array_equal(voxels(tmp_path / "a"), np.asarray(thin.dataobj))
    hashes = [manifest(tmp_path / name)[0]["checkpoint"] for name in "abc"]
    assert hashes == [mpunet.weights.file_sha256(path) for path in (checkpoint, file, file)]


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_packaged_weights_are_measured_without_a_path(
    data: Path,
    file: Path,
    tmp_path: Path,
    stage: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    figures = []
    for words in ([], ["--ckpt_path", str(file)]):
        monkeypatch.setattr(
            mpunet.pretrained, "PACKAGED", tmp_path / "none.safetensors" if words else file
        )
        folder = "--data.val_dir" if stage == "validate" else "--data.test_dir"
        where = [
            folder,
            str(data / "train"),
            "--data.cache_dir",
            str(tmp_path),
            "--trainer.default_root_dir",
            str(tmp_path),
        ]
        assert main([stage, *QUIET, *where, "--trainer.logger", "false", *words]) == 0
        figures.append(capsys.readouterr().out)
    assert "psnr" in figures[0]
    assert figures[0] == figures[1]


def test_a_scan_beside_the_training_data_is_told(
    data: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = nib.load(data / "scans" / "case.nii.gz")
    for name, mm in (("case", 5.0), ("near", 7.0), ("far", 12.0)):
        affine = image.affine.copy()
        affine[:, 2] *= mm / 5
        (tmp_path / "scans").mkdir(exist_ok=True)
        nib.save(
            nib.Nifti1Image(np.asarray(image.dataobj), affine),
            tmp_path / "scans" / f"{name}.nii.gz",
        )
    assert predict(tmp_path / "scans", tmp_path / "thin", "--ckpt_path", str(file)) == 1
    told = capsys.readouterr().out
    assert "2 volumes written" in told
    assert (
        "1 with a warning:\n"
        "  near.nii.gz: the slice spacing is 7 mm, but the network was trained on 5 mm" in told
    )
    records = {record["file"]: record for record in manifest(tmp_path / "thin")}
    assert "refused" in str(records["far.nii.gz"]["reason"])
    assert "fine structures may be wrong" in str(records["near.nii.gz"]["warning"])
    assert records["case.nii.gz"]["warning"] is None
    assert (
        predict(
            tmp_path / "scans",
            tmp_path / "all",
            "--ckpt_path",
            str(file),
            "--inference.any_spacing",
            "true",
        )
        == 0
    )
    assert "warning" not in capsys.readouterr().out


def test_networks_that_come_with_mpunet_go_by_name(
    data: Path,
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A scan for another packaged network gives its name, which works as ``--ckpt_path``."""
    five = read_weights(file)
    three = Weights(
        file,
        {**five.net, "init_args": {**five.net["init_args"], "ratio": 3}},
        {},
        {"training": {"thick_spacing": [3, 3]}},
    )
    three = replace(three, tensors=from_config(three.net).state_dict())
    for ratio, weights in ((5, five), (3, three)):
        write_weights(tmp_path / f"mpunet_r{ratio}.safetensors", weights)
    monkeypatch.setattr(mpunet.pretrained, "PACKAGED", tmp_path / "mpunet_r5.safetensors")
    spacing._packaged.cache_clear()
    image = nib.load(data / "scans" / "case.nii.gz")
    (tmp_path / "scans").mkdir()
    nib.save(
        nib.Nifti1Image(np.asarray(image.dataobj), image.affine @ np.diag([1, 1, 0.6, 1])),
        tmp_path / "scans" / "case.nii.gz",
    )
    assert predict(tmp_path / "scans", tmp_path / "five") == 0
    assert (
        "fine structures may be wrong. "
        "Use --ckpt_path packaged_r3, which was trained on such scans." in capsys.readouterr().out
    )
    assert predict(tmp_path / "scans", tmp_path / "three", "--ckpt_path", "packaged_r3") == 0
    assert "warning" not in capsys.readouterr().out
    assert voxels(tmp_path / "three").shape[2] == 3 * (image.shape[2] - 1) + 1
    spacing._packaged.cache_clear()
    with pytest.raises(
        ValueError,
        match=r"come with mpunet \(packaged, packaged_r3, packaged_r5\), got packaged_r4",
    ):
        read_weights("packaged_r4")


def test_fit_begins_with_weights(
    data: Path,
    file: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mpunet.pretrained, "PACKAGED", file)
    assert fit(data, tmp_path, "--init_from", "packaged", "--model.lr", "0") == 0
    assert f"Starts from the weights in {file}." in caplog.text
    checkpoint = read_weights(tmp_path / "last.ckpt")
    assert checkpoint.net["init_args"]["widths"] == WIDTHS
    for name, tensor in read_weights(file).tensors.items():
        torch.testing.assert_close(checkpoint.tensors[name], tensor)
    before = checkpoint.record["training"]["began_with"]
    assert before["sha256"] == read_weights(file).sha256
    assert before["training"]["fwhm"] == [0.8, 1.0]
    # The record outlives a restart.
    assert (
        fit(data, tmp_path, "--ckpt_path", str(tmp_path / "last.ckpt"), "--trainer.max_steps", "3")
        == 0
    )
    assert read_weights(tmp_path / "last.ckpt").record["training"]["began_with"] == before


def given_network(monkeypatch: pytest.MonkeyPatch, *words: str) -> dict[str, Any]:
    """Arguments of the network that `mpunet fit` would train."""
    nets = []
    monkeypatch.setattr(MPUNetCLI, "_run_subcommand", lambda cli, _: nets.append(cli.model.net))
    assert main(["fit", "--trainer.accelerator", "cpu", *words]) == 0
    return dict(nets[0].init_args)


def test_a_recipe_begins_with_the_network_of_the_weights(
    file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its data consistency and ratio; options of the command line change it."""
    weights = read_weights(file)
    net = {**weights.net, "init_args": {**weights.net["init_args"], "consistency": 0.85}}
    start = tmp_path / "start.safetensors"
    write_weights(start, replace(weights, net=net))
    recipe = tmp_path / "recipe.yaml"
    section = "net: {class_path: mpunet.models.MPUNet, init_args: {ratio: 3, stem_width: 5}}"
    recipe.write_text(f"model: {{{section}}}")
    words = ["--config", str(recipe), "--init_from", str(start)]
    assert given_network(monkeypatch, *words) == net["init_args"]
    assert "not of --config: ratio = 5 instead of 3, stem_width = None instead of 5." in caplog.text
    changed = given_network(monkeypatch, *words, "--model.net.ratio", "4")
    assert changed == {**net["init_args"], "ratio": 4}
    assert given_network(monkeypatch, *words, "--model.net.consistency", "null") == {
        **net["init_args"],
        "consistency": None,
    }
    # A file that names both, as config.yaml of a training does, has the network that it says.
    recipe.write_text(f"init_from: {start}\nmodel: {{{section}}}")
    assert given_network(monkeypatch, "--config", str(recipe))["ratio"] == 3


def test_a_network_for_another_ratio_begins_with_what_fits(
    data: Path, file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    net = ["--model.net.widths", str(WIDTHS), "--model.net.ratio", "3", "--model.lr", "0"]
    assert fit(data, tmp_path, "--init_from", str(file), *net) == 0
    assert "random initial values: " in caplog.text
    before, after = read_weights(file).tensors, read_weights(tmp_path / "last.ckpt").tensors
    same = [name for name in after if name in before and torch.equal(before[name], after[name])]
    assert 0.8 * len(after) < len(same) < len(after)


def test_a_wider_network_begins_as_the_same_function(
    data: Path, file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wider = [width + 1 for width in WIDTHS]
    net = ["--model.net.widths", str(wider), "--model.lr", "0"]
    assert fit(data, tmp_path, "--init_from", str(file), *net) == 0
    assert f"Starts from the weights in {file}." in caplog.text
    weights = read_weights(tmp_path / "last.ckpt")
    assert weights.net["init_args"]["widths"] == wider
    thick = torch.rand(1, 1, 8, 32, 32)
    with torch.no_grad():
        expected, image = (one.network()(thick).image for one in (read_weights(file), weights))
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-4)


def test_a_network_is_exported_for_a_scanner(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The data consistency of the file has the weights of the slice profile at a spacing."""
    profile = SampledProfile(np.array([-6.0, 0.0, 6.0]), np.array([0.0, 1.0, 0.0]))
    write_profile(tmp_path / "scanner.csv", profile)
    new = tmp_path / "new.safetensors"
    words = ["export", str(file), str(new), "--profile", str(tmp_path / "scanner.csv")]
    assert main(words) == 2
    assert "Expected --spacing MM" in capsys.readouterr().err
    assert main([*words, "--spacing", "5"]) == 0
    network = read_weights(new).network()
    assert isinstance(network.consistency, DepthConsistency)
    row = network.consistency.thicken[2]  # of thick slice 3, thin slice 15
    expected = torch.tensor([0, 1, 2, 3, 4, 5, 6, 5, 4, 3, 2, 1, 0]) / 36
    torch.testing.assert_close(row[9:22], expected)
    assert row.sum() == pytest.approx(1)
    assert main([*words, "--spacing", "2"]) == 2
    assert "too wide for data consistency" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "--model.net.widths", str(WIDTHS)], "comes without weights"),
        (
            ["predict", "--ckpt_path", "{file}", "--model.net.ratio", "4"],
            "checkpoint for ratio = 5, but ratio = 4",
        ),
        (["fit", "--ckpt_path", "{file}"], "start from its weights with --init_from"),
        (["fit", "--ckpt_path", "{file}", "--init_from", "packaged"], "not both"),
        (["fit", "--init_from", "nowhere.safetensors"], "No weights at nowhere.safetensors"),
        (
            ["fit", "--init_from", "{other}", "--model.net.widths", str(WIDTHS)],
            "for another network",
        ),
    ],
)
def test_wrong_use_is_one_clear_line(
    data: Path,
    file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    others = {"unknown": torch.zeros(3)}
    write_weights(tmp_path / "other.safetensors", Weights(file, read_weights(file).net, others, {}))
    words = [word.format(file=file, other=tmp_path / "other.safetensors") for word in words]
    folder = [
        "--data.predict_dir",
        str(data / "scans"),
        "--writer.output_dir",
        str(tmp_path / "thin"),
    ]
    if words[0] == "fit":
        folder = [
            "--data.train_dir",
            str(data / "train"),
            "--trainer.default_root_dir",
            str(tmp_path),
        ]
    assert main([*words, *folder, *QUIET]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("mpunet: error: ")
    assert message in error
    assert not (tmp_path / "thin").exists()
