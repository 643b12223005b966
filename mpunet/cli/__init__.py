"""The commands of ``mpunet``, one module each. No other part of the package parses arguments.

:mod:`mpunet.__main__` selects the command. The commands that use Lightning (fit, validate, test
and predict) are in :mod:`mpunet.cli.lightning_cli`.
"""

__all__: list[str] = []
