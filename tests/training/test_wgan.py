"""MPU-Net + W-GAN: critic steps by hand, in `mpunet fit`, when resumed, on two processes (gloo)."""

from __future__ import annotations

import copy
import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import nibabel as nib
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

import mpunet
from mpunet.__main__ import main
from mpunet.losses import Objective
from mpunet.models import Critic
from mpunet.phantom.chest import phantom_image
from mpunet.training.adversarial import CriticTraining

EXAMPLE = Path(__file__).parents[2] / "examples" / "mpunet_cpu.yaml"
SECTION = """\
model:
  critic:
    class_path: mpunet.models.Critic
    init_args:
      widths: [2, 3]
  critic_steps: 2
"""


def images(samples: int = 2) -> tuple[Tensor, Tensor]:
    real, fake = torch.rand(2, samples, 1, 5, 8, 7, generator=torch.Generator().manual_seed(0))
    return real, fake


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor], prefix: str = "") -> list[bool]:
    return [
        not torch.equal(before[name], after[name]) for name in before if name.startswith(prefix)
    ]


# --- the critic's steps ---


def test_two_steps_are_those_of_wgan_gp_written_out() -> None:
    torch.manual_seed(0)
    critic = Critic(widths=(2, 3))
    twin = copy.deepcopy(critic)
    real, fake = images()
    losses = CriticTraining(critic, penalty=4.0, steps=2, lr=0.01).step(
        real, fake, generator=torch.Generator().manual_seed(1)
    )
    adam = torch.optim.Adam(twin.parameters(), lr=0.01, betas=(0.0, 0.9))
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        e = torch.rand(2, generator=generator).view(2, 1, 1, 1, 1)
        between = (e * real + (1 - e) * fake).requires_grad_()
        rows = [
            torch.autograd.grad(twin(between)[i], between, create_graph=True)[0][i]
            for i in range(2)
        ]
        penalty = sum((row.square().sum().sqrt() - 1) ** 2 for row in rows) / 2
        loss = twin(fake).mean() - twin(real).mean()
        adam.zero_grad()
        (loss + 4.0 * penalty).backward()
        adam.step()
    torch.testing.assert_close(weights(critic), weights(twin))
    torch.testing.assert_close(losses, {"critic": loss.detach(), "penalty": penalty.detach()})


def test_steps_teach_the_critic_to_tell_and_to_keep_its_slope() -> None:
    torch.manual_seed(0)
    training = CriticTraining(Critic(widths=(4, 8)), lr=0.01)
    real, fake = images(4)
    first = training.step(real, fake / 2)
    for _ in range(80):
        last = training.step(real, fake / 2)
    assert abs(first["critic"]) < 0.1
    assert first["penalty"] > 0.8
    assert last["penalty"] < 0.2
    distance = (
        (real - fake / 2).flatten(1).norm(dim=1).mean()
    )  # of one way to bring one to the other: the shortest is shorter
    assert 0.5 * distance < -last["critic"] < distance


def test_network_gets_gradients_and_the_critic_none() -> None:
    training = CriticTraining(Critic(widths=(2,)))
    real, fake = images()
    fake.requires_grad_()
    training.step(real, fake)
    assert fake.grad is None
    training.generator_loss(fake).backward()
    assert fake.grad is not None
    assert fake.grad.abs().sum() > 0
    for parameter in training.critic.parameters():
        assert parameter.grad is None
        assert not parameter.requires_grad


def test_gradients_are_averaged_before_the_step() -> None:
    training = CriticTraining(Critic(widths=(2, 3)))
    before, sizes = weights(training.critic), []

    def of_all_ranks(vector: Tensor) -> Tensor:
        sizes.append(vector.numel())
        return torch.zeros_like(vector)  # as if the other rank's were the opposite

    training.step(*images(), mean_over_ranks=of_all_ranks)
    assert sizes == [sum(p.numel() for p in training.critic.parameters())]
    assert not any(changed(before, weights(training.critic)))


def test_an_image_that_overflowed_leaves_the_critic_as_it_was() -> None:
    training = CriticTraining(Critic(widths=(2,)), lr=0.1)
    real, fake = images()
    before = weights(training.critic)
    training.step(real, fake * torch.inf)
    assert not any(changed(before, weights(training.critic)))
    training.step(real, fake)
    assert all(changed(before, weights(training.critic)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_reaches_no_score(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    training = CriticTraining(Critic(widths=(2, 3)))
    fake = images()[1]
    expected = training.generator_loss(fake)
    with torch.autocast("cpu", dtype=dtype):
        torch.testing.assert_close(training.generator_loss(fake), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "wrong", [{"weight": -1.0}, {"penalty": float("nan")}, {"steps": 0}, {"lr": 0.0}]
)
def test_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError,
        match=r"critic_steps of at least 1 and critic_lr above 0, got .*(-1.0|nan|0|0.0)",
    ):
        CriticTraining(Critic(widths=(2,)), **wrong)


# --- in `mpunet fit` ---


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two thin phantoms."""
    root = tmp_path_factory.mktemp("wgan")
    for seed in range(2):
        (root / "thin").mkdir(exist_ok=True)
        nib.save(
            phantom_image(seed, shape=(56, 40, 44), spacing=(1.0, 8.0, 8.0)),
            root / "thin" / f"case{seed}.nii.gz",
        )
    (root / "critic.yaml").write_text(SECTION)
    return root


def fit(data: Path, out: Path, steps: int, *extra: str, critic: bool = True) -> dict[str, Any]:
    """Run `mpunet fit` with a critic and the example's YAML, which clips gradients.

    Returns the last checkpoint.
    """
    status = main(
        [
            "fit",
            "--config",
            str(EXAMPLE),
            *(["--config", str(data / "critic.yaml")] if critic else []),
        ]
        + [
            "--model.net.widths",
            "[2,2,2,2,2,2]",
            "--data.train_dir",
            str(data / "thin"),
            "--data.cache_dir",
            str(data / "cache"),
        ]
        + [
            "--data.crop",
            "[32, 32]",
            "--data.crops_per_epoch",
            "4",
            "--data.batch_size",
            "2",
            "--trainer.max_steps",
            str(steps),
        ]
        + [
            "--trainer.accelerator",
            "cpu",
            "--trainer.devices",
            "1",
            "--trainer.enable_progress_bar",
            "false",
        ]
        + [
            "--trainer.enable_model_summary",
            "false",
            "--trainer.callbacks",
            "[]",
            "--trainer.log_every_n_steps",
            "1",
        ]
        + [
            "--trainer.logger",
            "CSVLogger",
            "--trainer.logger.save_dir",
            str(out),
            "--checkpoint.dirpath",
            str(out),
        ]
        + ["--checkpoint.every_n_train_steps", "1", "--trainer.val_check_interval", "null"]
        + ["--trainer.precision", "32-true", *extra]
    )
    assert status == 0
    return dict(torch.load(out / "last.ckpt", weights_only=True))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fit of two steps."""
    out = tmp_path_factory.mktemp("two")
    fit(data, out, 2)
    return out


def test_checkpoint_holds_critic_and_optimiser_and_counts_the_networks_steps(run: Path) -> None:
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    assert len(checkpoint["optimizer_states"]) == 1
    others = checkpoint["optimizer_states"][0]["param_groups"][-1][
        "params"
    ]  # Muon's kernels do not count their steps
    assert {checkpoint["optimizer_states"][0]["state"][i]["step"] for i in others} == {2}
    assert {state["step"].item() for state in checkpoint["critic_optimizer"]["state"].values()} == {
        4
    }
    assert checkpoint["lr_schedulers"][0]["last_epoch"] == 2
    critic = {"class_path": "mpunet.models.Critic", "init_args": {"widths": [2, 3]}}
    assert checkpoint["hyper_parameters"]["critic"] == critic
    assert checkpoint["hyper_parameters"]["critic_steps"] == 2
    module = mpunet.MPUNetModule.load_from_checkpoint(run / "last.ckpt", weights_only=True)
    assert isinstance(module.critic, Critic)
    torch.testing.assert_close(
        module.critic.state_dict()["head.weight"], checkpoint["state_dict"]["critic.head.weight"]
    )


def test_logs_every_part_of_the_loss(run: Path) -> None:
    with next(run.rglob("metrics.csv")).open() as file:
        rows = [
            {key: float(value) for key, value in row.items() if value}
            for row in csv.DictReader(file)
        ]
    assert len(rows) == 2
    for row in rows:
        weighted = {"mask": 0.0002, "inner": 0.2, "outer": 0.2, "image": 1, "adversarial": 1e-3}
        assert row["train/loss"] == pytest.approx(
            sum(w * row[f"train/{name}"] for name, w in weighted.items()), rel=1e-5
        )
        assert row["train/penalty"] > 0
        assert row["train/critic"] != 0


def test_resume_gives_what_one_run_gives(data: Path, run: Path, tmp_path: Path) -> None:
    """Bit by bit: crops, states of both optimisers and random numbers of the penalty continue."""
    whole = fit(data, tmp_path / "whole", 4)
    resumed = fit(data, tmp_path / "resumed", 4, "--ckpt_path", str(run / "last.ckpt"))
    assert resumed["global_step"] == 4
    for key in ("state_dict", "critic_optimizer"):
        torch.testing.assert_close(resumed[key], whole[key], rtol=0, atol=0)
    before = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    assert all(changed(before, whole["state_dict"], "critic."))
    assert all(changed(before, whole["state_dict"], "net.backbone."))


# bfloat16 takes seconds a step on a CPU that has to emulate it.
@pytest.mark.parametrize(
    "precision", ["32-true", pytest.param("bf16-mixed", marks=pytest.mark.slow)]
)
def test_a_weight_of_zero_trains_the_network_as_without_critic(
    data: Path, tmp_path: Path, precision: str
) -> None:
    words = ["--trainer.precision", precision]
    alone = fit(data, tmp_path / "alone", 3, *words, critic=False)
    watched = fit(data, tmp_path / "watched", 3, *words, "--model.adversarial", "0")
    against = fit(data, tmp_path / "against", 3, *words)
    assert alone.keys() == watched.keys() - {"critic_optimizer"}
    assert any(changed(alone["state_dict"], against["state_dict"]))
    for name, value in alone["state_dict"].items():
        torch.testing.assert_close(watched["state_dict"][name], value, rtol=0, atol=0)
    torch.testing.assert_close(
        watched["optimizer_states"], alone["optimizer_states"], rtol=0, atol=0
    )


@pytest.mark.filterwarnings(
    "ignore:Be aware that when using `ckpt_path`"
)  # the checkpoint callback of these tests is not predict's
def test_predict_needs_no_critic_on_the_command_line(data: Path, run: Path, tmp_path: Path) -> None:
    nib.save(
        phantom_image(5, shape=(9, 30, 32), spacing=(5.0, 10.0, 10.0)), tmp_path / "scan.nii.gz"
    )
    words = [
        "predict",
        "--ckpt_path",
        str(run / "last.ckpt"),
        "--data.predict_dir",
        str(tmp_path / "scan.nii.gz"),
    ]
    assert (
        main(
            [*words, "--writer.output_dir", str(tmp_path / "thin"), "--trainer.accelerator", "cpu"]
        )
        == 0
    )
    assert nib.load(tmp_path / "thin" / "scan.nii.gz").shape[2] == 41


# --- from Python, on one process and on two ---


def new_module(penalty: float = 10.0) -> mpunet.MPUNetModule:
    torch.manual_seed(0)
    net, objective = mpunet.MPUNet(4, 5, widths=(2, 2, 2)), Objective(image=1.0)
    return mpunet.MPUNetModule(
        net,
        objective,
        critic=Critic(widths=(2, 3)),
        adversarial=0.01,
        gradient_penalty=penalty,
        warmup_steps=1,
    )


def train(module: mpunet.MPUNetModule, data: Path, *, ranks: int = 1, **options: Any) -> L.Trainer:
    """Three steps on the same four crops each, whatever the ranks."""
    crops = mpunet.ThickThinDataModule(
        train_dir=str(data / "thin"),
        crop=(16, 16),
        crops_per_epoch=12,
        batch_size=4 // ranks,
        num_workers=0,
        cache_dir=str(data / f"cache{ranks}"),
    )
    trainer = L.Trainer(
        max_steps=3,
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        logger=False,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, crops)
    return trainer


@pytest.mark.filterwarnings(
    "ignore:Total length of `list` across ranks is zero"
)  # no validation data
def test_two_processes_stay_equal_and_give_what_one_gives(data: Path, tmp_path: Path) -> None:
    words = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        __file__,
        str(data),
        str(tmp_path),
    ]
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    for penalty in (10, 0):
        first, second = (
            torch.load(tmp_path / f"rank{rank}-penalty{penalty}.pt", weights_only=True)
            for rank in (0, 1)
        )
        assert {name.split(".")[0] for name in first} == {"net", "critic"}
        torch.testing.assert_close(first, second, rtol=0, atol=0)
    # Without the penalty, whose random numbers differ between ranks, the mean over ranks is the
    # mean over the batch.
    alone = new_module(penalty=0.0)
    train(alone, data)
    torch.testing.assert_close(weights(alone), first, rtol=0, atol=2e-5)


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")
def test_float16_with_a_scaled_loss_trains_like_float32(data: Path) -> None:
    """The scaler and the clipping are the trainer's own; the critic needs neither."""
    start, full, half = new_module(), new_module(), new_module()
    train(full, data, gradient_clip_val=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    train(half, data, gradient_clip_val=0.1, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    for part in ("net", "critic"):
        before, expected, found = (
            torch.cat([p.detach().flatten() for p in getattr(module, part).parameters()])
            for module in (start, full, half)
        )
        assert (found - expected).norm() < 0.3 * (expected - before).norm(), part


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")
def test_weights_alone_start_with_a_new_optimiser(data: Path, tmp_path: Path) -> None:
    train(new_module(), data).save_checkpoint(tmp_path / "first.ckpt")
    again = mpunet.MPUNetModule.load_from_checkpoint(tmp_path / "first.ckpt", weights_only=True)
    train(again, data).save_checkpoint(tmp_path / "second.ckpt")
    states = torch.load(tmp_path / "second.ckpt", weights_only=True)["critic_optimizer"]["state"]
    assert {state["step"].item() for state in states.values()} == {3}


if __name__ == "__main__":  # one of the two processes of the test above
    for weight in (10, 0):
        trained = new_module(penalty=weight)
        rank = train(trained, Path(sys.argv[1]), ranks=2).global_rank
        torch.save(weights(trained), Path(sys.argv[2]) / f"rank{rank}-penalty{weight}.pt")
