"""The layers of the package (docs/architecture.md), checked on its syntax trees.

A room is a subpackage or module, a floor a layer. Imports point to lower floors or stay in a room.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mpunet

ROOT = Path(mpunet.__file__).parent
# From the lowest up. A room imports itself and lower floors, but no other room on its own floor.
FLOORS = [
    {"geometry", "intensity", "config", "pretrained", "memory", "progress"},
    {"losses", "models", "slices", "phantom"},
    {"io", "metrics"},
    {"lungs"},
    {"data"},
    {"weights", "evaluation"},
    {"export"},
    {"inference", "report"},
    {"training", "reader_study"},
    {"benchmark"},
    {"cli"},
    {"__main__", "__init__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
GROUND = FLOORS[0]
LIGHTNING = {
    "mpunet.cli.lightning_cli",
    "mpunet.data.crops",
    "mpunet.data.datamodule",
    "mpunet.inference.writer",
    "mpunet.training.callbacks",
    "mpunet.training.module",
    "mpunet.training.recorded_module",
}
JSONARGPARSE = ("jsonargparse", "argparse")


def module_name(path):
    return ".".join(("mpunet", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
        ".__init__"
    )


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports(path):
    """Every module that a file imports, inside of functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in names)


IMPORTS = {module: set(imports(path)) for module, path in MODULES.items()}


def room(module):
    """``geometry`` for mpunet.geometry, ``data`` for mpunet.data.cache.entry."""
    return module.split(".")[1] if "." in module else "__init__"


def ours(module):
    """What a module imports of the package; but for ``from mpunet import __version__``."""
    return {other for other in IMPORTS[module] if other.startswith("mpunet.")}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    here = room(module)
    assert here in FLOOR, f"{here}/ is new: give it a floor"
    for other in ours(module):
        there = room(other)
        allowed = (
            there == here
            if FLOOR[there] == FLOOR[here] and here not in GROUND
            else FLOOR[there] <= FLOOR[here]
        )
        assert allowed, (
            f"room {here} (floor {FLOOR[here]}) may not import room {there} "
            f"(floor {FLOOR[there]}): {module} imports {other}"
        )


def barred(rooms, *others):
    """Imports of some rooms that reach into others."""
    return [(m, o) for m in MODULES if room(m) in rooms for o in ours(m) if room(o) in others]


def test_networks_and_losses_know_neither_data_nor_each_other():
    assert not barred(["models"], "data", "losses", "metrics", "io")
    assert not barred(["losses"], "data", "models", "metrics", "io")


def test_judging_needs_no_network():
    assert not barred(
        ["metrics", "evaluation", "report", "reader_study"],
        "models",
        "training",
        "weights",
        "inference",
    )


def test_lightning_stays_where_it_belongs():
    found = {
        m
        for m, others in IMPORTS.items()
        if any(o.split(".")[0] in ("lightning", "pytorch_lightning") for o in others)
    }
    assert found <= LIGHTNING


def test_arguments_are_parsed_in_one_room():
    found = {
        m for m, others in IMPORTS.items() if any(o.split(".")[0] in JSONARGPARSE for o in others)
    }
    assert {room(m) for m in found} == {"cli"}


def test_rooms_are_small():
    """Someone who opens a folder sees what is in it."""
    for folder in {path.parent for path in MODULES.values()}:
        most = 9 if folder == ROOT else 14
        names = sorted(path.name for path in folder.glob("*.py"))
        assert len(names) <= most, (
            f"{folder.name}/ has {len(names)} files, {most} are allowed: {names}"
        )


def test_what_an_import_brings_in():
    code = """if True:
        import sys, mpunet
        print(sorted({"torch", "lightning", "monai"} & set(sys.modules)))
        mpunet.MPUNet
        import mpunet.losses, mpunet.metrics.quality
        print(sorted({"torch", "lightning", "monai"} & set(sys.modules)))
    """
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert out.splitlines() == ["[]", "['torch']"]


def test_public_names():
    assert set(dir(mpunet)) == set(mpunet.__all__)
    assert mpunet.MPUNet is mpunet.models.MPUNet
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        mpunet.Nothing  # noqa: B018


@pytest.mark.parametrize("module", MODULES)
def test_every_module_lists_its_names(module):
    tree = ast.parse(MODULES[module].read_text())
    assert ast.get_docstring(tree), module
    assigned = {
        target.id
        for n in tree.body
        if isinstance(n, (ast.Assign, ast.AnnAssign))
        for target in targets(n)
    }
    assert "__all__" in assigned, module


def targets(node):
    every = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [target for target in every if isinstance(target, ast.Name)]
