"""QGIS styles of images: which bands are red, green and blue, and which values are dark and bright.

For bytes that is the file's own range. Other types, such as Sentinel-2 reflectance, are
stretched between the values that leave out two percent at each end, as QGIS does itself
when a layer is added by hand, but not when it is opened from a project.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np
from rasterio.enums import ColorInterp

from gimseg.raster_files import alpha_bands, check_file, open_dataset

_SIDE = 512  # px of the copy that values are looked at in
_SHARES = (2.0, 98.0)
_COLOURS = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)


def read_image_style(raster: str | os.PathLike[str], used: Sequence[int] = ()) -> str:
    """Style of an image for a QGIS project.

    Args:
        raster: the image.
        used: bands that a model reads, from 1: those shown where the file names no colours, and
            never taken for transparency, whatever their tag says.

    Returns:
        content of a ``.qml``; "" for a raster with a colour table, which QGIS shows by itself.

    Raises:
        RasterError: it cannot be read.
    """
    path = check_file(raster)
    with open_dataset(path) as dataset:
        if dataset.colorinterp[0] is ColorInterp.palette:
            return ""
        bands = _shown_bands(dataset, used)
        limits = [None if dataset.dtypes[band - 1] == "uint8" else _limits(dataset, band) for band in bands]
        alpha = next((band for band in alpha_bands(dataset) if band not in used), -1)
    return image_style(bands, limits, alpha)


def image_style(bands: Sequence[int], limits: Sequence[tuple[float, float] | None], alpha: int = -1) -> str:
    """Style of an image of known bands.

    Args:
        bands: one, shown in grey, or red, green and blue; from 1.
        limits: (black, white) of each; None: as they are.
        alpha: the band of transparency; -1: none.
    """
    names = ("gray",) if len(bands) == 1 else ("red", "green", "blue")
    kind = "singlebandgray" if len(bands) == 1 else "multibandcolor"
    shown = {f"{name}Band": str(band) for name, band in zip(names, bands, strict=True)}
    root = Element("qgis", version="3.22.0", styleCategories="Symbology")
    pipe = SubElement(root, "pipe")
    renderer = SubElement(pipe, "rasterrenderer", {"type": kind, "opacity": "1", "alphaBand": str(alpha), **shown})
    for name, range_ in zip(names, limits, strict=True):
        # Without limits there is no element: QGIS would take an empty one for 0 to 0.
        if range_ is not None:
            tag = "contrastEnhancement" if name == "gray" else f"{name}ContrastEnhancement"
            enhancement = SubElement(renderer, tag)
            for key, value in zip(("minValue", "maxValue"), range_, strict=True):
                SubElement(enhancement, key).text = repr(float(value))
            SubElement(enhancement, "algorithm").text = "StretchToMinimumMaximum"
    # Far out, the mean of pixels; close by, the pixels themselves.
    SubElement(pipe, "rasterresampler", zoomedOutResampler="bilinear", maxOversampling="2")
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _shown_bands(dataset: Any, used: Sequence[int]) -> tuple[int, ...]:
    named = [dataset.colorinterp.index(colour) + 1 for colour in _COLOURS if colour in dataset.colorinterp]
    if len(named) == len(_COLOURS):
        return tuple(named)
    transparent = set(alpha_bands(dataset)) - set(used)
    among = tuple(used) or tuple(band for band in dataset.indexes if band not in transparent)
    return among[:3] if len(among) >= 3 else among[:1]


def _limits(dataset: Any, band: int) -> tuple[float, float] | None:
    shape = tuple(min(side, _SIDE) for side in dataset.shape)
    values = dataset.read(band, out_shape=shape, masked=True).compressed()
    values = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if not len(values):
        return None
    low, high = np.percentile(values, _SHARES)
    return (float(low), float(high)) if low < high else None
