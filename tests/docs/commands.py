"""README and docs as text: their fenced blocks, and the words of each command."""

import re
import shlex
from functools import cache
from itertools import pairwise
from pathlib import Path

from mpunet.__main__ import ALL

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *DOCS,
    *sorted((ROOT / "examples").rglob("*.md")),
]
FENCE = re.compile(r"^( *)(`{3,})([^\n`]*)\n(.*?)^\1\2 *$", re.DOTALL | re.MULTILINE)
# Words before a command that is ours.
WRAPPERS = ("srun", "torchrun", "docker", "apptainer")


def name_of(page):
    return page.relative_to(ROOT).as_posix()


@cache
def text_of(page):
    return page.read_text(encoding="utf-8")


def blocks(page, *languages):
    return [
        block
        for _, _, language, block in FENCE.findall(text_of(page))
        if language.split()[:1] in [[x] for x in languages]
    ]


def python_file(page, name):
    """The Python block of a page whose first line names it as a file."""
    [found] = [text for text in blocks(page, "python") if text.startswith(f"# {name}")]
    return found


def command_lines(page):
    """Words of each command in the fenced shell blocks."""
    for block in blocks(page, "bash", "sh"):
        text = re.sub(r"<<-?\s*'?(\w+)'?.*?^\1$", "", block, flags=re.DOTALL | re.MULTILINE)
        for line in text.replace("\\\n", " ").splitlines():
            command, before = [], None
            for word in [*shlex.split(line, comments=True), ";"]:
                if word in ("|", "&&", "||", ";", "&"):
                    if command:
                        yield command
                    command = []
                elif word in (">", ">>", "<", "2>&1") or before in (">", ">>", "<"):
                    pass  # a redirection
                elif command or not re.match(r"\w+=", word):  # NAME=value before a command
                    command.append(word)
                before = word


def ours(command):
    """The part of a command that mpunet or Python runs, if there is one."""
    if command[0] in WRAPPERS:
        for at, (word, following) in enumerate(pairwise(command)):
            if word == "python" or (word == "mpunet" and following in ALL):
                return command[at:]
    return command
