"""What a drawing means: hand-drawn areas, objects and points to labels of pixels.

A correction is a GeoPackage (or any file with such layers) of

- ``aoi``: polygons inside which the labels are complete: what is not drawn is background;
- ``objects``: polygons with a ``class``: a name of the legend, ``background`` or ``ignore``;
- ``points``: points with a ``class``: each labels one pixel.

Any of them may be missing. Where several say something of a pixel, the first of these
holds:

1. ``ignore``: nobody knows: 255, unlabelled
2. a point
3. a ``background`` polygon
4. a polygon of a class
5. an area of interest: background
6. nothing was drawn: 255, unlabelled
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import numpy as np
from odc.geo.geobox import GeoBox

from gimseg.errors import CorrectionError
from gimseg.legend import BACKGROUND, UNLABELLED, Legend, LegendClass
from gimseg.vector_formats import layer_names
from gimseg.vectors import Shapes, open_layer

AOI, OBJECTS, POINTS, PREDICTION = "aoi", "objects", "points", "prediction"
DIMENSIONS = {AOI: 2, OBJECTS: 2, POINTS: 0}
"""Of the geometries that a layer holds; any other is left out."""
CLASS_FIELD = "class"
BACKGROUND_NAME, IGNORE_NAME = "background", "ignore"


def drawing_legend(legend: Legend) -> Legend:
    """The classes that can be drawn: those of the model, ``background`` and ``ignore``, told by ``class``.

    Raises:
        CorrectionError: the legend itself has a class of one of these names.

    Example:
        >>> drawing_legend(Legend.binary("roof")).names
        ('roof', 'background', 'ignore')
    """
    taken = [item.name for item in legend.classes if item.name.casefold() in (BACKGROUND_NAME, IGNORE_NAME)]
    if taken:
        raise CorrectionError(
            f"the model has a class named {taken[0]!r}, which means something else in a drawing: rename it in the "
            "legend and train again"
        )
    free = [value for value in range(UNLABELLED - 1, BACKGROUND, -1) if value not in legend.values]
    if len(free) < 2:
        raise CorrectionError(f"the model has {len(legend.classes)} classes; a drawing can tell 252 at most")
    extra = (LegendClass(BACKGROUND_NAME, free[0], "#000000"), LegendClass(IGNORE_NAME, free[1], "#808080"))
    names = tuple(
        LegendClass(item.name, item.value, item.colour, tuple(dict.fromkeys((item.name, *item.values))))
        for item in legend.classes
    )
    return Legend((*names, *extra), CLASS_FIELD)


@dataclass(frozen=True, eq=False)
class Drawing:
    """What was drawn on one raster.

    Args:
        legend: of the model.
        areas: areas of interest.
        objects: polygons of the model's classes; 255 where the class is none of them.
        background: polygons in which there is nothing.
        ignored: polygons and points of which nobody knows.
        points: points of a class or, with value 0, of background.
    """

    legend: Legend
    areas: Shapes
    objects: Shapes
    background: Shapes
    ignored: Shapes
    points: Shapes

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str],
        geobox: GeoBox,
        legend: Legend,
        *,
        vector_crs: str | None = None,
    ) -> Drawing:
        """Read what meets a grid.

        Args:
            path: the file.
            geobox: the grid; what is drawn may be in another CRS.
            legend: of the model.
            vector_crs: of layers that have no CRS, or a wrong one.

        Raises:
            CorrectionError: the file has none of the layers.
            VectorError: a layer cannot be used.
        """
        present = layer_names(path)
        if not {AOI, OBJECTS, POINTS} & set(present):
            raise CorrectionError(
                f"{path} has the layers {', '.join(present) or 'none'}: one of {AOI}, {OBJECTS}, {POINTS} is needed"
            )
        drawn = drawing_legend(legend)
        empty = Shapes(np.empty(0, object), np.empty(0, np.uint8), geobox.crs)
        layers = {
            name: open_layer(path, layer=name, crs=vector_crs).shapes(
                geobox, None if name == AOI else drawn, dimension=DIMENSIONS[name]
            )
            if name in present
            else empty
            for name in DIMENSIONS
        }
        nothing, ignore = (drawn.find(name).value for name in (BACKGROUND_NAME, IGNORE_NAME))
        polygons, points = layers[OBJECTS], layers[POINTS]
        return cls(
            legend=legend,
            areas=layers[AOI],
            objects=_chosen(polygons, ~np.isin(polygons.values, (nothing, ignore))),
            background=polygons.of_value(nothing),
            ignored=polygons.of_value(ignore) + points.of_value(ignore),
            points=_recoded(_chosen(points, points.values != ignore), nothing),
        )

    def burn(self, window: GeoBox) -> np.ndarray:
        """Labels of a window.

        Args:
            window: a grid in the CRS of the raster that the drawing was read for.

        Returns:
            uint8 (rows, cols): 0 background, classes, 255 unlabelled; the crop of the whole.
        """
        labels = np.full(window.shape, UNLABELLED, np.uint8)
        labels[self.areas.burn_mask(window)] = BACKGROUND
        # A polygon whose class nobody knows leaves its ground unlabelled, whatever else says background.
        drawn = self.objects.burn(window)
        labels = np.where(drawn == BACKGROUND, labels, drawn)
        labels[self.background.burn_mask(window)] = BACKGROUND
        pointed = self.points.burn_mask(window)
        labels[pointed] = self.points.burn(window)[pointed]
        labels[self.ignored.burn_mask(window)] = UNLABELLED
        return labels

    @property
    def notes(self) -> tuple[str, ...]:
        """What was mended, dropped or not understood, for a person."""
        parts = (self.areas, self.objects, self.points)
        return tuple(dict.fromkeys(note for shapes in parts for note in shapes.notes))


def _chosen(shapes: Shapes, which: np.ndarray) -> Shapes:
    return replace(shapes, geometries=shapes.geometries[which], values=shapes.values[which])


def _recoded(points: Shapes, nothing: int) -> Shapes:
    """Background as 0, which only a point can say in the midst of other things."""
    return replace(points, values=np.where(points.values == nothing, BACKGROUND, points.values).astype(np.uint8))
