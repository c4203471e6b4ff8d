"""The site, built by `make docs`: this folder's pages, the project's own files, the docstrings."""

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

import smolbench

HERE = Path(__file__).parent
FILES = {
    "index": HERE.parent / "README.md",
    "contributing": HERE.parent / "CONTRIBUTING.md",
    "changelog": HERE.parent / "CHANGELOG.md",
    "benchmarks": HERE.parent / "benchmarks" / "README.md",
}
"""Pages that are files of the project elsewhere; what stands in the page itself comes behind."""

project = "smolbench"
author = "the authors of smolbench"
version = release = smolbench.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
suppress_warnings = ["myst.header"]  # a file's first heading stands behind none of a page
html_theme = "furo"
html_title = "smolbench"
myst_heading_anchors = 3
nb_execution_mode = "off"  # its outputs are kept; a test runs it
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say more
napoleon_google_docstring = True
napoleon_numpy_docstring = False


def _as_pages(_: Sphinx, page: str, source: list[str]) -> None:
    """Links from file to file become links from page to page, wherever the files stand."""
    file = FILES.get(page, HERE / f"{page}.md")
    if file.suffix != ".md" or not file.is_file():
        return
    pages = {path: HERE / f"{name}.md" for name, path in FILES.items()}

    def moved(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        if "://" in target:
            return match[0]
        path = Path(os.path.normpath(file.parent / target))
        path = pages.get(path, path)
        if HERE not in path.parents:  # a file of the project that is no page
            return f"{text} (`{path.relative_to(HERE.parent).as_posix()}`)"
        return f"[{text}]({os.path.relpath(path, (HERE / page).parent)}{anchor})"

    link = re.compile(r"\[([^\]]+)\]\(([^)#\s]+)(#[^)]*)?\)")
    text = link.sub(moved, file.read_text(encoding="utf-8"))
    source[0] = f"{text}\n{source[0]}" if page in FILES else text


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _as_pages)
