"""From matplotlib to SVG that lives in a page: colours are the page's own, text is text, equal input gives equal bytes.

Figures are drawn in placeholder colours that are replaced by the page's CSS variables, so one drawing reads well on
light, dark and paper.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

WIDTH = 360.0
"""Points. A figure is as wide as a phone, so that its text stays readable there; on a desk two stand side by side."""
VARIABLES = (
    "ink", "muted", "grid", "teacher", "labels", "clean", "noisy", "paper", "s1", "s2", "s3", "s4", "s5", "s6",
)  # fmt: skip
COLOURS = {name: f"#0a0b{16 + number:02x}" for number, name in enumerate(VARIABLES)}
"""Name -> placeholder. `COLOURS["clean"]` becomes `var(--clean)` in the page."""
SERIES = ("s1", "s2", "s3", "s4", "s5", "s6")
MARKERS = ("o", "s", "^", "D", "v", "P")
_SVG, _LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "legend.fontsize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "axes.formatter.useoffset": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.2,
    "legend.borderaxespad": 0.0,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "axes.linewidth": 0.8,
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "xtick.minor.size": 0.0,
    "ytick.minor.size": 0.0,
    "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.edgecolor": COLOURS["muted"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.labelcolor": COLOURS["ink"],
    "axes.grid": True,
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.7,
}


def draw(name: str, height: float, alt: str, paint: Callable[[Canvas], None], width: float = WIDTH) -> str:
    """The figure as an `<svg>` element; `alt` is what it says to somebody who cannot see it.

    name: unique in the page, in front of every id of the drawing. height and width in points. `paint` is handed the
    empty matplotlib figure.
    """
    import matplotlib.style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    # Defaults, whatever the user's own matplotlibrc says: it must not change the bytes.
    with (
        matplotlib.style.context({**_STYLE, "svg.hashsalt": f"noisyteacher {name}"}, after_reset=True),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message=r"Glyph \d+")  # the page's own font will have it
        figure = Canvas(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure)
        target = io.StringIO()
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(target.getvalue(), name, alt)


def legend(figure: Canvas, axes: Axes, columns: int = 2) -> None:
    """A legend above the axes, where it hides nothing; none for a single unnamed line."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper left", ncols=columns)


def colours(kinds: Sequence[str]) -> list[str]:
    """A colour per line: the kind's own where it is there once, else the next of the series."""
    following = iter(SERIES * (1 + len(kinds) // len(SERIES)))
    return [COLOURS[kind if kinds.count(kind) == 1 and kind in COLOURS else next(following)] for kind in kinds]


def plain_numbers(axes: Axes) -> None:
    """Ticks of a logarithmic y axis as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 200 else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def whole_numbers(axes: Axes) -> None:
    """Ticks of the x axis at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))


_SENTINEL = re.compile("|".join(re.escape(value) for value in COLOURS.values()), re.IGNORECASE)
_NAMED = {value: f"var(--{name})" for name, value in COLOURS.items()}
_FONT = re.compile(r"font:\s*((?:[\w-]+\s+)*?)([\d.]+px)[^;]*")
_FAMILY = re.compile(r"font-family:[^;]*;?\s*")


def _inline(text: str, name: str, alt: str) -> str:
    """matplotlib's file as an element of a page: no prolog, metadata or style sheet; ids, colours, font the page's."""
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(text)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        element.tail = None
        if element.tag != f"{{{_SVG}}}text" and not (element.text or "").strip():
            element.text = None
        for key, value in list(element.attrib.items()):
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif key == f"{{{_LINK}}}href":
                del element.attrib[key]
                element.set("href", f"#{name}-{value[1:]}" if value.startswith("#") else value)
            elif key == "style":
                # One declaration each: a presentation attribute cannot hold a variable, a style can.
                value = _SENTINEL.sub(lambda found: _NAMED[found[0].lower()], value)
                value = _FONT.sub(r"font-weight: \1; font-size: \2", value).replace("font-weight: ; ", "")
                element.set(key, _FAMILY.sub("", value))
            elif key == "clip-path":
                element.set(key, value.replace("url(#", f"url(#{name}-"))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", alt)
    return ElementTree.tostring(root, encoding="unicode")
