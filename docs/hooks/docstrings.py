"""Griffe extension: turn the reStructuredText in docstrings into Markdown.

Roles such as ``:func:`~mpunet.io.scan_file.open_scan``` become links where the target has a page,
and doctests become code blocks.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

__all__ = ["RolesToLinks"]

ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`(~?)([^`]+)`")
INDICES = re.compile(
    r"(``.+?``|`[^`\n]+`|^ *>>> .*$)|\]\[", re.MULTILINE
)  # x[i][j] would be a link
DOCTEST = re.compile(r"^( *)>>> .*(?:\n\1\S.*)*", re.MULTILINE)


class RolesToLinks(griffe.Extension):
    """Rewrite every docstring of a package once it is loaded."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any) -> None:
        """Rewrite the docstrings of a package."""
        self._rewrite(pkg)

    def _rewrite(self, here: griffe.Object) -> None:
        if here.docstring is not None:
            text = ROLE.sub(lambda role: _link(here, role), here.docstring.value)
            text = INDICES.sub(lambda found: found[1] or "]\\[", text)
            here.docstring.value = DOCTEST.sub(_fenced, text)
        for member in here.members.values():
            if not member.is_alias:
                self._rewrite(member)  # type: ignore[arg-type] # not an alias


def _link(here: griffe.Object, role: re.Match[str]) -> str:
    short, target = role[1] == "~", role[2].removesuffix("()")
    try:
        path = here.modules_collection[target].canonical_path
    except KeyError:
        try:
            path = here.resolve(target)
        except griffe.NameResolutionError:
            path = target
    text = target.rpartition(".")[2] if short else target
    return f'<autoref identifier="{path}" optional><code>{text}</code></autoref>'


def _fenced(doctest: re.Match[str]) -> str:
    indent = doctest[1]
    return f"{indent}```pycon\n{doctest[0]}\n{indent}```"
