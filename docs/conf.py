"""How Sphinx builds the site: `make docs`. Everything a page needs is in it; nothing is fetched by a reader."""

from __future__ import annotations

import inspect
import re
from typing import Any

import noisyteacher

project = "noisyteacher"
author = "the noisyteacher authors"
copyright = f"{author}, Apache-2.0"  # noqa: A001
release = version = noisyteacher.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "index"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
smartquotes = False  # "--sigma" has two hyphens
highlight_language = "none"  # indented blocks are layouts and formulas; code says its language

# Docstrings are plain English with `code` in single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"noisyteacher {release}"
html_show_sphinx = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "sidebar_hide_name": False,
    "navigation_with_keys": True,
    "top_of_page_buttons": [],
}
pygments_style = "friendly"
pygments_dark_style = "native"


def as_paragraphs(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Start a paragraph, its first words bold, where a docstring comes to an argument, the errors or the source.

    The docstrings are prose: `seed: of the run. limit: at most this many rows. Raises DataError ...`. Doctests stay.
    """
    try:
        arguments = "|".join(map(re.escape, inspect.signature(obj).parameters)) or "^"
    except (TypeError, ValueError):
        arguments = "^"
    begin = re.compile(rf"(?:^|(?<=[.;] ))(`?(?:{arguments})`?(?:, `?(?:{arguments})`?)*:|Raises|Source:)(?= )")
    found: list[str] = []
    for block in "\n".join(lines).split("\n\n"):
        if ">>>" in block:
            found.append(block)
            continue
        first, *others = begin.split(" ".join(block.split()))
        found.append(first.strip())
        found += [f"**{word.replace('`', '')}**{told}" for word, told in zip(others[::2], others[1::2], strict=True)]
    lines[:] = [*"\n\n".join(found).split("\n"), ""]


def setup(app: Any) -> None:
    """What Sphinx asks of its configuration beyond values."""
    app.connect("autodoc-process-docstring", as_paragraphs)
