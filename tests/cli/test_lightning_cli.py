"""The command line as a user runs it, in-process; two processes in test_distributed.py."""

from __future__ import annotations

import errno
import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

import mpunet
from mpunet.__main__ import main
from mpunet.cli.lightning_cli import MPUNetCLI
from mpunet.geometry import slice_positions
from mpunet.inference import result as result_module
from mpunet.io.thick_file import write_thick
from mpunet.phantom.chest import phantom_image

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = [
    "--model.net.widths",
    "[2,2,2,2,2,2]",
    "--trainer.accelerator",
    "cpu",
    "--trainer.devices",
    "1",
]
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Thin phantoms for training, validation and test, and thick scans for prediction.

    One of the scans is flipped and in a subfolder.
    """
    root = tmp_path_factory.mktemp("data")
    out = {name: root / name for name in ("train", "val", "test", "scans")}
    for folder in out.values():
        folder.mkdir()
    for seed, name in enumerate(("train", "val", "test")):
        nib.save(
            phantom_image(seed, shape=(56, 30, 32), spacing=(1.0, 10.0, 10.0)),
            out[name] / f"case{seed}.nii.gz",
        )
    write_thick(out["scans"] / "a.nii.gz", out["test"] / "case2.nii.gz", 5)
    image = nib.load(out["scans"] / "a.nii.gz")
    thick, affine = np.asarray(image.dataobj), image.affine
    flipped = affine.copy()
    flipped[:, 3] += affine[:, 2] * (thick.shape[2] - 1)
    flipped[:, 2] *= -1
    (out["scans"] / "sub").mkdir()
    nib.save(nib.Nifti1Image(np.flip(thick, 2), flipped), out["scans"] / "sub" / "b.nii")
    return out


@pytest.fixture(scope="module")
def run(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished fit of two steps with `examples/mpunet_cpu.yaml`; its folder."""
    root = tmp_path_factory.mktemp("run")
    assert fit(folders, root, "mpunet_cpu.yaml") == 0
    return root / "lightning_logs" / "version_0"


def fit(folders: dict[str, Path], root: Path, config: str, *extra: str) -> int:
    return main(
        [
            "fit",
            "--config",
            str(EXAMPLES / config),
            *TINY,
            *QUIET,
            "--trainer.default_root_dir",
            str(root),
        ]
        + ["--data.train_dir", str(folders["train"]), "--data.val_dir", str(folders["val"])]
        + [
            "--data.cache_dir",
            str(root / "cache"),
            "--data.crop",
            "[32, 32]",
            "--trainer.log_every_n_steps",
            "1",
        ]
        + [
            "--trainer.max_steps",
            "2",
            "--data.crops_per_epoch",
            "4",
            "--data.batch_size",
            "2",
            "--trainer.precision",
            "32-true",
        ]
        + ["--trainer.val_check_interval", "2", "--trainer.check_val_every_n_epoch", "null", *extra]
    )


def predict(checkpoint: Path, scans: Path, thin: Path, *extra: str) -> int:
    return main(
        [
            "predict",
            "--ckpt_path",
            str(checkpoint),
            "--data.predict_dir",
            str(scans),
            "--writer.output_dir",
            str(thin),
        ]
        + ["--trainer.accelerator", "cpu", *QUIET, *extra]
    )


def test_fit_leaves_checkpoints_config_and_pictures(run: Path) -> None:
    names = sorted(p.name for p in (run / "checkpoints").iterdir())
    assert names[0] == "last.ckpt"
    assert names[1].startswith("step=2-psnr=")
    assert [p.name for p in (run / "samples").iterdir()] == ["case1-step0000002.png"]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["net"]["init_args"]["widths"] == [2, 2, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("muon", "groups"), [("3e-3", 2), ("null", 1)]
)  # as the example has it, and AdamW alone
def test_the_other_small_example_runs(
    folders: dict[str, Path], tmp_path: Path, muon: str, groups: int
) -> None:
    assert (
        fit(
            folders,
            tmp_path,
            "mpunet_small.yaml",
            "--data.batch_size",
            "1",
            "--model.muon_lr",
            muon,
        )
        == 0
    )
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    optimizer = torch.load(checkpoint, weights_only=True)["optimizer_states"][0]
    assert len(optimizer["param_groups"]) == groups
    assert tuple(optimizer["param_groups"][-1]["betas"]) == (0.9, 0.95)


def test_muon_steps_kernels_and_adamw_the_rest(folders: dict[str, Path], tmp_path: Path) -> None:
    """Averaged weights from the command line and resumed; the checkpoint stays plain, predicts."""
    words = ["--checkpoint.dirpath", str(tmp_path)]
    assert fit(folders, tmp_path, "mpunet_cpu.yaml", *words) == 0
    words += [
        "--trainer.max_steps",
        "4",
        "--ckpt_path",
        str(tmp_path / "last.ckpt"),
        "--checkpoint.enable_version_counter",
        "false",
    ]
    assert fit(folders, tmp_path, "mpunet_cpu.yaml", *words) == 0
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    optimizer = checkpoint["optimizer_states"][0]
    kernels, others = optimizer["param_groups"]
    assert (kernels["initial_lr"], others["initial_lr"]) == (3e-3, 1e-3)
    assert {"momentum"} == set(optimizer["state"][kernels["params"][0]])
    assert {optimizer["state"][i]["step"] for i in others["params"]} == {4}
    assert predict(tmp_path / "last.ckpt", folders["scans"], tmp_path / "thin") == 0


def test_tensorboard_shows_curves_and_pictures(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run)).Reload()
    tags = events.Tags()
    assert {"train/loss", "train/inner", "val/lung_rmse", "val/consistency"} <= set(tags["scalars"])
    assert [point.step for point in events.Scalars("train/loss")] == [0, 1]
    assert tags["images"] == ["coronal/case1"]


@pytest.mark.parametrize(
    "source", [["--data.train_dir"], ["--data.split", "[1, 0, 0]", "--data.data_dir"]]
)
def test_fit_without_validation_data_keeps_the_last_checkpoint(
    folders: dict[str, Path], tmp_path: Path, source: list[str]
) -> None:
    args = [
        "fit",
        *TINY,
        *QUIET,
        *source,
        str(folders["train"]),
        "--data.cache_dir",
        str(tmp_path / "cache"),
    ]
    args += [
        "--data.crop",
        "[32, 32]",
        "--data.crops_per_epoch",
        "2",
        "--trainer.max_epochs",
        "1",
        "--trainer.log_every_n_steps",
        "1",
    ]
    assert main([*args, "--trainer.default_root_dir", str(tmp_path)]) == 0
    assert [p.name for p in tmp_path.rglob("*.ckpt")] == ["last.ckpt"]


def test_checkpoint_is_plain_and_rebuilds_the_network(run: Path) -> None:
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["net"]["init_args"]["widths"] == [2] * 6
    module = mpunet.MPUNetModule.load_from_checkpoint(
        run / "checkpoints" / "last.ckpt", weights_only=True
    )
    assert module.hparams["lr"] == 1e-3
    key = "net.backbone.encoder.stem.0.0.weight"
    torch.testing.assert_close(module.state_dict()[key], checkpoint["state_dict"][key])


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_measure_without_a_config(
    run: Path, folders: dict[str, Path], tmp_path: Path, stage: str
) -> None:
    name = "val" if stage == "validate" else "test"
    args = [
        stage,
        "--ckpt_path",
        str(run / "checkpoints" / "last.ckpt"),
        f"--data.{name}_dir",
        str(folders[name]),
    ]
    args += [
        "--data.cache_dir",
        str(tmp_path / "cache"),
        "--trainer.default_root_dir",
        str(tmp_path),
        *QUIET,
    ]
    assert main([*args, "--trainer.accelerator", "cpu", "--trainer.logger.class_path", "CSVLogger"]
                + ["--trainer.logger.save_dir", str(tmp_path)]) == 0  # fmt: skip
    folder = tmp_path / "lightning_logs" / "version_0"
    assert (
        folder / ("config_validate.yaml" if stage == "validate" else "config_test.yaml")
    ).exists()
    header, values = (folder / "metrics.csv").read_text().splitlines()[:2]
    row = dict(zip(header.split(","), values.split(","), strict=True))
    assert 0 < float(row[f"{name}/lung_mae"]) < 200
    assert float(row[f"{name}/psnr"]) == pytest.approx(
        20 * np.log10(4095 / float(row[f"{name}/rmse"])), abs=1e-3
    )


def test_predict_keeps_names_header_and_positions(
    run: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    assert predict(run / "checkpoints" / "last.ckpt", folders["scans"], tmp_path) == 0
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.nii*")) == [
        "a.nii.gz",
        "sub/b.nii",
    ]
    for name in ("a.nii.gz", "sub/b.nii"):
        thick, thin = nib.load(folders["scans"] / name), nib.load(tmp_path / name)
        assert thin.get_data_dtype() == np.int16
        assert thin.shape == (*thick.shape[:2], (thick.shape[2] - 1) * 5 + 1)
        positions = slice_positions(thick.affine, 2, thick.shape[2])
        np.testing.assert_allclose(
            slice_positions(thin.affine, 2, thin.shape[2])[::5], positions, atol=1e-4
        )
    # The scan stored in the other direction gives the same volume, except for the rounding of
    # values half-way between two HU.
    a, b = (
        np.asarray(nib.load(tmp_path / name).dataobj, np.int32)
        for name in ("a.nii.gz", "sub/b.nii")
    )
    difference = np.abs(a - b[:, :, ::-1])
    assert difference.max() <= 1
    assert difference.mean() < 1e-3


def test_reconstructor_gives_what_predict_writes(
    run: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    checkpoint = run / "checkpoints" / "last.ckpt"
    assert predict(checkpoint, folders["scans"], tmp_path) == 0
    image = mpunet.Reconstructor.from_checkpoint(checkpoint)(
        nib.load(folders["scans"] / "a.nii.gz")
    )
    # After two steps of warm-up the result is almost the interpolation, and some of its values are
    # half-way between two HU.
    written = np.asarray(nib.load(tmp_path / "a.nii.gz").dataobj, np.int32)
    difference = np.abs(np.asarray(image.dataobj, np.int32) - written)
    assert difference.max() <= 1
    assert difference.mean() < 1e-3


@pytest.mark.filterwarnings(
    "ignore:Total length of `list` across ranks is zero"
)  # no validation data
def test_checkpoint_made_in_python_predicts(folders: dict[str, Path], tmp_path: Path) -> None:
    import lightning as L

    module = mpunet.MPUNetModule(mpunet.MPUNet(4, 5, widths=(2, 2, 2)), lr=1e-4)
    data = mpunet.ThickThinDataModule(
        train_dir=str(folders["train"]),
        crop=(16, 16),
        crops_per_epoch=2,
        cache_dir=str(tmp_path / "cache"),
        num_workers=0,
    )
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "python.ckpt")
    assert (
        torch.load(tmp_path / "python.ckpt", weights_only=True)["hyper_parameters"]["net"][
            "init_args"
        ]["n_thick"]
        == 4
    )
    assert predict(tmp_path / "python.ckpt", folders["scans"], tmp_path / "thin") == 0
    assert nib.load(tmp_path / "thin" / "a.nii.gz").shape[2] == 56


def test_broken_scans_are_told_and_do_not_stop_the_others(
    run: Path, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    whole = (folders["scans"] / "a.nii.gz").read_bytes()
    image = nib.load(folders["scans"] / "a.nii.gz")
    voxels = np.asarray(image.dataobj).astype(np.float32)
    (scans / "good.nii.gz").write_bytes(whole)
    (scans / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (scans / "text.nii.gz").write_bytes(gzip.compress(b"no scan"))
    for name, array in {
        "flat": voxels[..., 0],
        "series": np.stack([voxels] * 2, -1),
        "single": voxels[..., :1],
        "nan": np.where(voxels > 0, np.nan, voxels),
        "unit": (voxels + 1024) / 4095,
    }.items():
        nib.save(nib.Nifti1Image(array, image.affine), scans / f"{name}.nii.gz")
    assert predict(run / "checkpoints" / "last.ckpt", scans, tmp_path / "thin") == 1
    out = capsys.readouterr().out
    assert "1 volumes written" in out
    assert "7 failed" in out
    for words in ("cut.nii.gz", "2D", "4D", "at least 2 slices", "NaN", "not HU", "text.nii.gz"):
        assert words in out
    assert [p.name for p in (tmp_path / "thin").glob("*.nii.gz")] == ["good.nii.gz"]


def test_a_full_disk_has_an_exit_status_of_its_own(
    run: Path, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(result_module, "write_slices", full)
    checkpoint = run / "checkpoints" / "last.ckpt"
    assert predict(checkpoint, folders["scans"], tmp_path / "thin") == 3
    monkeypatch.undo()
    assert predict(checkpoint, folders["scans"], tmp_path / "thin") == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--data.predict_dir": "nowhere"}, "found nothing at nowhere"),
        ({"--data.predict_dir": "{empty}"}, "found none"),
        ({"--ckpt_path": "nowhere.ckpt"}, "No checkpoint at nowhere.ckpt"),
        ({"--ckpt_path": "{text}"}, "cannot be read as a checkpoint"),
        ({"--ckpt_path": "{foreign}"}, "no checkpoint of mpunet"),
        ({"--model.net.ratio": "4"}, "checkpoint for ratio = 5, but ratio = 4"),
        ({"--writer.output_dir": "{text}"}, "Cannot write to the output folder"),
        ({"--writer.output_dir": None}, "give --writer.output_dir"),
        ({"--data.predict_dir": None}, "give predict_dir"),
        ({"--inference.stride": "8"}, "stride of 1 to 7"),
    ],
)
def test_wrong_input_to_predict_is_one_clear_line(
    run: Path,
    folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str | None],
    message: str,
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no checkpoint")
    torch.save({"state_dict": {}}, tmp_path / "foreign")
    values: dict[str, str | None] = {
        "--ckpt_path": str(run / "checkpoints" / "last.ckpt"),
        "--data.predict_dir": str(folders["scans"]),
        "--writer.output_dir": str(tmp_path / "thin"),
        **change,
    }
    words = [
        w
        for k, v in values.items()
        if v is not None
        for w in (k, v.format(**{n: tmp_path / n for n in ("empty", "text", "foreign")}))
    ]
    assert main(["predict", *words, "--trainer.accelerator", "cpu", *QUIET]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("mpunet: error: ")
    assert message in error
    assert "Traceback" not in error
    assert not list((tmp_path).rglob("*.nii*"))


def test_paper_config_runs_with_all_losses(folders: dict[str, Path], tmp_path: Path) -> None:
    from torchvision.models import vgg16

    torch.manual_seed(0)
    features = vgg16(weights=None).features[:4].state_dict()
    torch.save({f"features.{key}": value for key, value in features.items()}, tmp_path / "vgg.pth")
    extra = [
        "--model.objective.feature_weights",
        str(tmp_path / "vgg.pth"),
        "--model.objective.feature_layers",
        "[relu1_2]",
    ]
    extra += [
        "--trainer.logger.class_path",
        "CSVLogger",
        "--trainer.logger.save_dir",
        str(tmp_path),
    ]
    assert fit(folders, tmp_path, "mpunet.yaml", *extra, "--trainer.callbacks", "[]") == 0
    header = (
        (tmp_path / "lightning_logs" / "version_0" / "metrics.csv")
        .read_text()
        .splitlines()[0]
        .split(",")
    )
    assert {
        "train/loss",
        "train/mask",
        "train/inner",
        "train/outer",
        "train/feature",
        "val/lung_psnr",
    } <= set(header)


def test_a_network_that_knows_nothing_of_mpunet(folders: dict[str, Path], tmp_path: Path) -> None:
    """By its class path alone, through fit, validation, checkpoint, resuming and predict."""
    data = [
        "--data.train_dir",
        str(folders["train"]),
        "--data.val_dir",
        str(folders["val"]),
        "--data.cache_dir",
        str(tmp_path / "cache"),
    ]
    words = [
        "fit",
        "--model.net",
        "helpers.OthersNetwork",
        "--model.net.channels",
        "3",
        "--model.objective.image",
        "1",
        *data,
        *QUIET,
    ]
    words += [
        "--data.crop",
        "[32, 32]",
        "--data.crops_per_epoch",
        "4",
        "--trainer.accelerator",
        "cpu",
        "--trainer.logger",
        "false",
    ]
    words += [
        "--trainer.default_root_dir",
        str(tmp_path),
        "--checkpoint.dirpath",
        str(tmp_path),
        "--trainer.max_epochs",
        "1",
    ]
    assert main(words) == 0
    last = tmp_path / "last.ckpt"
    hparams = torch.load(last, weights_only=True)["hyper_parameters"]
    assert hparams["net"] == {"class_path": "helpers.OthersNetwork", "init_args": {"channels": 3}}
    assert (
        main(
            [
                *words,
                "--ckpt_path",
                str(last),
                "--trainer.max_epochs",
                "2",
                "--checkpoint.enable_version_counter",
                "false",
            ]
        )
        == 0
    )
    assert torch.load(last, weights_only=True)["epoch"] == 1
    assert predict(last, folders["scans"], tmp_path / "thin") == 0
    assert nib.load(tmp_path / "thin" / "a.nii.gz").shape[2] == 56
    assert mpunet.Reconstructor.from_checkpoint(last).engine.network.layers[0].out_channels == 3


def test_another_network_keeps_its_own_defaults(folders: dict[str, Path], tmp_path: Path) -> None:
    """jsonargparse would hand on the default network's widths."""
    words = [
        "fit",
        "--model.net",
        "mpunet.models.VNet",
        "--model.net.layers",
        "1",
        "--trainer.max_steps",
        "0",
        *QUIET,
    ]
    words += [
        "--data.train_dir",
        str(folders["train"]),
        "--data.cache_dir",
        str(tmp_path / "cache"),
        "--trainer.logger",
        "CSVLogger",
    ]
    words += [
        "--trainer.logger.save_dir",
        str(tmp_path),
        "--trainer.accelerator",
        "cpu",
        "--trainer.default_root_dir",
        str(tmp_path),
    ]
    assert main([*words, "--data.crop", "[32, 32]"]) == 0
    hparams = yaml.safe_load(next(tmp_path.rglob("hparams.yaml")).read_text())
    assert hparams["net"]["class_path"] == "mpunet.models.VNet"
    assert hparams["net"]["init_args"]["widths"] == [16, 32, 64, 128, 256]
    assert hparams["net"]["init_args"]["layers"] == 1


@pytest.mark.parametrize(
    ("words", "widths"),
    [
        (["--model.net", "mpunet.models.SRCNN"], [64, 32]),
        (["--model.net", "mpunet.models.VNet"], [16, 32, 64, 128, 256]),
        (["--config", "vnet.yaml"], [16, 32, 64, 128, 256]),
        (["--model.net", "mpunet.models.MPUNet"], [8, 24, 48, 32, 32, 32]),
    ],
)
def test_another_network_replaces_that_of_a_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], widths: list[int]
) -> None:
    """It keeps no widths of the recipe; the same class keeps them."""
    monkeypatch.chdir(tmp_path)
    nets = []
    monkeypatch.setattr(MPUNetCLI, "_run_subcommand", lambda cli, _: nets.append(cli.model.net))
    Path("vnet.yaml").write_text("model: {net: {class_path: mpunet.models.VNet}}")
    recipe = ["--config", str(EXAMPLES / "mpunet_cpu.yaml"), "--trainer.logger", "false"]
    assert main(["fit", *recipe, *words, "--trainer.accelerator", "cpu"]) == 0
    assert nets[0].init_args["widths"] == widths


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("net: {class_path: mpunet.MPUNet, init_args: {width: [2]}}",
         "The init_args do not fit MPUNet: got an unexpected keyword argument 'width'; "
         "did you mean widths?"),
        ("objective: {class_path: mpunet.losses.Objective, init_args: {imag: 1}}",
         "fit Objective: got an unexpected keyword argument 'imag'; did you mean image?"),
        ("net: {class_path: helpers.OthersNetwork, init_args: {zzz: 1}}", "; its arguments: chan"),
    ],
)  # fmt: skip
def test_a_typo_in_a_configuration_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], section: str, message: str
) -> None:
    (tmp_path / "typo.yaml").write_text(f"model: {{{section}}}")
    assert main(["fit", "--config", str(tmp_path / "typo.yaml")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("mpunet: error: ")
    assert message in error


def test_missing_vgg_weights_are_told_before_training(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "vgg.pth"
    assert (
        fit(folders, tmp_path, "mpunet.yaml", "--model.objective.feature_weights", str(missing))
        == 2
    )
    assert str(missing) in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.ckpt"))


def test_resume_goes_on_where_it_stopped(
    run: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    last = run / "checkpoints" / "last.ckpt"
    assert (
        fit(
            folders,
            tmp_path,
            "mpunet_cpu.yaml",
            "--ckpt_path",
            str(last),
            "--trainer.max_steps",
            "4",
        )
        == 0
    )
    checkpoint = torch.load(
        tmp_path / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt", weights_only=True
    )
    assert checkpoint["global_step"] == 4
    others = checkpoint["optimizer_states"][0]["param_groups"][-1][
        "params"
    ]  # Muon's kernels do not count their steps
    assert {checkpoint["optimizer_states"][0]["state"][i]["step"] for i in others} == {4}


def test_options_win_over_the_resumed_checkpoint(
    run: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    words = ["--ckpt_path", str(run / "checkpoints" / "last.ckpt"), "--trainer.max_steps", "3"]
    words += ["--model.lr", "2e-4", "--model.muon_lr", "6e-4", "--model.objective.image", "3"]
    assert fit(folders, tmp_path, "mpunet_cpu.yaml", *words) == 0
    checkpoint = torch.load(next(tmp_path.rglob("last.ckpt")), weights_only=True)
    hparams = checkpoint["hyper_parameters"]
    assert (hparams["lr"], hparams["muon_lr"]) == (2e-4, 6e-4)
    assert hparams["objective"]["init_args"]["image"] == 3
    assert hparams["objective"]["init_args"]["inner"] == 0.2  # of the checkpoint
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    assert [group["initial_lr"] for group in groups] == [6e-4, 2e-4]
    # Warm-up of 200 steps: the rate after three.
    assert [group["lr"] for group in groups] == pytest.approx([6e-4 * 0.02, 2e-4 * 0.02])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.net.widths", "[3,2,2,2,2,2]"], "checkpoint for widths = [2, 2, 2, 2, 2, 2], but"),
        (["--model.net", "mpunet.models.VNet"], "but mpunet.models.VNet was asked for"),
        (["--model.muon_lr", "null"], "muon_lr = 0.003, but muon_lr = None was asked for. Leave"),
        (["--model.critic", "mpunet.models.Critic"], "checkpoint for critic = None, but"),
    ],
)  # fmt: skip
def test_what_a_resumed_training_cannot_change_is_told(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    last = run / "checkpoints" / "last.ckpt"
    assert main(["fit", "--resume", str(last), *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"mpunet: error: {last} is a checkpoint ")
    assert message in error


def test_existing_outputs(
    run: Path, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = run / "checkpoints" / "last.ckpt"
    assert predict(checkpoint, folders["scans"], tmp_path) == 0
    (tmp_path / "a.nii.gz").write_bytes(b"mine")
    assert predict(checkpoint, folders["scans"], tmp_path) == 0
    assert (tmp_path / "a.nii.gz").read_bytes() == b"mine"
    assert predict(checkpoint, folders["scans"], tmp_path, "--writer.existing", "error") == 2
    assert "outputs already exist" in capsys.readouterr().err
    assert predict(checkpoint, folders["scans"], tmp_path, "--writer.existing", "overwrite") == 0
    assert nib.load(tmp_path / "a.nii.gz").shape[2] == 56


def test_help_and_version_are_quick_and_import_nothing_heavy(
    capsys: pytest.CaptureFixture[str],
) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from mpunet.__main__ import main; main(sys.argv[1:]); "
        "print([m for m in ('torch', 'lightning') if m in sys.modules])"
    )
    for word, expected in (("--version", mpunet.__version__), ("--help", "usage: mpunet")):
        out = subprocess.run(
            [sys.executable, "-c", code, word], capture_output=True, text=True, check=True
        ).stdout
        assert expected in out
        assert out.splitlines()[-1] == "[]"


def test_unknown_option_is_exit_status_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--nonsense"]) == 2
    assert "--nonsense" in capsys.readouterr().err


def test_short_words_give_the_same_files(
    folders: dict[str, Path],
    untrained: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And nothing of Lightning on the screen; with --quiet nothing at all."""
    dotted, short = tmp_path / "dotted", tmp_path / "short"
    words = ["--data.predict_dir", str(folders["scans"]), "--writer.output_dir", str(dotted)]
    words += ["--ckpt_path", str(untrained), "--inference.stride", "fast"]
    assert main(["predict", *words, "--trainer.accelerator", "cpu"]) == 0
    capfd.readouterr()
    words = ["--checkpoint", str(untrained), "--fast", "--device", "cpu"]
    assert main(["predict", str(folders["scans"]), *words, str(short)]) == 0
    out, err = capfd.readouterr()
    assert out == f"2 volumes written to {short}\n"
    assert [line.split(":")[0] for line in err.splitlines()] == ["2/2 sub/b.nii"]
    for name in ("a.nii.gz", "sub/b.nii"):
        assert (dotted / name).read_bytes() == (short / name).read_bytes()
    quiet = ["predict", str(folders["scans"]), str(tmp_path / "quiet"), *words, "--quiet"]
    assert main(quiet) == 0
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""
    assert main([*quiet[:2], str(tmp_path / "verbose"), *words, "--verbose"]) == 0
    assert "GPU available" in caplog.text


def test_fit_on_one_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    words = [*TINY, *QUIET, "--data.split", "[1, 0, 0]", "--data.crop", "[32, 32]", "--steps", "1"]
    words += ["--data.cache_dir", str(tmp_path / "cache"), "--checkpoint.dirpath", str(tmp_path)]
    words += ["--trainer.logger", "false", "--trainer.default_root_dir", str(tmp_path)]
    assert main(["fit", str(folders["train"]), *words, "--data.crops_per_epoch", "1"]) == 0
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 1
