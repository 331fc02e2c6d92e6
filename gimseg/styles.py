"""QGIS styles (.qml) for masks and polygons, in the legend's colours.

QGIS takes the style of a layer from the ``.qml`` of the same name beside it. A mask
``out.tif`` and its polygons ``out.shp`` share ``out.qml``: :func:`joint_style` holds both.
Written and read by QGIS 3.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from gimseg.errors import OutputError
from gimseg.legend import BACKGROUND, UNLABELLED, Legend, LegendClass
from gimseg.outputs import write_text

_FILL_OPACITY = 80  # of 255: the image stays readable under it
_OUTLINE_MM = 0.36
_CASING_MM = 0.76
_CASING = "20,20,20,150"  # dark rim, so that the outline reads on bright roofs too
_POINT_LAYER, _POLYGON_LAYER = "0", "2"
_MARKER_MM = 2.4
_RAMPS = {
    "probabilities": ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"),
    "uncertainty": ("#000004", "#57106e", "#bc3754", "#f98e09", "#fcffa4"),
}
SCORE_COLOURS = ("#d7191c", "#fdae61", "#ffffbf", "#abd9e9", "#2c7bb6")
"""Of scores from 0 to 1 in five equal steps, red for the worst: apart also for those who cannot tell red from green."""
_RAMP_OPACITIES = (0, 120, 180, 220, 255)
_MARK = "<!-- made by gimseg -->"  # gone once a person saves the style in QGIS


def raster_style(legend: Legend) -> str:
    """Style of a class mask: a paletted renderer, background and 255 see-through."""
    return _document([_pipe(legend)])


def vector_style(legend: Legend) -> str:
    """Style of polygons: one symbol if the legend is binary, else by the attribute ``class``.

    Semi-transparent fill, clear outline with a dark rim, no labels.
    """
    return _document(_symbology(legend))


def point_style(legend: Legend) -> str:
    """Style of points by the attribute ``class``: discs in the legend's colours with a dark rim."""
    return _document(_symbology(legend, markers=True))


def outline_style(colour: str, *, dashed: bool = False) -> str:
    """Style of areas that only frame what lies in them: one outline, no fill.

    Args:
        colour: ``#rrggbb``.
        dashed: a broken line.
    """
    item = LegendClass("outline", 1, colour)
    return _document(_symbology(Legend((item,)), filled=False, line="dash" if dashed else "solid"))


def score_style(field: str) -> str:
    """Style of areas with a score from 0 to 1: five steps of :data:`SCORE_COLOURS`; without a score they are not shown.

    Args:
        field: the attribute that holds the score.
    """
    settings = {"forceraster": "0", "symbollevels": "0", "enableorderby": "0", "graduatedMethod": "GraduatedColor"}
    renderer = Element("renderer-v2", {"type": "graduatedSymbol", "attr": field} | settings)
    ranges, symbols = SubElement(renderer, "ranges"), SubElement(renderer, "symbols")
    for step, colour in enumerate(SCORE_COLOURS):
        low, high = (f"{edge / len(SCORE_COLOURS):.1f}" for edge in (step, step + 1))
        limits = {"lower": low, "upper": high, "label": f"{field} {low} to {high}"}
        SubElement(ranges, "range", {"render": "true", "symbol": str(step)} | limits)
        symbols.append(_symbol(str(step), LegendClass(low, 1, colour), filled=True, line_style="solid"))
    geometry = Element("layerGeometryType")
    geometry.text = _POLYGON_LAYER
    return _document([renderer, geometry])


def joint_style(legend: Legend) -> str:
    """Style of a mask and of its polygons in one: each kind of layer takes its part."""
    return _document([_pipe(legend), *_symbology(legend)])


def share_style(what: str) -> str:
    """Style of a raster of shares from 0 to 1: colours of its first band, the less the more see-through.

    Viridis for probabilities and inferno for uncertainty: even to the eye, also without red and green.

    Args:
        what: ``"probabilities"`` or ``"uncertainty"``.
    """
    pipe = Element("pipe")
    limits = {"classificationMin": "0", "classificationMax": "1"}
    renderer = SubElement(
        pipe,
        "rasterrenderer",
        {"type": "singlebandpseudocolor", "band": "1", "opacity": "1", "alphaBand": "-1"} | limits,
    )
    ramp = {"colorRampType": "INTERPOLATED", "classificationMode": "1", "clip": "0"}
    ramp |= {"minimumValue": "0", "maximumValue": "1", "labelPrecision": "2"}
    shader = SubElement(SubElement(renderer, "rastershader"), "colorrampshader", ramp)
    for step, (colour, opacity) in enumerate(zip(_RAMPS[what], _RAMP_OPACITIES, strict=True)):
        share = f"{step / (len(_RAMP_OPACITIES) - 1):g}"
        SubElement(shader, "item", value=share, label=share, color=colour, alpha=str(opacity))
    return _document([pipe])


def style_path(layer: str | os.PathLike[str]) -> Path:
    """Where QGIS looks for the style of a layer.

    Example:
        >>> style_path("out/roofs.shp").as_posix()
        'out/roofs.qml'
    """
    return Path(layer).with_suffix(".qml")


def read_own_style(layer: str | os.PathLike[str]) -> str | None:
    """The style beside a layer if a person made it; None if there is none, or one of ours.

    Raises:
        OutputError: it cannot be read.
    """
    path = style_path(layer)
    try:
        style = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputError(f"{path} cannot be read ({error.strerror}): move it away") from error
    return None if _MARK in style else style


def write_style(layer: str | os.PathLike[str], style: str) -> Path:
    """Write a style beside its layer, so that QGIS finds it; an older one is replaced.

    Args:
        layer: the raster or vector file.
        style: what one of the style functions gave.

    Returns:
        the file that was written.

    Raises:
        OutputError: it cannot be written.
    """
    path = style_path(layer)
    write_text(path, style)
    return path


def _document(parts: Iterable[Element]) -> str:
    # Symbology alone: what else a layer has (fields, scale limits) stays as it is.
    root = Element("qgis", version="3.22.0", styleCategories="Symbology|Labeling", labelsEnabled="0")
    root.extend(parts)
    ElementTree.indent(root)
    head = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
    return head + _MARK + "\n" + ElementTree.tostring(root, encoding="unicode") + "\n"


def _pipe(legend: Legend) -> Element:
    pipe = Element("pipe")
    renderer = SubElement(pipe, "rasterrenderer", type="paletted", band="1", opacity="1", alphaBand="-1")
    palette = SubElement(renderer, "colorPalette")
    entries = [
        (BACKGROUND, "background", "#000000", 0),
        *((item.value, item.name, item.colour, 255) for item in legend.classes),
        (UNLABELLED, "no data", "#000000", 0),
    ]
    for value, label, colour, opacity in entries:
        SubElement(palette, "paletteEntry", value=str(value), label=label, color=colour, alpha=str(opacity))
    return pipe


def _symbology(legend: Legend, *, filled: bool = True, line: str = "solid", markers: bool = False) -> list[Element]:
    kind = "singleSymbol" if legend.is_binary else "categorizedSymbol"
    renderer = Element("renderer-v2", type=kind, forceraster="0", symbollevels="0", enableorderby="0")
    if not legend.is_binary:
        renderer.set("attr", "class")
        categories = SubElement(renderer, "categories")
        for order, item in enumerate(legend.classes):
            SubElement(
                categories,
                "category",
                render="true",
                symbol=str(order),
                value=item.name,
                label=item.name,
                type="string",
            )
    symbols = SubElement(renderer, "symbols")
    for order, item in enumerate(legend.classes):
        symbols.append(_marker(str(order), item) if markers else _symbol(str(order), item, filled, line))
    geometry = Element("layerGeometryType")
    geometry.text = _POINT_LAYER if markers else _POLYGON_LAYER
    return [renderer, geometry]


def _symbol(name: str, item: LegendClass, filled: bool, line_style: str) -> Element:
    red, green, blue, _ = item.rgba
    symbol = Element("symbol", name=name, type="fill", alpha="1", clip_to_extent="1", force_rhr="0")
    casing = {"style": "no", "color": "0,0,0,0", "outline_color": _CASING, "outline_width": str(_CASING_MM)}
    line = {
        "style": "solid" if filled else "no",
        "color": f"{red},{green},{blue},{_FILL_OPACITY}",
        "outline_color": f"{red},{green},{blue},255",
        "outline_width": str(_OUTLINE_MM),
    }
    # Locked: the symbol's colour, shown and changed as one, is that of the line alone.
    for locked, properties in (("1", casing), ("0", line)):
        layer = SubElement(symbol, "layer", {"class": "SimpleFill", "enabled": "1", "locked": locked, "pass": "0"})
        _set(layer, properties | {"outline_style": line_style, "outline_width_unit": "MM", "joinstyle": "miter"})
    return symbol


def _marker(name: str, item: LegendClass) -> Element:
    red, green, blue, _ = item.rgba
    symbol = Element("symbol", name=name, type="marker", alpha="1", clip_to_extent="1", force_rhr="0")
    layer = SubElement(symbol, "layer", {"class": "SimpleMarker", "enabled": "1", "locked": "0", "pass": "0"})
    properties = {"name": "circle", "color": f"{red},{green},{blue},255", "size": str(_MARKER_MM), "size_unit": "MM"}
    rim = {"outline_color": _CASING, "outline_width": str(_OUTLINE_MM), "outline_width_unit": "MM"}
    _set(layer, properties | rim | {"outline_style": "solid"})
    return symbol


def _set(layer: Element, properties: dict[str, str]) -> None:
    options = SubElement(layer, "Option", type="Map")
    for key, value in properties.items():
        SubElement(options, "Option", name=key, value=value, type="QString")
    # QGIS before 3.22 reads these instead.
    for key, value in properties.items():
        SubElement(layer, "prop", k=key, v=value)
