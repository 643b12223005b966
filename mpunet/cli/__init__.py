"""The commands of ``mpunet``, one file each; nothing else in the package parses arguments.

:mod:`mpunet.__main__` picks the command. Those that need a model or data for training are
:mod:`mpunet.cli.lightning_cli`.
"""

__all__: list[str] = []
