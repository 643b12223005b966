"""A checkpoint from before the package was split into subpackages (commit d56c9c2).

It has two layers, a critic, Muon and averaged weights:

mpunet fit --model.net.widths '[2,2,2,2,2,2]' --model.net.n_thick 3 --model.net.ratio 2
    --model.muon_lr 1e-3 --model.critic mpunet.models.Critic --model.critic.widths '[2,2]'
    --trainer.callbacks EMAWeightAveraging --trainer.max_steps 4 …
"""

from pathlib import Path

import pytest
import torch
from helpers import position_slab, save

from mpunet.__main__ import main
from mpunet.weights import load_network, read_weights

OLD = Path(__file__).parents[1] / "files" / "old_names.ckpt"


def test_its_network_computes_what_it_did():
    thick = torch.linspace(0, 1, 3 * 32 * 32).reshape(1, 1, 3, 32, 32)
    image = load_network(OLD)(thick).image.detach().double()
    # Computed by the code that wrote the checkpoint.
    found = [
        float(value)
        for value in (image.mean(), image.std(), image[0, 0, 1, 5, 7], image[0, 0, 2, 20, 3])
    ]
    assert found == pytest.approx([0.5003569, 0.2548068, 0.2200591, 0.5446593], abs=1e-6)


def test_it_is_known_by_its_public_names():
    assert read_weights(OLD).net["class_path"] == "mpunet.models.mpunet.MPUNet", (
        "what the file says"
    )
    assert read_weights(OLD).record["training"]["cases"] == ["p0", "p1"]


def test_training_goes_on_from_it(tmp_path):
    for i in range(2):
        save(tmp_path / "thin" / f"p{i}.nii.gz", position_slab((19, 12, 14)) + i)
    words = [
        "fit",
        "--ckpt_path",
        str(OLD),
        "--data.train_dir",
        str(tmp_path / "thin"),
        "--data.cache_dir",
        str(tmp_path / "cache"),
    ]
    words += [
        "--data.crop",
        "[32, 32]",
        "--data.crops_per_epoch",
        "4",
        "--trainer.max_steps",
        "6",
        "--trainer.accelerator",
        "cpu",
    ]
    words += [
        "--trainer.callbacks",
        "EMAWeightAveraging",
        "--checkpoint.dirpath",
        str(tmp_path),
        "--trainer.logger",
        "false",
    ]
    words += ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    words += ["--trainer.default_root_dir", str(tmp_path)]
    assert main(words) == 0
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 6
    assert checkpoint["hyper_parameters"]["net"]["class_path"] == "mpunet.MPUNet"
    assert checkpoint["hyper_parameters"]["critic"]["class_path"] == "mpunet.models.Critic"
