"""The direction of imports, read from the syntax trees of the package: cli → module, inference → models, losses, data → geometry."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mpunet

ROOT = Path(mpunet.__file__).parent
# A part imports its own level and those below it.
LEVEL = {
    **dict.fromkeys(("geometry", "intensity", "schedule", "config", "memory", "muon", "ssim", "quality", "whole_file"), 0),
    **dict.fromkeys(("models", "losses", "metrics", "data"), 1),
    **dict.fromkeys(("inference", "evaluation", "weights", "pictures", "module", "adversarial", "callbacks"), 2),
    **dict.fromkeys(("cli", "info", "benchmark", "__main__", "__init__"), 3),
}
LIGHTNING = {
    "mpunet.callbacks",
    "mpunet.cli",
    "mpunet.data.datamodule",
    "mpunet.inference.writer",
    "mpunet.module",
}


def module_name(path):
    return ".".join(("mpunet", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


def part_exists(name):
    return (ROOT / name).is_dir() or (ROOT / f"{name}.py").is_file()


def imports(path):
    """Every module that a file imports, inside of functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            parts = [f"mpunet.{alias.name}" for alias in node.names if node.module == "mpunet" and part_exists(alias.name)]
            yield from parts or [node.module]


FILES = {module_name(path): set(imports(path)) for path in sorted(ROOT.rglob("*.py"))}


def part(module):
    """``geometry`` for mpunet.geometry, ``data`` for mpunet.data.cache."""
    return module.split(".")[1] if "." in module else "__init__"


@pytest.mark.parametrize("module", FILES)
def test_imports_point_down(module):
    assert part(module) in LEVEL, f"{module} is new: give it a level"
    for other in FILES[module]:
        if other.startswith("mpunet."):
            assert LEVEL[part(other)] <= LEVEL[part(module)], f"{module} imports {other}"


def test_networks_and_losses_know_neither_data_nor_each_other():
    for module, others in FILES.items():
        for one, barred in (("models", ("data", "losses", "metrics")), ("losses", ("data", "models", "metrics"))):
            if part(module) == one:
                assert not [o for o in others if o.startswith("mpunet.") and part(o) in barred], module


def test_evaluation_needs_no_network():
    for module, others in FILES.items():
        if part(module) == "evaluation":
            assert not [o for o in others if o.startswith("mpunet.") and part(o) in ("models", "module", "weights")], module


def test_lightning_stays_where_it_belongs():
    found = {m for m, others in FILES.items() if any(o.split(".")[0] in ("lightning", "pytorch_lightning") for o in others)}
    assert found <= LIGHTNING


def test_what_an_import_brings_in():
    code = """if True:
        import sys, mpunet
        print(sorted({"torch", "lightning", "monai"} & set(sys.modules)))
        mpunet.MPUNet
        import mpunet.losses, mpunet.metrics
        print(sorted({"torch", "lightning", "monai"} & set(sys.modules)))
    """
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == ["[]", "['torch']"]


def test_public_names():
    assert set(dir(mpunet)) == set(mpunet.__all__)
    assert mpunet.MPUNet is mpunet.models.MPUNet
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        mpunet.Nothing  # noqa: B018


@pytest.mark.parametrize("module", FILES)
def test_every_module_lists_its_names(module):
    path = ROOT.joinpath(*module.split(".")[1:])
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), module
    assert any(isinstance(n, ast.Assign) and [getattr(t, "id", "") for t in n.targets] == ["__all__"] for n in tree.body), module
