"""README and docs: links lead somewhere, commands parse, Python examples compile.

``test_commands.py`` runs the commands.
"""

import argparse
import ast
import inspect
import re
import runpy
import signal
from functools import cache
from importlib import import_module

import jsonargparse
import pytest
from commands import (
    DOCS,
    FENCE,
    PAGES,
    ROOT,
    blocks,
    command_lines,
    name_of,
    ours,
    python_file,
    text_of,
)

from mpunet.__main__ import ALL, main
from mpunet.losses import Objective
from mpunet.models import MPUNet

LINK = re.compile(r"\]\(([^)\s]+)\)")


class Parsed(Exception):  # noqa: N818 - no error
    """Raised where a command has parsed its arguments and would begin."""


@cache
def anchors(page):
    """Anchors of the headings, as GitHub and the site make them."""
    found = []
    for heading in re.findall(r"^#+ +(.+?) *$", FENCE.sub("", text_of(page)), re.MULTILINE):
        plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        number = sum(
            re.fullmatch(re.escape(slug) + r"(-\d+)?", other) is not None for other in found
        )
        found.append(f"{slug}-{number}" if number else slug)
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for link in LINK.findall(FENCE.sub("", text_of(page))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: no such file"
        assert target.is_relative_to(ROOT), f"{link} leaves the repository"
        if anchor:
            assert anchor in anchors(target), f"{link}: the headings are {anchors(target)}"


@pytest.mark.parametrize("page", [ROOT / "README.md", *DOCS], ids=name_of)
def test_prose_lines_are_short(page):
    text = FENCE.sub(lambda block: "\n" * block[0].count("\n"), text_of(page))
    long = [
        f"{number}: {line[:60]}…"
        for number, line in enumerate(text.splitlines(), 1)
        if len(re.sub(r"\]\([^)]*\)", "]", line)) > 100
        and not line.lstrip().startswith(("|", "<!--"))
    ]
    assert not long


def test_navigation_has_every_page():
    listed = set(re.findall(r": (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == {page.name for page in DOCS} | {"changelog.md"}  # which is CHANGELOG.md


def unique(program):
    """Commands of a program, each with the first page that has it."""
    found = {}
    for page in PAGES:
        for command in command_lines(page):
            if (mine := ours(command))[0] == program:
                found.setdefault(tuple(mine), name_of(page))
    return [
        pytest.param(words, id=f"{page}: {' '.join(words)}"[:120]) for words, page in found.items()
    ]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the files that commands name, where parsers stop after parsing."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    (tmp_path / "mine.yaml").write_text("model: {lr: 1.0e-3}\n")
    network = python_file(ROOT / "docs" / "tutorial_network.md", "mynet.py")
    (tmp_path / "mynet.py").write_text(network)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for kind in (argparse.ArgumentParser, jsonargparse.ArgumentParser):
        monkeypatch.setattr(kind, "parse_args", stop_after(kind.parse_args))
    return tmp_path


def stop_after(parse, running=[]):  # noqa: B006 - shared on purpose: parsers call others
    """End a program when its outermost parser has finished."""

    def parse_args(self, *args, **kwargs):
        running.append(self)
        try:
            parsed = parse(self, *args, **kwargs)
        finally:
            running.pop()
        if running:
            return parsed
        raise Parsed

    return parse_args


@pytest.mark.parametrize("words", unique("mpunet"))
def test_command_parses(words, place, capsys):
    try:
        status = main([word for word in words[1:] if word != "--print_config"])
    except Parsed:
        # The parser takes any argument of a class; the class is made later.
        for part, name in re.findall(r"--model\.(net|objective)\.(\w+)", " ".join(words)):
            known = inspect.signature(MPUNet if part == "net" else Objective).parameters
            assert name in known or "mynet.MyNet" in words, f"{part} has no {name}"
        return
    except SystemExit as ended:
        status = ended.code
    # Without parsing: help, version and completion.
    asked = {"--help", "--help_all", "--version", "--completion"} & set(words)
    assert (status, bool(asked)) == (0, True), capsys.readouterr().err


@pytest.mark.parametrize("words", unique("python"))
def test_script_parses(words, place, monkeypatch):
    _, script, *rest = words
    if script == "-c":
        compile(rest[0], "command", "exec")
    elif script == "-m":
        assert rest[0] in (
            "pip",
            "build",
            "twine",
            "venv",
            "pynetdicom",
            "pytest",
            "monai.bundle",
            "mpunet",
        )
    elif script == "phantoms.py":
        assert python_file(ROOT / "docs" / "tutorial_train.md", script)
    else:
        source = (ROOT / script).read_text()
        if "parse_args" in source:
            monkeypatch.setattr("sys.argv", [script, *rest])
            monkeypatch.syspath_prepend((ROOT / script).parent)
            with pytest.raises(Parsed):
                runpy.run_path(str(ROOT / script), run_name="__main__")
        else:
            assert not [word for word in rest if word.startswith("--")], f"{script} has no options"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_prose_exist(page):
    for command in re.findall(r"`mpunet ([a-z][\w-]*)", FENCE.sub("", text_of(page))):
        assert command in ALL


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_examples_compile_and_import(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block, f"{page.name}: python block")):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mpunet"):
                module = import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "mpunet":
                assert hasattr(import_module("mpunet"), node.attr), ast.unparse(node)
