"""The console command: ``mpunet`` and ``python -m mpunet``."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module

from mpunet import __version__
from mpunet.cli import options
from mpunet.cli.completion import completion_script
from mpunet.cli.function_help import function_help

__all__ = ["main"]

USAGE = """\
usage: mpunet [--version] [--completion] [--debug] COMMAND [options]

Thin-slice CT from thick-slice CT. Research software, not a medical device.

  predict       predict thin slices:        mpunet predict SCANS THIN [--checkpoint FILE]
  check         check training data:        mpunet check DATA
  simulate      simulate thick slices:      mpunet simulate THIN THICK --ratio 5
  fit-profile   fit a slice profile:        mpunet fit-profile THIN THICK
  fit           train a network:            mpunet fit DATA --config examples/mpunet.yaml
  validate      metrics, validation data:   mpunet validate DATA --checkpoint FILE
  test          metrics, test data:         mpunet test DATA --checkpoint FILE
  info          describe a network:         mpunet info [CKPT]
  export        write weights, ONNX, MONAI: mpunet export CKPT FILE.safetensors
  evaluate      measure predictions:        mpunet evaluate THIN TRUTH --inputs SCANS --output OUT
  view          show volumes on a page:     mpunet view a.nii.gz b.nii.gz --output page.html
  reader-study  sensitivity and precision:  mpunet reader-study FINDINGS.csv STANDARD.csv
                                              --output OUT
  benchmark     train and compare methods:  mpunet benchmark --rows examples/table1 --train_dir DIR
                                              --test_dir DIR --output_dir OUT --minutes 30

`mpunet COMMAND --help` lists the options. --completion prints a script that completes commands
and options in bash and zsh. --debug shows the traceback of an error.
Exit status: 0 success; 1 some volumes, cases or rows failed (predict writes the reasons to
manifest.jsonl in its output folder); 2 wrong usage or bad input."""

# Commands that need no Trainer: module.run(args) returns the exit status. With the source and the
# function of the arguments, and an example, for --help.
COMMANDS = {
    "benchmark": (
        "mpunet.cli.benchmark", "benchmark/run.py", "Benchmark",
        "mpunet benchmark --rows examples/table1 --train_dir A --test_dir B --output_dir out --steps 4000",
    ),
    "check": ("mpunet.cli.check", "cli/check.py", "check", "mpunet check DATA --output findings"),
    "evaluate": (
        "mpunet.cli.evaluate", "cli/evaluate.py", "evaluate",
        "mpunet evaluate thin truth --inputs scans --baselines linear,cubic --output out",
    ),
    "export": (
        "mpunet.cli.export", "cli/export.py", "export",
        "mpunet export last.ckpt network.safetensors --notes notes.yaml",
    ),
    "fit-profile": (
        "mpunet.cli.fit_profile", "cli/fit_profile.py", "fit_profile_of",
        "mpunet fit-profile thin.nii.gz thick.nii.gz --output profile.csv",
    ),
    "info": ("mpunet.cli.info", "cli/info.py", "info", "mpunet info packaged_r3"),
    "reader-study": (
        "mpunet.cli.reader_study", "cli/reader_study.py", "study",
        "mpunet reader-study findings.csv standard.csv --output study",
    ),
    "simulate": (
        "mpunet.cli.simulate", "cli/simulate.py", "simulate", "mpunet simulate thin thick --ratio 5"
    ),
    "view": (
        "mpunet.cli.view", "report/view.py", "view",
        "mpunet view thick.nii.gz thin.nii.gz --output page.html",
    ),
}  # fmt: skip


ALL = (*COMMANDS, *options.COMMANDS)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        args: command line arguments; by default those of the process.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Code pages of Windows lack signs such as ≥, and names of files may be no text: escape
        # these, as Python does in stderr.
        sys.stdout.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if words else 2
    if words[0] == "--version":
        print(f"mpunet {__version__}")
        return 0
    if words[0] == "--completion":
        print(completion_script({name: _option_names(name) for name in sorted(ALL)}), end="")
        return 0
    if sys.platform == "darwin":
        # What Apple's GPUs cannot do runs on the CPU; PyTorch warns of it. Read when it is imported.
        os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    try:
        # Imported late: Lightning takes seconds to import, and --help and --version do not need it.
        command = words[0]
        if command not in ALL:
            raise ValueError(
                f"Unknown command {command}{options.closest(command, ALL)}. "
                "`mpunet --help` lists the commands."
            )
        if {"-h", "--help"} & set(words):
            print(_help(command))
            return 0
        words = ["--help" if word == "--help_all" else word for word in words]
        if command in COMMANDS:
            status: int = import_module(COMMANDS[command][0]).run(words[1:])
        else:
            from mpunet.cli.lightning_cli import run

            status = run(words)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE, as in a shell
    except (ValueError, OSError) as error:
        if debug:
            raise
        print(f"mpunet: error: {error}", file=sys.stderr)
        return 2


def _help(command: str) -> str:
    if command in options.COMMANDS:
        return options.help_text(command)
    _, file, function, example = COMMANDS[command]
    text = function_help(command, file, function, example)
    return f"{text}\n\nmpunet {command} --help_all explains each option in full."


def _option_names(command: str) -> list[str]:
    """Return the options that the help of a command lists."""
    return sorted({"--help", "--help_all", *re.findall(r"^  (--[\w.]+)", _help(command), re.M)})


if __name__ == "__main__":
    sys.exit(main())
