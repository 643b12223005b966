"""MkDocs hook: what the site adds to the Markdown files of ``docs/``.

Pages of the API, one for each room; the help of every command and the default configuration, from
the parsers; the source of functions; equations as MathML, so that no script is needed; pages of the
files that links such as ``../examples/mpunet.yaml`` lead to. On GitHub these links work as they are.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

__all__ = ["on_config", "on_files", "on_page_markdown"]

ROOT = Path(__file__).parents[2]
REPOSITORY_LINK = re.compile(r"(?<=\]\()\.\./([^)#\s]+)")
CODE = re.compile(r"<!-- code: (.*?) -->")
EQUATION = re.compile(r"^```math\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LANGUAGES = {".py": "python", ".yaml": "yaml", ".sh": "bash", ".md": "markdown"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages of the API to the navigation."""
    pages: list[object] = [f"api/{room}.md" for room in _rooms()]
    [reference] = [entry["Reference"] for entry in config.nav or [] if "Reference" in entry]
    reference.append({"API": ["api/index.md", *pages]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add generated pages: API, changelog, and files outside of ``docs/`` that pages link to."""
    generated = {"changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")}
    generated["api/index.md"] = _api_index()
    generated |= {f"api/{room}.md": _api(room, modules) for room, modules in _rooms().items()}
    for file in files.documentation_pages():
        for target in REPOSITORY_LINK.findall(file.content_string):
            if target != "CHANGELOG.md":
                generated[f"source/{target}.md"] = _source(target)
    for name, text in generated.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in what is generated, and lead links to repository files to their pages."""
    if page.file.src_uri == "changelog.md":
        return markdown.replace("](docs/", "](")
    if page.file.src_uri.startswith(("source/", "api/")):
        return markdown
    if "<!-- commands -->" in markdown:
        markdown = markdown.replace("<!-- commands -->", _commands())
    if "<!-- defaults -->" in markdown:
        defaults = _output("fit", "--print_config").partition("\n")[
            2
        ]  # line 1: Lightning's version
        markdown = markdown.replace("<!-- defaults -->", f"```yaml\n{defaults}```")
    markdown = CODE.sub(lambda found: "\n\n".join(map(_code, found[1].split())), markdown)
    markdown = EQUATION.sub(lambda found: _mathml(found[1]), markdown)
    return REPOSITORY_LINK.sub(lambda found: _page_of(found[1]), markdown)


def _mathml(latex: str) -> str:
    return f'<div class="equation">{convert(latex.strip(), display="block")}</div>'


def _code(path: str) -> str:
    """Return a function's or method's source without its docstring, as a block that opens."""
    module = ROOT / path.replace(".", "/")
    names: list[str] = []
    while not module.with_suffix(".py").is_file():
        names.insert(0, module.name)
        module = module.parent
    text = module.with_suffix(".py").read_text(encoding="utf-8")
    node: ast.AST = ast.parse(text)
    for name in names:
        [node] = [part for part in ast.iter_child_nodes(node) if getattr(part, "name", "") == name]
    assert isinstance(node, ast.FunctionDef)
    lines = text.splitlines()
    start, body = node.lineno - 1, node.body[0].lineno - 1
    if ast.get_docstring(node) is not None:
        lines[body : node.body[0].end_lineno] = []
    end = (node.end_lineno or start) - (len(text.splitlines()) - len(lines))
    source = textwrap.indent(textwrap.dedent("\n".join(lines[start:end])), "    ")
    return f'??? example "{path}"\n\n    ```python\n{source}\n    ```'


def _page_of(target: str) -> str:
    return "changelog.md" if target == "CHANGELOG.md" else f"source/{target}.md"


def _source(target: str) -> str:
    """Return a page with the text of a file, or with the names of the files of a folder."""
    path = ROOT / target
    if path.suffix == ".ipynb":
        return _notebook(path)
    if path.is_dir():
        text = "\n".join(sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()))
    else:
        text = path.read_text(encoding="utf-8").rstrip()
    language = LANGUAGES.get(path.suffix, "text")
    fence = "````"
    return f"# `{target}`\n\n{fence}{language}\n{text}\n{fence}\n"


def _notebook(path: Path) -> str:
    """Return the cells of a notebook as Markdown."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = [("".join(cell["source"]), cell["cell_type"]) for cell in cells]
    page = "\n\n".join(
        text if kind == "markdown" else f"```python\n{text}\n```" for text, kind in texts
    )
    return re.sub(r"(?<=\]\()(\w+\.ipynb)", r"\1.md", page)


def _rooms() -> dict[str, list[str]]:
    """Return the modules of each room of the package, by the room's name."""
    rooms: dict[str, list[str]] = {}
    for path in sorted((ROOT / "mpunet").rglob("*.py")):
        *folders, name = path.relative_to(ROOT).with_suffix("").parts
        if name != "__main__" and (len(folders) > 1 or name != "__init__"):
            module = ".".join([*folders, *([] if name == "__init__" else [name])])
            rooms.setdefault(module.split(".")[1], []).append(module)
    return rooms


def _api(room: str, modules: list[str]) -> str:
    """Return the page of a room: its docstring, then each module."""
    options = "    options: {show_root_heading: false, show_root_toc_entry: false, members: false}"
    parts = [f"# `mpunet.{room}`"]
    for module in modules:
        if module == f"mpunet.{room}" and len(modules) > 1:
            parts.append(f"::: {module}\n{options}")
        elif (ROOT / module.replace(".", "/")).is_dir():
            parts.append(f"## `{module}`\n\n::: {module}\n{options}")
        else:
            shown = "    options: {show_root_heading: false, show_root_toc_entry: false}"
            parts.append(f"## `{module}`\n\n::: {module}\n{shown}")
    return "\n\n".join(parts) + "\n"


def _api_index() -> str:
    rooms = "\n".join(f"- [`mpunet.{room}`]({room}.md)" for room in _rooms())
    return f"""# API

Names that `import mpunet` offers: [`Reconstructor`][mpunet.inference.reconstruct.Reconstructor],
[`MPUNet`][mpunet.models.mpunet.MPUNet],
[`MultiStreamHead`][mpunet.models.heads.MultiStreamHead],
[`ProgressiveBackbone`][mpunet.models.backbone.ProgressiveBackbone],
[`MPUNetModule`][mpunet.training.module.MPUNetModule] and
[`ThickThinDataModule`][mpunet.data.datamodule.ThickThinDataModule].

The rooms of the package, each with a page. [Architecture](../architecture.md) says what each is
for. `__all__` of a module lists its public names; everything else may change without notice.

{rooms}
"""


def _output(*args: str) -> str:
    """Return what ``mpunet`` prints."""
    command = [sys.executable, "-m", "mpunet", *args]
    environment = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", cwd=ROOT, env=environment
    )
    if done.returncode:
        raise RuntimeError(f"mpunet {' '.join(args)} failed: {done.stderr}")
    return done.stdout


def _commands() -> str:
    """Return the help of every command, with links to the full text of its options."""
    from mpunet.__main__ import ALL, COMMANDS

    parts = [f"```text\n{_output('--help')}```"]
    for name in sorted(ALL):
        parts.append(f"## mpunet {name}\n\n```text\n{_output(name, '--help')}```")
        if name in COMMANDS:
            _, file, function, _ = COMMANDS[name]
            path = f"mpunet.{file.removesuffix('.py').replace('/', '.')}.{function}"
            parts.append(f"[`{path}`][{path}] explains each option in full.")
        else:
            parts.append("[Configuration](configuration.md) has all dotted options.")
    return "\n\n".join(parts)
