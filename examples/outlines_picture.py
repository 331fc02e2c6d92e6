"""Outlines as traced, simplified and with right angles over a real image: the picture of the documentation.

Run: python examples/outlines_picture.py IMAGE.tif PICTURE.png [LEFT TOP]
LEFT and TOP are the upper left corner of the part that is shown, in pixels of the image.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import geopandas as gpd
import matplotlib
import numpy as np
import rasterio
from PIL import Image
from rasterio.plot import plotting_extent
from rasterio.windows import Window

from gimseg import predict, vectorize

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SIDE = 560  # px of the image that are shown
MARGIN = 512  # px around them that the model sees too
PANELS = {
    "as traced": {},
    "--simplify 0.5": {"simplify_m": 0.5},
    "--simplify 0.5 --right-angles": {"simplify_m": 0.5, "right_angles": True},
}
FIRST = {"min_area_m2": 8.0, "fill_holes_m2": 5.0}


def crop(image: Path, left: int, top: int, side: int, path: Path) -> np.ndarray:
    """Write a part of an image; its pixels (rows, columns, 3)."""
    with rasterio.open(image) as dataset:
        window = Window(left, top, side, side)
        pixels = dataset.read((1, 2, 3), window=window)
        place = {"crs": dataset.crs, "transform": dataset.window_transform(window)}
    with rasterio.open(path, "w", "GTiff", side, side, 3, dtype="uint8", **place) as part:
        part.write(pixels)
    return np.moveaxis(pixels, 0, -1)


def draw(image: Path, picture: Path, left: int, top: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        crop(image, left - MARGIN, top - MARGIN, SIDE + 2 * MARGIN, folder / "wide.tif")
        predict(folder / "wide.tif", output=folder / "mask.tif")
        pixels = crop(image, left, top, SIDE, folder / "shown.tif")
        with rasterio.open(folder / "shown.tif") as shown:
            extent, box = plotting_extent(shown), shown.bounds
        figure, panels = plt.subplots(1, len(PANELS), figsize=(9.6, 3.45), dpi=100)
        for panel, (title, steps) in zip(panels, PANELS.items(), strict=True):
            vectorize(folder / "mask.tif", folder / "out.gpkg", overwrite=True, **FIRST, **steps)
            layer = gpd.read_file(folder / "out.gpkg", layer="polygons").cx[box.left : box.right, box.bottom : box.top]
            panel.imshow(pixels, extent=extent)
            layer.boundary.plot(ax=panel, color="#ffd400", linewidth=1.3)
            corners = layer.count_coordinates().sum() - len(layer)
            panel.set_title(f"{title}: {corners:,} vertices", fontsize=9)
            panel.set_xlim(box.left, box.right)
            panel.set_ylim(box.bottom, box.top)
            panel.axis("off")
        figure.subplots_adjust(0.005, 0.005, 0.995, 0.93, wspace=0.02)
        figure.savefig(folder / "full.png")
        # Few colours: the picture is for a page, not for measuring.
        Image.open(folder / "full.png").convert("RGB").quantize(96).save(picture, optimize=True)


if __name__ == "__main__":
    corner = [int(text) for text in sys.argv[3:5]] or [5000, 4000]
    draw(Path(sys.argv[1]), Path(sys.argv[2]), *corner)
