"""The pictures of the demo, and its rasters and layers as arrays to draw them from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import rasterio
import rasterio.features

from gimseg.legend import UNLABELLED
from gimseg.pictures import blend, outcome_overlay, to_rgb

Extent = tuple[float, float, float, float]
_TRUTH, _FOUND, _AREA = "#ffd200", "#00e5ff", "#ffffff"


def draw_overview(folder: Path, path: Path, *, polygons: int, iou: float) -> None:
    """Draw what was learned, what was found, and hits, misses and false alarms, side by side."""
    figure, panels = _panels()
    learned, extent = _picture(folder / "learned.tif")
    unseen, unseen_extent = _picture(folder / "unseen.tif")
    panels[0].imshow(learned, extent=extent)
    _outline(panels[0], folder / "learned_labels.geojson", folder / "learned.tif", _TRUTH)
    panels[0].set_title("learned from: image and drawn polygons", fontsize=12)
    panels[1].imshow(unseen, extent=unseen_extent)
    _outline(panels[1], folder / "unseen_segments.shp", folder / "unseen.tif", _FOUND)
    panels[1].set_title(f"never seen: {polygons} polygons found", fontsize=12)
    panels[2].imshow(outcome(folder, "unseen", folder / "unseen_segments.tif", unseen), extent=unseen_extent)
    panels[2].set_title(f"hits green, misses blue, false alarms red: IoU {iou:.2f}", fontsize=12)
    _save(figure, panels, (extent, unseen_extent, unseen_extent), path)


def draw_correction(folder: Path, tag: str, masks: tuple[Path, Path], path: Path, *, ious: tuple[float, float]) -> None:
    """Draw what was corrected, and hits, misses and false alarms before and after, side by side.

    Args:
        folder: of the demo.
        tag: of the scene; its area of interest is ``aoi.geojson``.
        masks: predicted before and after.
        path: of the picture.
        ious: outside the area of interest, before and after.
    """
    figure, panels = _panels()
    image = folder / f"{tag}.tif"
    picture, extent = _picture(image)
    panels[0].imshow(picture, extent=extent)
    _outline(panels[0], folder / "drawn.geojson", image, _TRUTH)
    panels[0].set_title("turf roofs, clay floors: all roofs in the white square were drawn", fontsize=12)
    for axes, mask, when, iou in zip(panels[1:], masks, ("before", "after"), ious, strict=True):
        axes.imshow(outcome(folder, tag, mask, picture), extent=extent)
        axes.set_title(f"{when}: IoU {iou:.2f} outside the square", fontsize=12)
    for axes in panels:
        _outline(axes, folder / "aoi.geojson", image, _AREA, filled=False)
    _save(figure, panels, (extent, extent, extent), path)


def truth_on(folder: Path, tag: str, mask: Path) -> tuple[np.ndarray, np.ndarray]:
    """The ground truth of a scene on the grid of a mask, and the mask: uint8 (rows, cols), 255 off the image."""
    with rasterio.open(mask) as file:
        prediction, transform, crs = file.read(1), file.transform, file.crs
    polygons = geopandas.read_file(folder / f"{tag}_labels.geojson").to_crs(crs.to_wkt())
    truth = rasterio.features.rasterize(polygons.geometry, prediction.shape, transform=transform, dtype="uint8")
    truth[prediction == UNLABELLED] = UNLABELLED
    return truth, prediction


def outcome(folder: Path, tag: str, mask: Path, picture: np.ndarray) -> np.ndarray:
    """Hits, misses and false alarms over the picture of a scene, uint8 (rows, cols, 3) as the picture's."""
    overlay = outcome_overlay(*truth_on(folder, tag, mask))
    # Mask and picture end within a pixel of each other.
    nearest = [np.arange(to) * of // to for to, of in zip(picture.shape, overlay.shape[:2], strict=False)]
    return blend(picture, overlay[np.ix_(*nearest)])


def _panels() -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 5.75), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, 3)


def _save(figure: Any, panels: Any, extents: tuple[Extent, ...], path: Path) -> None:
    for axes, frame in zip(panels, extents, strict=True):
        axes.set(xlim=frame[:2], ylim=frame[2:], xticks=[], yticks=[], xlabel="", ylabel="")
    figure.savefig(path, dpi=110, format="png")


def _picture(path: Path) -> tuple[np.ndarray, Extent]:
    with rasterio.open(path) as raster:
        bounds = raster.bounds
        return to_rgb(raster.read().astype(np.float32)), (bounds.left, bounds.right, bounds.bottom, bounds.top)


def _outline(axes: Any, layer: Path, image: Path, colour: str, *, filled: bool = True) -> None:
    with rasterio.open(image) as raster:
        polygons = geopandas.read_file(layer).to_crs(raster.crs.to_wkt())
    face, width = (f"{colour}38", 0.9) if filled else ("none", 2.0)
    if len(polygons):
        polygons.plot(ax=axes, facecolor=face, edgecolor=colour, linewidth=width)
