"""``predict --check`` as a command: range of validation in the checkpoint, record, warning."""

import json

import lightning as L
import numpy as np
import pytest
import torch
from helpers import save

import mpunet
from mpunet.__main__ import main
from mpunet.inference.check import CheckSummary, summary_lines
from mpunet.io.scan_file import read_volume
from mpunet.losses import Objective
from mpunet.metrics.consistency import ConsistencyRange, consistency
from mpunet.models import DepthInterpolation
from mpunet.phantom.chest import chest_phantom
from mpunet.slices.simulate import thicken

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:.*isinstance.treespec, LeafSpec:FutureWarning"
    ),  # Lightning's own, with recent torch
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),  # these volumes are tiny
]

QUIET = [
    "--trainer.accelerator",
    "cpu",
    "--trainer.enable_progress_bar",
    "false",
    "--trainer.enable_model_summary",
    "false",
]


class CubicPlus(torch.nn.Module):
    """Cubic interpolation plus a constant."""

    n_thick, ratio = 8, 5

    def __init__(self):
        super().__init__()
        self.cubic = DepthInterpolation(8, 5, "cubic")
        self.plus = torch.nn.Parameter(torch.zeros(()))

    def forward(self, thick):
        return self.cubic(thick) + self.plus


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Thin phantoms in `train` and `val`; thick ones in `scans`, in both slice directions and across."""
    root = tmp_path_factory.mktemp("scans")
    for seed in range(3):
        save(root / "val" / f"{seed}.nii.gz", chest(seed), spacing=(1.0, 10.0, 10.0))
    save(root / "train" / "4.nii.gz", chest(4), spacing=(1.0, 10.0, 10.0))
    thick = np.rint(thicken(chest(3), 5)).astype(np.int16)
    for name, codes in (("a.nii.gz", "LPS"), ("b.nii.gz", "LPI"), ("c.nii.gz", "SPL")):
        save(root / "scans" / name, thick, spacing=(5.0, 10.0, 10.0), codes=codes)
    return root


def chest(seed):
    return chest_phantom(seed, shape=(56, 30, 32), spacing=(1.0, 10.0, 10.0)).thin


def new_module():
    return mpunet.MPUNetModule(
        {"class_path": f"{__name__}.CubicPlus", "init_args": {}}, Objective(image=1.0)
    )


def data(scans, tmp_path, **options):
    cache = str(tmp_path / "cache")
    return mpunet.ThickThinDataModule(
        train_dir=str(scans / "train"),
        val_dir=str(scans / "val"),
        cache_dir=cache,
        crop=(32, 32),
        crops_per_epoch=2,
        **options,
    )


def trainer(tmp_path, **options):
    common = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return L.Trainer(
        **{
            "accelerator": "cpu",
            "default_root_dir": tmp_path,
            "log_every_n_steps": 1,
            **common,
            **options,
        }
    )


@pytest.fixture(scope="module")
def validated(scans, tmp_path_factory):
    """A checkpoint with the range of its validation."""
    root = tmp_path_factory.mktemp("validated")
    run = trainer(root)
    run.validate(new_module(), data(scans, root), verbose=False)
    run.save_checkpoint(root / "validated.ckpt", weights_only=True)
    return root / "validated.ckpt"


def changed(checkpoint, path, *, hu=0.0, known=True):
    """The checkpoint of a network that adds HU, with or without its range."""
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["net.plus"] += hu / 4095
    if not known:
        del content["consistency"]
    torch.save(content, path)
    return path


def predict(checkpoint, scans, thin, *extra):
    words = [
        "predict",
        "--ckpt_path",
        str(checkpoint),
        "--data.predict_dir",
        str(scans / "scans"),
        "--writer.output_dir",
        str(thin),
    ]
    status = main([*words, *QUIET, *extra])
    records = [json.loads(line) for line in (thin / "manifest.jsonl").read_text().splitlines()]
    assert status == 0
    assert [record["status"] for record in records] == ["written"] * len(records)
    return {record["file"]: record["consistency"] for record in records}


def test_validation_leaves_its_range_in_the_checkpoint(validated, scans):
    known = torch.load(validated, weights_only=True)["consistency"]
    errors = []
    for seed in range(3):
        thick = thicken(chest(seed), 5)
        errors.append(
            consistency(mpunet.Reconstructor(CubicPlus(), n_thick=8, ratio=5)(thick), thick).mae
        )
    assert known == {
        "low": pytest.approx(min(errors), rel=1e-4),
        "high": pytest.approx(max(errors), rel=1e-4),
        "cases": 3,
        "profile": "gaussian",
        "fwhm": None,
    }
    assert 2 < known["low"] < known["high"] < 40


def test_a_network_as_in_validation(validated, scans, tmp_path, capsys):
    records = predict(validated, scans, tmp_path, "--check")
    out = capsys.readouterr().out
    assert "3 volumes written" in out
    assert "thickened" not in out
    limit = ConsistencyRange(**torch.load(validated, weights_only=True)["consistency"]).limit
    for name, record in records.items():
        thin, thick = (read_volume(folder / name).slab for folder in (tmp_path, scans / "scans"))
        expected = consistency(thin, thick)
        assert record == {
            "mae": pytest.approx(expected.mae, abs=6e-4),
            "rmse": pytest.approx(expected.rmse, abs=6e-4),
            "bias": pytest.approx(expected.bias, abs=6e-4),
            "limit": pytest.approx(limit, abs=6e-4),
            "out_of_range": False,
        }
    assert records["a.nii.gz"] == records["b.nii.gz"] == records["c.nii.gz"]


def test_a_network_that_adds_density_is_told(validated, scans, tmp_path, capsys):
    before = predict(validated, scans, tmp_path / "before", "--check")["a.nii.gz"]
    broken = changed(validated, tmp_path / "broken.ckpt", hu=50)
    records = predict(broken, scans, tmp_path / "after", "--writer.check", "true")
    assert all(record["out_of_range"] for record in records.values())
    assert records["a.nii.gz"]["bias"] == pytest.approx(before["bias"] + 50, abs=1)
    lines = capsys.readouterr().out.splitlines()
    [at] = [
        i
        for i, line in enumerate(lines)
        if line.startswith("Warning: 3 volumes, thickened again, differ from their scans by")
    ]
    assert f"more than {before['limit']:.1f} HU" in lines[at]
    assert lines[at + 2] == f"  b.nii.gz: {records['b.nii.gz']['mae']:.1f} HU"


def test_without_a_range_nothing_is_judged(validated, scans, tmp_path, capsys):
    unknown = changed(validated, tmp_path / "unknown.ckpt", hu=50, known=False)
    records = predict(unknown, scans, tmp_path / "thin", "--check")
    assert records["a.nii.gz"]["bias"] > 40
    assert {(record["limit"], record["out_of_range"]) for record in records.values()} == {
        (None, None)
    }
    out = capsys.readouterr().out
    assert out.count("The checkpoint has no consistency range") == 1
    assert "Warning" not in out


def test_not_asked_for(validated, scans, tmp_path):
    assert set(predict(validated, scans, tmp_path).values()) == {None}


def test_older_manifests_are_read(validated, scans, tmp_path, capsys):
    predict(validated, scans, tmp_path)
    manifest = tmp_path / "manifest.jsonl"
    records = [json.loads(line) for line in manifest.read_text().splitlines()]
    for record in records:
        del record["consistency"]
    manifest.write_text("".join(json.dumps(record) + "\n" for record in records))
    words = [
        "predict",
        "--ckpt_path",
        str(validated),
        "--data.predict_dir",
        str(scans / "scans"),
        "--check",
        *QUIET,
    ]
    assert main([*words, "--writer.output_dir", str(tmp_path)]) == 0
    assert "3 of 3 volumes are already in" in capsys.readouterr().out


def test_the_profile_of_the_training_data_is_used(scans, tmp_path):
    module, run = new_module(), trainer(tmp_path)
    run.validate(module, data(scans, tmp_path, profile="box", fwhm=0.6), verbose=False)
    assert (module.consistency_range.profile, module.consistency_range.fwhm) == ("box", 0.6)
    run.save_checkpoint(tmp_path / "box.ckpt", weights_only=True)
    record = predict(tmp_path / "box.ckpt", scans, tmp_path / "thin", "--check")["a.nii.gz"]
    thin, thick = (
        read_volume(folder / "a.nii.gz").slab for folder in (tmp_path / "thin", scans / "scans")
    )
    assert record["mae"] == pytest.approx(
        consistency(thin, thick, profile="box", fwhm=0.6).mae, abs=6e-4
    )
    assert record["mae"] != pytest.approx(consistency(thin, thick).mae, rel=0.05)


@pytest.mark.filterwarnings(
    "ignore:.*callbacks used to create the checkpoint"
)  # the second run saves by hand
def test_every_checkpoint_has_the_last_validations_range(scans, tmp_path):
    """Checkpoints that fit saves at the end of a validation and later contain its range.

    This includes checkpoints of a run resumed without validation, but not the sanity check.
    """
    saver = L.pytorch.callbacks.ModelCheckpoint(
        dirpath=tmp_path / "saved", monitor="val/consistency", save_last=True
    )
    module, run = (
        new_module(),
        trainer(
            tmp_path,
            max_epochs=1,
            callbacks=[saver],
            enable_checkpointing=True,
            num_sanity_val_steps=1,
        ),
    )
    run.fit(module, data(scans, tmp_path, num_workers=0))
    known = module.consistency_range
    assert known.cases == 3
    assert float(run.callback_metrics["val/consistency"]) == pytest.approx(
        float(saver.best_model_score)
    )
    assert known.low <= float(saver.best_model_score) <= known.high
    for path in (saver.best_model_path, saver.last_model_path):
        assert torch.load(path, weights_only=True)["consistency"] == known._asdict()
    again, run = new_module(), trainer(tmp_path, max_epochs=2, limit_val_batches=0)
    run.fit(again, data(scans, tmp_path, num_workers=0), ckpt_path=saver.last_model_path)
    assert again.consistency_range == known
    run.save_checkpoint(tmp_path / "later.ckpt")
    later = torch.load(tmp_path / "later.ckpt", weights_only=True)
    assert later["epoch"] == 2
    assert later["consistency"] == known._asdict()


def test_help_shows_the_flag_for_predict_only(capsys):
    for command, shown in (("predict", True), ("validate", False)):
        assert main([command, "--help"]) == 0
        assert ("--check " in capsys.readouterr().out) == shown


def test_summary_of_many_volumes_on_two_ranks():
    ranks = [
        CheckSummary([(f"{i:02}.nii", 30.0 + i, 20.0) for i in range(start, 26, 2)], 0)
        for start in (0, 1)
    ]
    lines = summary_lines(ranks)
    assert lines[0].startswith(
        "Warning: 26 volumes, thickened again, differ from their scans by more than 20.0 HU"
    )
    assert lines[1] == "  00.nii: 30.0 HU"
    assert lines[21:] == ["  ... and 6 more, see manifest.jsonl"]
    assert summary_lines([CheckSummary([], 0)]) == []


def test_slices_of_another_spacing(validated, scans, tmp_path, capsys):
    """Judged as the network's own are; a scan that is finer than what was asked for fails alone."""
    own = predict(validated, scans, tmp_path / "own", "--check")
    records = predict(
        validated, scans, tmp_path / "thin", "--check", "--inference.thin_spacing", "2"
    )
    for name, record in records.items():
        assert not record["out_of_range"]
        assert record["mae"] == pytest.approx(own[name]["mae"], rel=0.1)
        assert read_volume(tmp_path / "thin" / name).slab.shape == (28, 30, 32)

    save(tmp_path / "scans" / "fine.nii.gz", chest(3)[:20], spacing=(1.5, 10.0, 10.0))
    save(tmp_path / "scans" / "thick.nii.gz", chest(3)[:20], spacing=(5.0, 10.0, 10.0))
    words = [
        "predict",
        "--ckpt_path",
        str(validated),
        "--data.predict_dir",
        str(tmp_path / "scans"),
        *QUIET,
    ]
    words += [
        "--writer.output_dir",
        str(tmp_path / "two"),
        "--inference.any_spacing",
        "true",
        "--inference.thin_spacing",
        "2",
    ]
    assert main(words) == 1
    fine, thick = (
        json.loads(line) for line in (tmp_path / "two" / "manifest.jsonl").read_text().splitlines()
    )
    assert fine["reason"].startswith(
        "the slice spacing of 1.5 mm is not larger than the thin_spacing of 2 mm"
    )
    assert (thick["file"], thick["status"]) == ("thick.nii.gz", "written")
    assert (thick["spacing"], thick["thin_spacing"]) == ([10.0, 10.0, 2.0], 2.0)
