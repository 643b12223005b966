"""The console command: ``mpunet`` and ``python -m mpunet``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from mpunet import __version__

__all__ = ["main"]

USAGE = """\
usage: mpunet [--version] [--debug] COMMAND [options]

Thin-slice CT from thick-slice CT. Research software, not a medical device.

  check         look over training data:    mpunet check DATA
  simulate      thick slices of thin ones:  mpunet simulate THIN THICK --ratio 5
  fit-profile   slice profile of a pair:    mpunet fit-profile THIN THICK
  fit           train a network:            mpunet fit --config examples/mpunet.yaml --data.train_dir DIR --data.val_dir DIR
  validate      measure on whole volumes:   mpunet validate --ckpt_path CKPT --data.val_dir DIR
  test          likewise, on test data:     mpunet test --ckpt_path CKPT --data.test_dir DIR
  predict       thin slices of a folder:    mpunet predict --data.predict_dir SCANS --writer.output_dir THIN [--ckpt_path CKPT]
  info          what a network is:          mpunet info [CKPT]
  export        weights to hand on:         mpunet export CKPT FILE.safetensors
  evaluate      measure predictions:        mpunet evaluate THIN TRUTH --inputs SCANS --output OUT
  view          look at volumes:            mpunet view a.nii.gz b.nii.gz --output page.html
  reader-study  sensitivity and precision:  mpunet reader-study FINDINGS.csv STANDARD.csv --output OUT
  benchmark     train and compare methods:  mpunet benchmark --rows examples/table1 --train_dir DIR --test_dir DIR --output_dir OUT --minutes 30

`mpunet COMMAND --help` lists the options. --debug shows the traceback of an error.
Exit status: 0 done, 1 some volumes or rows failed (manifest.jsonl beside the results says which and why), 2 wrong usage or bad input."""

# Commands that need no Trainer: the function run(args) of a module returns the exit status.
COMMANDS = {
    "benchmark": "mpunet.cli.benchmark",
    "check": "mpunet.cli.check",
    "evaluate": "mpunet.cli.evaluate",
    "export": "mpunet.cli.export",
    "fit-profile": "mpunet.cli.fit_profile",
    "info": "mpunet.cli.info",
    "reader-study": "mpunet.cli.reader_study",
    "simulate": "mpunet.cli.simulate",
    "view": "mpunet.cli.view",
}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line with ``args`` (by default the process's) and return the exit status."""
    words = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if words else 2
    if words[0] == "--version":
        print(f"mpunet {__version__}")
        return 0
    try:
        # Here, as Lightning takes seconds to import: not for --help and --version.
        if words[0] in COMMANDS:
            status: int = import_module(COMMANDS[words[0]]).run(words[1:])
        else:
            from mpunet.cli.lightning_cli import run

            status = run(words)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever reads the output, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a shell says of SIGPIPE
    except (ValueError, OSError) as error:
        if debug:
            raise
        print(f"mpunet: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
