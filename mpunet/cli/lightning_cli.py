"""The commands fit, validate, test and predict.

A ``LightningCLI`` with mpunet's module, data module, writer and checkpoint callback.
"""

from __future__ import annotations

import logging
import re
import signal
import sys
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch.distributed
import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from mpunet.cli.options import closest, translate
from mpunet.config import Configurable, same_class
from mpunet.data.datamodule import ThickThinDataModule
from mpunet.inference.options import InferenceOptions
from mpunet.inference.writer import ThinVolumeWriter
from mpunet.memory import keep_freed_memory, limit_memory
from mpunet.training.callbacks import Checkpoints
from mpunet.training.module import MPUNetModule
from mpunet.weights import SUFFIX, Weights, read_weights

__all__ = ["MPUNetCLI", "SaveConfig", "run"]

# Warnings of Lightning that do not help a user of these commands: the behaviour is intended.
EXPECTED = (
    "LightningCLI's args parameter",  # main() has arguments, so that Python code can call it
    "predict returned None",  # for a scan that could not be read
    # Every output exists already, or there is no validation data.
    "Total length of `.*` across ranks is zero",
    "Be aware that when using `ckpt_path`",  # prediction does not need the callbacks of training
    "The dirpath has changed",  # predict and test have no checkpoint folder
    "The '.*_dataloader' does not have many workers",
    # The directory exists: a resumed run, or the folder given by --checkpoint.dirpath.
    "Checkpoint directory",
    "LeafSpec.*is deprecated",  # Lightning uses it with a newer torch
    "Precision bf16-mixed is not supported by the model summary",
)


class SaveConfig(SaveConfigCallback):
    """Write the configuration to the log folder.

    fit writes ``config.yaml``; validate and test write files with their name, so that they do not
    overwrite it; predict writes none.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save the configuration to a file named after the stage."""
        if stage == "predict":
            return
        if stage != "fit":
            self.config_filename = f"config_{TrainerFn(stage).value}.yaml"
        super().setup(trainer, pl_module, stage)


class MPUNetCLI(LightningCLI):
    """``mpunet fit | validate | test | predict``."""

    def __init__(self, args: Sequence[str]) -> None:
        self.words = _with_replaced_classes(args)
        self._weights: Weights | None = None
        super().__init__(
            MPUNetModule,
            ThickThinDataModule,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            # Errors are raised, so that they are one line and not the usage.
            parser_kwargs={"prog": "mpunet", "exit_on_error": False}
            | {command: {"exit_on_error": False} for command in self.subcommands()},
            args=self.words,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override] # static in Lightning, called on the object
        """Return only the requested subcommand, because each takes 0.1 s to set up."""
        every = LightningCLI.subcommands()
        return {word: every[word] for word in self.words[:1] if word in every} or every

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse arguments as Lightning does; raise a ValueError of one line for a wrong one."""
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            message = " ".join(str(error).split())
            if unknown := re.search(r"[Uu]nrecognized arguments: ([^\s=]+)", message):
                option, command = unknown[1], self.words[0]
                hint = closest(option, _known_options(parser, command))
                message = f"Unknown option {option}{hint}. `mpunet {command} --help_all` lists all."
            raise ValueError(message) from error

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the sections besides ``model``, ``data`` and ``trainer``, and set defaults.

        The sections are ``inference`` (reconstruction of whole volumes), ``writer`` (predict) and
        ``checkpoint`` (fit).
        """
        parser.add_class_arguments(InferenceOptions, "inference")
        parser.add_lightning_class_args(ThinVolumeWriter, "writer")
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        if self.words[:1] == ["fit"]:
            parser.add_argument(
                "--init_from",
                type=str | None,
                help="Weights to start from: 'packaged' (ratio 5), 'packaged_r3' (ratio 3), a "
                "checkpoint or a weights file. Their network is used, with the options of model.net "
                "on the command line.",
            )
        parser.set_defaults(
            {
                "model.net": {"class_path": "mpunet.models.MPUNet"},
                "model.objective": {"class_path": "mpunet.losses.Objective"},
                "checkpoint.monitor": "val/psnr",
                "checkpoint.mode": "max",
                "checkpoint.save_last": True,
                "checkpoint.filename": "step={step}-psnr={val/psnr:.2f}",
                "checkpoint.auto_insert_metric_name": False,
            }
        )

    @cached_property
    def _given_net(self) -> Any:
        """Section ``model.net`` as given by the user, without defaults."""
        return (
            self.parser.parse_args(self.words, defaults=False)[self.words[0]].get("model.net") or {}
        )

    def before_instantiate_classes(self) -> None:
        """Change defaults that depend on the command and its data.

        predict writes volumes only: no predictions are returned, and nothing is logged by default.
        fit without validation data saves no best checkpoint, only the last.
        """
        config = self.config[self.subcommand]
        if (
            self.subcommand == "fit"
            and config["data.val_dir"] is None
            and config["data.data_dir"] is None
        ):
            config["checkpoint.monitor"], config["checkpoint.save_top_k"] = None, 0
            if all(
                config[f"checkpoint.{key}"] is None
                for key in ("every_n_train_steps", "train_time_interval", "every_n_epochs")
            ):
                config["checkpoint.every_n_train_steps"] = 500
        if self.subcommand == "predict":
            config["return_predictions"] = False
            if config["trainer"]["logger"] is None:
                config["trainer"]["logger"] = False
            if config["trainer"]["enable_progress_bar"] is None:
                config["trainer"]["enable_progress_bar"] = False  # the writer has one for slices

    def instantiate_classes(self) -> None:
        """Create the objects as Lightning does, load weights and set options for whole volumes."""
        super().instantiate_classes()
        if not isinstance(self.model.net, Configurable):
            # A network from outside mpunet does not store its arguments. The checkpoint needs them
            # to rebuild the network.
            self.model.save_hyperparameters(
                {"net": self.config[str(self.subcommand)]["model.net"].as_dict()}
            )
        if self._weights is not None and self.subcommand == "fit":
            new = self.model.initialize_from(self._weights)
            rank_zero_info(
                f"Starts from the weights in {self._weights.source}"
                + (f"; random initial values: {', '.join(new)}" if new else ".")
            )
        elif self._weights is not None:
            self.model.load_weights(self._weights)
        elif self.subcommand != "fit" and not self.config[str(self.subcommand)]["ckpt_path"]:
            self._refuse_untrained()
        self.model.inference = self._get(self.config_init, "inference")
        if self.model.inference.limit_memory is None:
            keep_freed_memory()
        else:
            limit_memory(self.model.inference.limit_memory, self.trainer.strategy.root_device)

    def _refuse_untrained(self) -> None:
        if any(parameter.requires_grad for parameter in self.model.net.parameters()):
            raise ValueError(
                f"{type(self.model.net).__name__} comes without weights: give --ckpt_path, or "
                "leave out model.net to use the network that comes with mpunet."
            )

    def _parse_ckpt_path(self) -> None:
        """Read the model's configuration from the checkpoint, as Lightning does.

        Also supports weights files and the packaged weights. Raises a ValueError if the file is not
        a checkpoint or is for another geometry.
        """
        subcommand = str(self.config["subcommand"])
        config = self.config[subcommand]
        path = config.get("ckpt_path")
        if subcommand == "fit":
            self._initialize_from(path, config["init_from"])
        elif path is None and not self._given_net:
            self._set_network(read_weights())
        if path and path not in ("best", "last", "hpc", "registry"):
            self._check_network(path, inside=(weights := read_weights(path)).net)
            if weights.source.suffix == SUFFIX:
                if subcommand == "fit":
                    raise ValueError(
                        f"{path} has weights but no training state to resume from: "
                        f"start from its weights with --init_from {path}."
                    )
                config["ckpt_path"] = None
                self._set_network(weights)
            else:
                # A network of another class would keep arguments of the same name.
                config["model.net"] = None
        super()._parse_ckpt_path()
        if subcommand == "fit" and path:
            stored = self.config[subcommand]["model"].clone()
            self._apply_options("--model")
            self._check_resumable(path, stored, self.config[subcommand]["model"])

    def _initialize_from(self, path: str | None, init_from: str | None) -> None:
        if init_from is None:
            return
        if path is not None:
            raise ValueError(
                "Give --ckpt_path to resume a training or --init_from to start one from weights, "
                "not both."
            )
        self._weights = read_weights(init_from)
        if not self._given_net:
            self._set_network(self._weights)
        # config.yaml of a training has both, and its network is the one that was trained.
        elif f"--init_from={init_from}" in self.words and same_class(
            self._given_net.get("class_path"), self._weights.net["class_path"]
        ):
            self._set_network(self._weights)
            self._apply_options("--model.net")
            self._tell_overridden()

    def _tell_overridden(self) -> None:
        """Print what the configuration files say about the network and does not count."""
        used = self.config[self.config["subcommand"]]["model.net.init_args"]
        different = [
            f"{name} = {used[name]} instead of {value}"
            for name, value in (self._given_net.get("init_args") or {}).items()
            if used[name] != value
        ]
        if different:
            rank_zero_info(
                f"The network is that of --init_from, not of --config: {', '.join(different)}."
            )

    def _set_network(self, weights: Weights) -> None:
        """Use these weights and their network."""
        self._weights = weights
        subcommand = self.config["subcommand"]
        self.config[subcommand]["model.net"] = None  # or its arguments would stay
        self.config = self.parser.parse_object(
            {subcommand: {"model": {"net": weights.net}}}, self.config
        )

    def _apply_options(self, start: str) -> None:
        """Let options of the command line win over values from a checkpoint or weights file."""
        words = [w for w in self.words if w.startswith(start) and w != "--model.net=null"]
        if words:
            self.config = self.parser.parse_args(
                [self.config["subcommand"], *words], namespace=self.config
            )

    def _check_resumable(self, path: str, stored: Namespace, wanted: Namespace) -> None:
        """Refuse options that the states of the optimisers in a checkpoint are not for."""
        for key in ("muon_lr", "critic"):
            old, new = stored[key], wanted[key]
            if None in (old, new) or key == "muon_lr":
                fits = (old is None) == (new is None)
            else:
                fits = old.get("init_args") == new.get("init_args")
            if not fits:
                raise ValueError(
                    f"{path} is a checkpoint for {key} = {old}, but {key} = {new} was asked for. "
                    f"Leave model.{key} out, or start a new training with --init_from {path}."
                )

    def _check_network(self, path: str, inside: dict[str, Any]) -> None:
        """Refuse another geometry, and options of the command line for another network."""
        given = self._given_net.get("init_args") or {}
        known = inside.get("init_args", {})
        named = any(re.match(r"--model\.net(\.class_path)?=(?!null$)", w) for w in self.words)
        wanted = self._given_net.get("class_path")
        if named and not same_class(wanted, inside["class_path"]):
            raise ValueError(
                f"{path} is a checkpoint of {inside['class_path']}, but {wanted} was asked for. "
                "Leave model.net out, or train such a network."
            )
        options = re.findall(r"^--model\.net\.(?:init_args\.)?(\w+)", "\n".join(self.words), re.M)
        for key in ("n_thick", "ratio", *options):
            if key in given and key in known and given[key] != known[key]:
                raise ValueError(
                    f"{path} is a checkpoint for {key} = {known[key]}, "
                    f"but {key} = {given[key]} was asked for. "
                    f"Leave model.net.{key} out, or train a network for it."
                )


def run(args: Sequence[str]) -> int:
    """Run fit, validate, test or predict.

    Returns:
        Exit status: 0; of predict, on rank 0 only, 1 if volumes failed, or 3 if the disk was full.
    """
    words = translate(args)
    if words[0] == "predict":
        # Lightning only records this signal and would continue with all remaining scans. Exiting
        # stops the run and leaves no partial file.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    quiet = words[0] == "predict" and "--writer.progress=verbose" not in words
    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING if quiet else logging.INFO)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_advertisement)
    for message in EXPECTED:
        warnings.filterwarnings("ignore", message=f".*{message}")
    try:
        cli = MPUNetCLI(words)
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # Destroyed at the end of the interpreter, the group may abort and change the exit status.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    callbacks: Any = cli.trainer.callbacks  # type: ignore[attr-defined]
    writers = [callback for callback in callbacks if isinstance(callback, ThinVolumeWriter)]
    # Only rank 0 returns a failure: Lightning treats a non-zero status of a process that it started
    # as a crash and kills the others.
    if not cli.trainer.is_global_zero:
        return 0
    if any(writer.disk_full for writer in writers):
        return 3
    return int(any(writer.failures for writer in writers))


def _with_replaced_classes(words: Sequence[str]) -> list[str]:
    """Insert ``--model.net=null`` before each word that changes the class of the network.

    Otherwise jsonargparse keeps arguments of the earlier class whose names the new one has too,
    such as widths. The same goes for the objective and the critic.
    """
    classes = {"net": "mpunet.MPUNet", "objective": "mpunet.losses.Objective"}
    out = []
    for word in words:
        for part, path in _classes_in(word).items():
            if part in classes and not same_class(classes[part], path):
                out.append(f"--model.{part}=null")
            classes[part] = path
        out.append(word)
    return out


def _classes_in(word: str) -> dict[str, str]:
    """Return the class paths in an option or configuration file, such as ``{"net": ...}``."""
    option, _, value = word.partition("=")
    part = re.fullmatch(r"--model\.(net|objective|critic)(\.class_path)?", option)
    if option != "--config" and part is None:
        return {}
    try:
        section = yaml.safe_load(value if part else Path(value).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}  # the parser tells what is wrong
    if part:
        section = {"model": {part[1]: section}}
    model = section.get("model") if isinstance(section, dict) else None
    paths = {
        name: value.get("class_path") if isinstance(value, dict) else value
        for name, value in (model if isinstance(model, dict) else {}).items()
    }
    return {name: path for name, path in paths.items() if isinstance(path, str)}


def _no_advertisement(record: logging.LogRecord) -> bool:
    """Suppress Lightning's advertisement of its cloud service."""
    return "Tip: For seamless" not in record.getMessage()


def _known_options(parser: Any, command: str) -> list[str]:
    """Return the options of a command of a jsonargparse parser."""
    commands = getattr(parser, "_subcommands_action", None)
    actions = getattr(getattr(commands, "choices", {}).get(command), "_actions", [])
    return [option for action in actions for option in action.option_strings]
