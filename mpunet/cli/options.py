"""Short options and help of predict, fit, validate and test.

These commands are run by ``LightningCLI``, whose options have dotted names such as
``--writer.output_dir``. This module translates positional arguments and short options to dotted
ones, and prints a help text that fits on a screen. It imports nothing heavy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

__all__ = ["COMMANDS", "Command", "Option", "closest", "help_text", "translate"]


class Option(NamedTuple):
    """A short option.

    Attributes:
        name: such as ``--fast``.
        dotted: the option of LightningCLI that it sets.
        text: help text.
        value: the value that it sets, for options without one.
        metavar: placeholder for its value in the help text, for options with one.
    """

    name: str
    dotted: str
    text: str
    value: str | None = None
    metavar: str = "VALUE"


class Command(NamedTuple):
    """A command of LightningCLI.

    Attributes:
        summary: what it does.
        places: positional arguments: name, dotted option, help text.
        options: its short options.
        example: lines to paste.
        dotted: examples of dotted options, with help texts.
    """

    summary: str
    places: tuple[tuple[str, str, str], ...]
    options: tuple[Option, ...]
    example: tuple[str, ...]
    dotted: tuple[tuple[str, str], ...]


CHECKPOINT = Option(
    "--checkpoint", "--ckpt_path", "network: a checkpoint, a weights file, packaged or packaged_r3",
    metavar="FILE",
)  # fmt: skip
DEVICE = Option(
    "--device", "--trainer.accelerator", "cuda, mps or cpu; default: the first one that exists",
    metavar="NAME",
)  # fmt: skip
DEVICES = Option(
    "--devices", "--trainer.devices", "number of GPUs or processes, -1 for all GPUs", metavar="N"
)
CONFIG = ("--config FILE", "YAML file with any of these options")
DATA = (
    "DATA",
    "--data.data_dir",
    "folder or CSV with a split of its own, or to be split by patient",
)

COMMANDS = {
    "predict": Command(
        "Reconstruct thin slices from a folder of thick-slice scans, or from one scan.",
        (
            ("SCANS", "--data.predict_dir", "folder of NIfTI files or DICOM series, searched recursively; or a file"),
            ("THIN", "--writer.output_dir", "folder for the results; names and subfolders are kept"),
        ),
        (
            CHECKPOINT,
            Option("--fast", "--inference.stride", "fewer windows: 5 times as fast, slightly less "
                   "accurate", value="fast"),
            DEVICE,
            DEVICES,
            Option("--thin_spacing", "--inference.thin_spacing", "slice spacing of the results in "
                   "mm; default: scan / ratio", metavar="MM"),
            Option("--format", "--writer.format", "nifti or dicom; default: the format of the scan",
                   metavar="WHAT"),
            Option("--dicom_from", "--writer.dicom_from", "DICOM series of the NIfTI scans: results become "
                   "series of their studies", metavar="FOLDER"),
            Option("--existing", "--writer.existing", "what to do with results that exist: skip "
                   "(default), overwrite or error", metavar="WHAT"),
            Option("--profile", "--inference.profile", "slice profile of the scanner, a file of mpunet "
                   "fit-profile", metavar="FILE"),
            Option("--check", "--writer.check", "compare each result with its scan and report "
                   "large differences", value="true"),
            Option("--error_map", "--inference.error_map", "write each voxel's expected error: "
                   "NAME_error.nii.gz or a second DICOM series", value="true"),
            Option("--limit_memory", "--inference.limit_memory", "largest amount of memory in GiB; "
                   "works in tiles above it", metavar="GIB"),
            Option("--quiet", "--writer.progress", "print failures only", value="none"),
            Option("--verbose", "--writer.progress", "print Lightning's messages as well",
                   value="verbose"),
        ),
        (
            "mpunet predict scans thin",
            "mpunet predict scan.nii.gz thin --fast --thin_spacing 1.0",
        ),
        (
            ("--inference.tile 256", "cut planes into tiles of this size"),
            ("--inference.precision float32", "auto, float32, bf16 or fp16"),
            ("--data.check_hu false", "accept scans whose intensities do not look like HU"),
            CONFIG,
        ),
    ),
    "fit": Command(
        "Train a network on pairs of thick and thin volumes, or on thin volumes alone.",
        (DATA,),
        (
            DEVICE,
            DEVICES,
            Option("--steps", "--trainer.max_steps", "number of training steps", metavar="N"),
            Option("--resume", "--ckpt_path", "checkpoint of a training to continue", metavar="FILE"),
        ),
        (
            "mpunet fit DATA --config examples/mpunet_cpu.yaml",
            "mpunet fit --config examples/mpunet.yaml --data.train_dir A --data.val_dir B",
        ),
        (
            ("--init_from packaged", "start from these weights"),
            ("--data.train_dir DIR", "training data; --data.val_dir, --data.test_dir likewise"),
            ("--data.crop '[32, 32]'", "height and width of training crops in voxels"),
            ("--model.net.ratio 3", "ratio of thick to thin slice spacing"),
            ("--model.lr 1e-3", "learning rate"),
            CONFIG,
        ),
    ),
    "validate": Command(
        "Measure a network on whole volumes of the validation data.",
        (DATA,),
        (CHECKPOINT, DEVICE, DEVICES),
        ("mpunet validate DATA --checkpoint runs/last.ckpt",),
        (
            ("--data.val_dir DIR", "validation data, instead of DATA"),
            ("--inference.stride fast", "fewer windows"),
            CONFIG,
        ),
    ),
    "test": Command(
        "Measure a network on whole volumes of the test data.",
        (DATA,),
        (CHECKPOINT, DEVICE, DEVICES),
        ("mpunet test DATA --checkpoint runs/last.ckpt",),
        (
            ("--data.test_dir DIR", "test data, instead of DATA"),
            ("--inference.stride fast", "fewer windows"),
            CONFIG,
        ),
    ),
}  # fmt: skip

SECTIONS = ("model", "data", "trainer", "inference", "writer", "checkpoint")
# Options of LightningCLI without a dot: those with a value, and those without.
VALUED = {"--config", "--ckpt_path", "--seed_everything", "--weights_only", "--init_from",
          "--return_predictions", "--verbose", *(f"--{name}" for name in SECTIONS)}  # fmt: skip
FLAGS = {"-h", "--help", "--help_all", "--print_config", "--check"}


def translate(words: Sequence[str]) -> list[str]:
    """Translate a command line to the options of LightningCLI.

    Args:
        words: command, then its arguments: positional, short and dotted in any order.

    Raises:
        ValueError: for an unknown option, an option without its value, or too many arguments.

    >>> translate(["predict", "scans", "thin", "--fast"])[1:]
    ['--inference.stride=fast', '--data.predict_dir=scans', '--writer.output_dir=thin']
    """
    name, *rest = words
    command = COMMANDS[name]
    short = {option.name: option for option in command.options}
    places, options = [], []
    at = 0
    while at < len(rest):
        word = f"--config{rest[at][2:]}" if rest[at].startswith("-c") else rest[at]
        at += 1
        option, equals, value = word.partition("=")
        known = short.get(option)
        if not word.startswith("-"):
            places.append(word)
        elif known is not None and known.value is not None:
            if equals:
                raise ValueError(f"{option} has no value, got {word}.")
            options.append(f"{known.dotted}={known.value}")
        elif known is not None or _has_value(option):
            if not equals:
                if at == len(rest) or rest[at].startswith("--"):
                    raise ValueError(f"{option} needs a value: {option} VALUE.")
                value = rest[at]
                at += 1
            options.append(f"{known.dotted if known else option}={value}")
        elif option in FLAGS:
            options.append(word)
        else:
            hint = closest(option, [*short, *VALUED, *FLAGS])
            raise ValueError(
                f"Unknown option {option}{hint}. `mpunet {name} --help` lists the options."
            )
    if len(places) > len(command.places):
        expected = " ".join(place for place, *_ in command.places)
        raise ValueError(
            f"Expected mpunet {name} {expected}, got {len(places)} arguments: {', '.join(places)}. "
            "Quote names that contain spaces."
        )
    named = zip(command.places, places, strict=False)  # fewer may be given
    positional = [f"{dotted}={place}" for (_, dotted, _), place in named]
    return [name, *options, *positional]  # last, as a configuration file may name others


def _has_value(option: str) -> bool:
    """Whether an option of LightningCLI has a value."""
    return option in VALUED or option.removeprefix("--").split(".")[0] in SECTIONS


def closest(word: str, known: Iterable[str]) -> str:
    """Return a question that suggests the most similar known word, or nothing if none is similar.

    >>> closest("--thin_spcing", ["--fast", "--thin_spacing"])
    '; did you mean --thin_spacing?'
    """
    # An option may be known by its last part: --stride for --inference.stride.
    names = sorted(set(known))
    last = {name.rpartition(".")[2]: name for name in names}
    found = difflib.get_close_matches(word, names, n=1, cutoff=0.7)
    by_last = difflib.get_close_matches(word.removeprefix("--"), last, n=1, cutoff=0.8)
    match = found[0] if found else last[by_last[0]] if by_last else None
    return "" if match is None else f"; did you mean {match}?"


def help_text(name: str) -> str:
    """Return the help text of a command, at most 50 lines."""
    command = COMMANDS[name]
    rows = [
        (
            option.name if option.value is not None else f"{option.name} {option.metavar}",
            option.text,
        )
        for option in command.options
    ]
    lines = [
        f"usage: mpunet {name} {' '.join(place for place, *_ in command.places)} [options]",
        "",
        command.summary,
        "",
        *_columns([(place, text) for place, _, text in command.places]),
        "",
        "options:",
        *_columns(rows),
        "",
        f"any option of the {len(SECTIONS)} sections {', '.join(SECTIONS)}, such as:",
        *_columns(command.dotted),
        "",
        "examples:",
        *(f"  {line}" for line in command.example),
        "",
        f"mpunet {name} --help_all lists all options; it takes some seconds.",
    ]
    return "\n".join(lines)


def _columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = 1 + max(len(name) for name, _ in rows)
    return [f"  {name:{width}s} {text}" for name, text in rows]
