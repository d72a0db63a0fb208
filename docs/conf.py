"""How Sphinx builds the site: `make docs`. Everything a page needs is in it; nothing is fetched by a reader."""

from __future__ import annotations

import re
from typing import Any

import noisyteacher

project = "noisyteacher"
author = "the noisyteacher authors"
copyright = f"{author}, Apache-2.0"  # noqa: A001
release = version = noisyteacher.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "index"
suppress_warnings = ["toc.empty_glob"]  # pages that a version may or may not have

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
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

PARAGRAPH = re.compile(r"^(`?[a-z_]+`?(?:, `?[a-z_]+`?)*:|Raises|Source:)(?= )")


def as_paragraphs(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Start a paragraph, its first words bold, where a docstring comes to an argument, the errors or the source."""
    found: list[str] = []
    for raw in lines:
        line = raw.strip()  # continuation lines are indented in some; no docstring has a block that needs it
        begun = PARAGRAPH.match(line)
        if begun and found:
            found += ["", f"**{begun[1].replace('`', '')}**{line[begun.end() :]}"]
        else:
            found.append(line)
    lines[:] = found


def setup(app: Any) -> None:
    """What Sphinx asks of its configuration beyond values."""
    app.connect("autodoc-process-docstring", as_paragraphs)
