"""Help of the commands that are functions, read from their source without importing it.

An import of a command brings in torch and takes seconds; its help takes a tenth of a second.
"""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

__all__ = ["function_help"]

ROOT = Path(__file__).parents[1]
WIDTH = 100


def function_help(command: str, file: str, name: str, example: str) -> str:
    """Return the help text of a command.

    The first paragraph of the docstring describes the command, the first sentence of each entry in
    its section "Args" an argument. Arguments before ``*`` are positional.

    Args:
        command: name of the command.
        file: source file in the package, such as ``cli/simulate.py``.
        name: the function, or a class, whose arguments are all options.
        example: command line to paste.
    """
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    [found] = [node for node in tree.body if getattr(node, "name", None) == name]
    assert isinstance(found, (ast.FunctionDef, ast.ClassDef))  # the table of commands says so
    docstring = ast.get_docstring(found) or ""
    function: ast.stmt = found
    if isinstance(found, ast.ClassDef):
        function = next(n for n in found.body if getattr(n, "name", "") == "__init__")
    assert isinstance(function, ast.FunctionDef)
    arguments = function.args
    defaults = dict(zip([a.arg for a in arguments.kwonlyargs], arguments.kw_defaults, strict=True))
    places = [a.arg for a in arguments.args if a.arg != "self"]
    texts = _argument_texts(docstring)
    if isinstance(found, ast.ClassDef):
        defaults = {**dict.fromkeys(places), **defaults}
        places = []
    usage = " ".join([f"mpunet {command}", *(place.upper() for place in places), "[options]"])
    lines = [f"usage: {usage}", ""]
    lines += textwrap.wrap(" ".join(docstring.split("\n\n")[0].split()), WIDTH)
    lines += ["", *_rows([(place.upper(), _sentence(texts[place])) for place in places])]
    rows = [(f"--{key} VALUE", _option(texts[key], value)) for key, value in defaults.items()]
    lines += ["", "options:", *_rows(rows)] if rows else []
    lines += ["", "example:", f"  {example}"]
    return re.sub(r"\n\n\n+", "\n\n", "\n".join(lines))


def _argument_texts(docstring: str) -> dict[str, str]:
    """Return the entries of the section "Args" of a docstring, each as one line."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", docstring, re.DOTALL | re.MULTILINE)
    entries = re.findall(
        r"^    (\w+): (.*?)(?=^    \w+: |\Z)",
        section[1] if section else "",
        re.DOTALL | re.MULTILINE,
    )
    return {name: " ".join(text.split()) for name, text in entries}


def _sentence(text: str) -> str:
    """Return the first sentence, without its full stop and without markup."""
    first = re.split(r"\. (?=[A-Z\"])|\.$", text)[0]
    return re.sub(r":\w+:`~?([^`]+)`|``", r"\1", first)


def _option(text: str, default: ast.expr | None) -> str:
    """Return the help of an option; an option without a default is required."""
    if default is None:
        return f"{_sentence(text)} (required)"
    value = default.value if isinstance(default, ast.Constant) else None
    known = value is None or "efault" in _sentence(text)
    return _sentence(text) + ("" if known else f" (default: {str(value).lower()})")


def _rows(rows: list[tuple[str, str]]) -> list[str]:
    width = 3 + max((len(name) for name, _ in rows), default=0)
    lines = []
    for name, text in rows:
        first, *more = textwrap.wrap(text, WIDTH - width - 2) or [""]
        lines += [f"  {name:{width}s}{first}", *(" " * (width + 2) + line for line in more)]
    return lines
