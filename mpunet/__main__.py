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

  check         check training data:        mpunet check DATA
  simulate      simulate thick slices:      mpunet simulate THIN THICK --ratio 5
  fit-profile   fit a slice profile:        mpunet fit-profile THIN THICK
  fit           train a network:            mpunet fit --config examples/mpunet.yaml
                                              --data.train_dir DIR --data.val_dir DIR
  validate      metrics, validation data:   mpunet validate --ckpt_path CKPT --data.val_dir DIR
  test          metrics, test data:         mpunet test --ckpt_path CKPT --data.test_dir DIR
  predict       predict thin slices:        mpunet predict --data.predict_dir SCANS
                                              --writer.output_dir THIN [--ckpt_path CKPT]
  info          describe a network:         mpunet info [CKPT]
  export        write a weights file:       mpunet export CKPT FILE.safetensors
  evaluate      measure predictions:        mpunet evaluate THIN TRUTH --inputs SCANS --output OUT
  view          show volumes on a page:     mpunet view a.nii.gz b.nii.gz --output page.html
  reader-study  sensitivity and precision:  mpunet reader-study FINDINGS.csv STANDARD.csv
                                              --output OUT
  benchmark     train and compare methods:  mpunet benchmark --rows examples/table1 --train_dir DIR
                                              --test_dir DIR --output_dir OUT --minutes 30

`mpunet COMMAND --help` lists the options. --debug shows the traceback of an error.
Exit status: 0 success; 1 some volumes, cases or rows failed (predict writes the reasons to
manifest.jsonl in its output folder); 2 wrong usage or bad input."""

# Commands that need no Trainer: module.run(args) returns the exit status.
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
    """Run the command line and return the exit status.

    Args:
        args: command line arguments; by default those of the process.
    """
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
        # Imported late: Lightning takes seconds to import, and --help and --version do not need it.
        if words[0] in COMMANDS:
            status: int = import_module(COMMANDS[words[0]]).run(words[1:])
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


if __name__ == "__main__":
    sys.exit(main())
