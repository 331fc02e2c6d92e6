"""Laws of reports: one file, nothing from elsewhere, and text that stays text."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gimseg.charts import Line, LineChart, draw_svg
from gimseg.errors import ReportError
from gimseg.report import Chart, Column, Figures, Gallery, Page, Paragraph, Picture, Section, Swipe, Table

NASTY = "<script>alert(\"1\")</script> & '$x_1$' </svg>"
CHART = LineChart(NASTY, NASTY, NASTY, (Line(NASTY, [0, 1], [0, 1], mark=(0.5, 0.5)), Line("", [0], [1], dashed=True)))


def picture(side: int = 8, channels: int = 3, caption: str = NASTY) -> Picture:
    return Picture(np.full((side, side, channels), 100, np.uint8), caption)


def page_of(*blocks: object) -> Page:
    return Page(NASTY, (Section(NASTY, blocks), Section("folded", (), folded=True)), NASTY, {NASTY: NASTY})  # type: ignore[arg-type]


EVERYTHING = page_of(
    Paragraph(NASTY),
    Figures(((NASTY, NASTY, NASTY),)),
    Table((Column(NASTY, help=NASTY), Column("n", "share")), ((NASTY, 0.5), (NASTY, None)), NASTY),
    Chart((CHART,), NASTY),
    Gallery(((NASTY, (picture(),)),)),
    Swipe((picture(), picture(), picture()), NASTY),
)


class Elements(HTMLParser):
    """What a browser would see: elements that were opened and not closed, attributes, text."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def elements() -> Elements:
    parser = Elements()
    parser.feed(EVERYTHING.to_html())
    return parser


def test_text_stays_text(elements: Elements) -> None:
    assert elements.seen.count("script") == 1 and elements.open == []
    assert any(NASTY in text for text in elements.text)


def test_nothing_is_loaded_from_elsewhere(elements: Elements) -> None:
    addresses = [value or "" for name, value in elements.attributes if name in ("src", "href", "action", "data")]
    assert addresses and all(address.startswith(("data:image/", "#")) for address in addresses)
    assert "link" not in elements.seen and "iframe" not in elements.seen
    assert ("content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'") in (
        elements.attributes
    )


def test_every_name_is_there_once(elements: Elements) -> None:
    # Markers and clips of charts are named by what they are: equal names are equal shapes.
    shape = re.compile(r"[mp][0-9a-f]{10}")
    names = [value or "" for name, value in elements.attributes if name == "id"]
    names = [name for name in names if not shape.fullmatch(name)]
    assert len(names) == len(set(names))


def test_pictures_read_back() -> None:
    photo, exact = picture(channels=3), picture(channels=4)
    for one, kind in ((photo, "JPEG"), (exact, "PNG")):
        head, _, body = one.source().partition(",")
        image = Image.open(io.BytesIO(base64.b64decode(body)))
        assert (image.format, image.size) == (kind, one.size) and head == f"data:image/{kind.lower()};base64"
    assert np.array_equal(np.array(image), exact.pixels)


def test_charts_take_the_colours_of_the_page() -> None:
    svg = draw_svg([CHART, CHART, CHART])
    assert "currentColor" in svg and "#010203" not in svg and "<script" not in svg and 'href="http' not in svg


@pytest.mark.parametrize(
    ("kind", "cell", "text"),
    [
        ("share", 0.12345, "0.123"),
        ("share", float("nan"), "–"),
        ("change", -0.02, "−0.020"),
        ("count", 1234567, "1,234,567"),
        ("number", float("inf"), "∞"),
        ("number", "beyond", "beyond"),
        ("text", 3, "3"),
    ],
)
def test_cells_are_written_as_people_read_them(kind: str, cell: object, text: str) -> None:
    assert Column("x", kind).text(cell) == text  # type: ignore[arg-type]


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ReportError, match="1 cells, the table 2"):
        Table((Column("a"), Column("b")), (("x",),))
    with pytest.raises(ReportError, match="8 x 8, 9 x 9 px"):
        Swipe((picture(8), picture(9)))
    with pytest.raises(ReportError, match="float64"):
        Picture(np.zeros((2, 2, 3)))
    with pytest.raises(ReportError, match="kind"):
        Column("a", "percent")  # type: ignore[arg-type]


def test_a_page_is_written_whole(tmp_path: Path) -> None:
    EVERYTHING.write(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == EVERYTHING.to_html()
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
