"""How figures of a report look, how they are kept as files, and how they become part of a page, bright or dark."""

import re
from base64 import b64encode
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup, escape

from fedsim.report.page_template import render
from fedsim.storage.disk import own_bytes, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#333333"
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#5b4ea3", "#8fb339", "#777777")
"""Colours that the colour-blind can tell apart; the page has a brighter one of each for the dark."""
STYLE = {
    "svg.hashsalt": "fedsim",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "text.parse_math": False,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
INKS = ("#000000", INK, "black")
WIDEST = 1.6
"""CSS pixels for a point of a figure, at most."""
ACTIVE = re.compile(r"<script|<foreignobject|<iframe|\son\w+\s*=|@import|javascript:", re.IGNORECASE)
LOADS = re.compile(r"(?:href|src)\s*=\s*[\"'](?!#|data:image/)|url\(\s*[\"']?(?!#|data:image/)", re.IGNORECASE)


@dataclass(frozen=True)
class Picture:
    """A figure of a page: its SVG, what to call its files, its title and what it shows, in words."""

    svg: str = field(repr=False)
    name: str
    title: str
    words: str
    is_wide: bool = False
    pdf: bytes | None = field(default=None, repr=False)
    is_foreign: bool = False
    """Read from a run folder, which somebody else may have made: shown as an image, in which nothing runs or loads."""
    how: str = ""
    """How it is read, in a sentence or two under it."""

    def html(self, files: str = "") -> Markup:
        """Return a <figure>; `files` is where its files lie, as the page sees it."""
        drawn = image(self.svg, self.words) if self.is_foreign else inlined(self.svg, self.name, self.words)
        return render("figure", picture=self, files=files, drawn=drawn)

    def _repr_svg_(self) -> tuple[str, dict[str, str]]:
        """What a notebook shows of it, and what it says where it cannot."""
        return self.svg, {"alt": self.words}

    def save(self, folder: Path) -> None:
        """Write the PDF and the SVG, for a paper."""
        if self.pdf is not None:
            write_atomically(folder / f"{self.name}.pdf", self.pdf)  # a rename: no link there is written through
            write_atomically(folder / f"{self.name}.svg", self.svg.encode())


def drawing() -> AbstractContextManager[None]:
    """Figures made and saved inside look alike."""
    import matplotlib as mpl

    return mpl.rc_context(STYLE)


def new_figure(width: float = 4.2, height: float = 3.0) -> "tuple[Figure, Axes]":
    """Return an empty figure and its axes; call it inside `drawing()`."""
    from matplotlib.figure import Figure  # here: half a second that only a report pays for

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def picture(figure: "Figure", name: str, title: str, words: str, is_wide: bool = False) -> Picture:
    """Return a figure as a picture; the same figure gives the same bytes."""
    svg, pdf = BytesIO(), BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None}, transparent=True)
    figure.set_layout_engine("none")  # what the first has settled holds for the second
    figure.savefig(pdf, format="pdf", metadata={"CreationDate": None})
    return Picture(svg.getvalue().decode(), name, title, words, is_wide, pdf.getvalue())


def image(svg: str, words: str) -> Markup:
    """Return an SVG as an image: browsers neither run nor load nor follow anything inside."""
    return render("image", words=words, data=b64encode(svg.encode()).decode())


def inlined(svg: str, name: str, words: str) -> Markup:
    """Return an SVG as part of a page: ids of its own, colours of the page, nothing that runs or loads.

    One that holds a script or a reference to elsewhere becomes an image, in which browsers neither run nor load.
    """
    root = svg[svg.find("<svg") :]
    root = re.sub(r"<metadata>.*?</metadata>", "", root, flags=re.DOTALL)
    if ACTIVE.search(root) or LOADS.search(root):
        return image(svg, words)
    prefix = re.sub(r"\W", "-", name)
    root = re.sub(r'\bid="', f'id="{prefix}-', root)
    root = re.sub(r'href="#', f'href="#{prefix}-', root)
    root = re.sub(r"url\(#", f"url(#{prefix}-", root)
    colours = dict.fromkeys(INKS, "currentColor") | {"#ffffff": "var(--paper)", "white": "var(--paper)"}
    colours |= {colour: f"var(--line-{index})" for index, colour in enumerate(LINES)}
    root = re.sub(
        r"(fill|stroke|stop-color): ?(#[0-9a-fA-F]{6}|black|white)\b",
        lambda found: f"{found[1]}: {colours.get(found[2].lower(), found[2])}",
        root,
    )
    width = re.search(r'<svg[^>]*\bwidth="([\d.]+)', root)
    widest = f' style="max-width: {WIDEST * float(width[1]):.0f}px"' if width else ""
    return Markup(root.replace("<svg", f'<svg role="img" aria-label="{escape(words)}"{widest}', 1))


def legend(axes: "Axes", columns: int = 2) -> None:
    """Say what is what under the figure, where it hides nothing."""
    figure = axes.get_figure()
    assert figure is not None
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns)


def read_picture(path: Path, name: str) -> Picture | None:
    """Return a figure that a run left as a file; None when it is no SVG."""
    if not is_own_file(path):
        return None
    svg = own_bytes(path).decode(errors="replace")
    try:
        ElementTree.fromstring(svg)
    except ElementTree.ParseError:
        return None
    title = path.stem.replace("_", " ").replace("-", " ").capitalize()
    pdf = path.with_suffix(".pdf")
    printed = own_bytes(pdf) if is_own_file(pdf) else None
    return Picture(svg, name, title, f"{title} of this run", True, printed, is_foreign=True)


def is_own_file(path: Path) -> bool:
    """Whether a path is a file itself and not a link to one, a pipe or a device."""
    return path.is_file() and not path.is_symlink()
