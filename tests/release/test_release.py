"""What a release is made of: the oldest dependencies, the workflows, the container."""

import re
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest needs it

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_oldest_is_what_pyproject_allows():
    bounds = {}
    extras = PROJECT["optional-dependencies"].values()
    for requirement in [*PROJECT["dependencies"], *(one for extra in extras for one in extra)]:
        found = re.fullmatch(r"([\w-]+)(?:\[[\w,]+\])?>=([\d.]+)(,<\d+)?", requirement)
        if requirement.startswith("mpunet["):
            continue
        assert found, f"{requirement}: give a lower bound, and nothing else but an upper one"
        bounds[found[1]] = found[2]
    lines = (ROOT / "tests/release/oldest.txt").read_text(encoding="utf-8").splitlines()
    oldest = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert oldest == bounds


def test_workflows_call_make_and_nothing_else():
    """What runs there can be run here; the Makefile has each command once."""
    yaml = pytest.importorskip("yaml")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE))
    called = set()
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
        for step in (step for job in jobs.values() for step in job["steps"] if "run" in step):
            found = re.fullmatch(r"make ([a-z]+) PYTHON=python", step["run"])
            assert found, f"{path.name}: {step['run']}"
            called.add(found[1])
    assert called <= targets
    assert {"lint", "test", "oldest", "docs", "build"} <= called
