"""HTML reports: one file that opens anywhere, without network, fonts or scripts from elsewhere.

A :class:`Page` is a value: sections of blocks (:class:`Paragraph`, :class:`Figures`,
:class:`Table`, :class:`Chart`, :class:`Gallery`, :class:`Swipe`), and where it all comes
from. Pictures and charts lie inside the file. All text is escaped; the page's own policy
forbids the browser to load anything. It is readable in light and dark, and on paper.
"""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from gimseg import __version__
from gimseg.charts import LineChart, draw_svg
from gimseg.errors import ReportError
from gimseg.outputs import write_text

Cell: TypeAlias = str | int | float | None
Kind = Literal["text", "count", "number", "share", "change"]
_JPEG_QUALITY = 88


@dataclass(frozen=True)
class Column:
    """A column of a table, and how its cells are written.

    Args:
        name: its heading.
        kind: ``"text"``; ``"count"``, a whole number; ``"number"``, with three decimals;
            ``"share"``, a number of 0 to 1 with a bar behind it; ``"change"``, with its
            sign, green above 0 and red below.
        help: what it means, shown when the mouse rests on the heading.

    Raises:
        ReportError: there is no such kind.
    """

    name: str
    kind: Kind = "text"
    help: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ReportError(f"column {self.name!r} is of kind {self.kind!r}: needed is one of {get_args(Kind)}")

    def text(self, cell: Cell) -> str:
        """A cell as a person reads it; nothing known is a dash.

        Example:
            >>> Column("gain", "change").text(0.0314), Column("px", "count").text(12345), Column("x").text(None)
            ('+0.031', '12,345', '–')
        """
        if cell is None or is_nothing(cell):
            return "–"
        if isinstance(cell, str) or self.kind == "text":
            return str(cell)
        form = {"count": ",.0f", "change": "+.3f"}.get(self.kind, ".3f")
        return format(cell, form).replace("-", "−").replace("inf", "∞")


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str
    kind: ClassVar[str] = "paragraph"


@dataclass(frozen=True)
class Figures:
    """A few numbers that matter most, large.

    Args:
        items: (what it is, the number as text, a line below it).
    """

    items: tuple[tuple[str, str, str], ...]
    kind: ClassVar[str] = "figures"


@dataclass(frozen=True)
class Table:
    """Rows and columns; a click on a heading sorts.

    Args:
        columns: headings.
        rows: as many cells each as there are columns.
        caption: what it shows.
        sortable: headings are buttons.

    Raises:
        ReportError: a row of another length.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    sortable: bool = True
    kind: ClassVar[str] = "table"

    def __post_init__(self) -> None:
        wrong = [len(row) for row in self.rows if len(row) != len(self.columns)]
        if wrong:
            raise ReportError(f"a row has {wrong[0]} cells, the table {len(self.columns)} columns: one each is needed")


@dataclass(frozen=True, eq=False)
class Picture:
    """An image inside the page.

    Args:
        pixels: uint8 (rows, cols, 3) or, with transparency, (rows, cols, 4).
        caption: the line below it, and its description for those who cannot see it.
        photo: written as JPEG, a fifth of the bytes; else PNG, exact.

    Raises:
        ReportError: other pixels.
    """

    pixels: np.ndarray
    caption: str = ""
    photo: bool = True

    def __post_init__(self) -> None:
        shape = self.pixels.shape
        if self.pixels.dtype != np.uint8 or len(shape) != 3 or shape[2] not in (3, 4):
            raise ReportError(f"a picture is {self.pixels.dtype} {shape}: needed is uint8 (rows, cols, 3 or 4)")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, px."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def source(self) -> str:
        """The image as a ``data:`` address."""
        jpeg = self.photo and self.pixels.shape[2] == 3
        stream = io.BytesIO()
        if jpeg:
            Image.fromarray(self.pixels).save(stream, "JPEG", quality=_JPEG_QUALITY)
        else:
            Image.fromarray(self.pixels).save(stream, "PNG", optimize=True)
        encoded = base64.b64encode(stream.getvalue()).decode("ascii")
        return f"data:image/{'jpeg' if jpeg else 'png'};base64,{encoded}"


@dataclass(frozen=True)
class Gallery:
    """Rows of pictures that belong together, as image, truth and prediction of a place.

    Args:
        rows: each a line of text and its pictures.
    """

    rows: tuple[tuple[str, tuple[Picture, ...]], ...]
    kind: ClassVar[str] = "gallery"


@dataclass(frozen=True)
class Swipe:
    """Two or three pictures of one size over one another, with dividers to drag between them.

    Args:
        pictures: from left to right.
        caption: what they show.

    Raises:
        ReportError: another number of pictures, or sizes that differ.
    """

    pictures: tuple[Picture, ...]
    caption: str = ""
    kind: ClassVar[str] = "swipe"

    def __post_init__(self) -> None:
        if len(self.pictures) not in (2, 3) or len({picture.size for picture in self.pictures}) != 1:
            sizes = ", ".join("{} x {}".format(*picture.size) for picture in self.pictures)
            raise ReportError(f"pictures of {sizes} px: two or three of one size are needed")

    @property
    def dividers(self) -> tuple[float, ...]:
        """Where the dividers begin, percent of the width."""
        return tuple(100 * place / len(self.pictures) for place in range(1, len(self.pictures)))


@dataclass(frozen=True)
class Chart:
    """Line charts side by side.

    Args:
        panels: one or a few.
        caption: what they show.
    """

    panels: tuple[LineChart, ...]
    caption: str = ""
    kind: ClassVar[str] = "chart"

    def svg(self) -> Markup:
        """The charts, in colours that follow the page's."""
        return Markup(draw_svg(self.panels))


Block: TypeAlias = Paragraph | Figures | Table | Gallery | Swipe | Chart


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it.

    Args:
        title: the heading.
        blocks: in order.
        folded: closed until a click opens it.
    """

    title: str
    blocks: tuple[Block, ...]
    folded: bool = False


@dataclass(frozen=True)
class Page:
    """A report.

    Args:
        title: what it is about.
        sections: in order; the page lists them at its head.
        subtitle: a line below the title.
        provenance: settings and origins, at the end; gimseg's version is added.

    Example:
        >>> table = Table((Column("class"), Column("IoU", "share")), (("roof <b>", 0.8),))
        >>> html = Page("Scores", (Section("Classes", (table,)),)).to_html()
        >>> "roof &lt;b&gt;" in html, "0.800" in html, "http://" in html
        (True, True, False)
    """

    title: str
    sections: tuple[Section, ...]
    subtitle: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def to_html(self) -> str:
        """The page as one file's text."""
        return _template().render(page=self, version=__version__, is_nothing=is_nothing)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the page, replacing what was there.

        Raises:
            OutputError: it cannot be written.
        """
        write_text(path, self.to_html())


def is_nothing(cell: Cell) -> bool:
    """Whether there is no value: None or NaN."""
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gimseg"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")
