"""Outlines as traced, simplified and with right angles over a real image: the picture of the documentation.

Run: python examples/outlines_picture.py IMAGE.tif FOOTPRINTS.geojson PICTURE.png LEFT TOP
LEFT and TOP are the upper left corner of the part that is shown, in pixels of the image. Its drawn footprints are
burnt into a mask with the blur and the ragged edges that the mask of a network has.
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
from rasterio.features import rasterize
from rasterio.plot import plotting_extent
from rasterio.transform import Affine
from rasterio.windows import Window
from scipy.ndimage import gaussian_filter

from gimseg import vectorize

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SIDE = 400  # px of the image that are shown
COARSER = 2  # the mask's pixels, in pixels of the image
PANELS = {
    "as traced": {},
    "--simplify 0.5": {"simplify_m": 0.5},
    "--simplify 0.5 --right-angles": {"simplify_m": 0.5, "right_angles": True},
}


def write_mask(path: Path, footprints: gpd.GeoDataFrame, place: Affine, crs: object) -> None:
    """A mask of the part that is shown, as a network would have made it."""
    side = SIDE // COARSER
    coarse = place * Affine.scale(COARSER)
    burnt = rasterize(footprints.geometry, (side, side), transform=coarse, dtype=np.uint8)
    noise = gaussian_filter(np.random.default_rng(3).normal(size=(side, side)), 2)
    mask = (gaussian_filter(burnt.astype(float), 1.5) + 0.1 * noise / noise.std() > 0.5).astype(np.uint8)
    with rasterio.open(path, "w", "GTiff", side, side, 1, dtype="uint8", crs=crs, transform=coarse) as dataset:
        dataset.write(mask, 1)


def draw(image: Path, drawn: Path, picture: Path, left: int, top: int) -> None:
    with rasterio.open(image) as dataset:
        window = Window(left, top, SIDE, SIDE)
        pixels = np.moveaxis(dataset.read((1, 2, 3), window=window), 0, -1)
        place, crs, box = dataset.window_transform(window), dataset.crs, dataset.window_bounds(window)
    footprints = gpd.read_file(drawn).to_crs(crs).cx[box[0] : box[2], box[1] : box[3]]
    figure, panels = plt.subplots(1, len(PANELS), figsize=(9.6, 3.4), dpi=100)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_mask(folder / "mask.tif", footprints, place, crs)
        for panel, (title, steps) in zip(panels, PANELS.items(), strict=True):
            vectorize(folder / "mask.tif", folder / "out.gpkg", min_area_m2=8, overwrite=True, **steps)
            layer = gpd.read_file(folder / "out.gpkg", layer="polygons")
            panel.imshow(pixels, extent=plotting_extent(pixels[..., 0], place))
            layer.boundary.plot(ax=panel, color="#ffd400", linewidth=1.4)
            panel.set_title(f"{title}: {layer.count_coordinates().sum():,} points", fontsize=9, y=1.0)
            panel.set(xlim=(box[0], box[2]), ylim=(box[1], box[3]), aspect="equal")
            panel.axis("off")
        figure.subplots_adjust(0.003, 0.003, 0.997, 0.92, wspace=0.015)
        figure.savefig(folder / "full.png")
        # Few colours: the picture is for a page, not for measuring.
        Image.open(folder / "full.png").convert("RGB").quantize(128).save(picture, optimize=True)


if __name__ == "__main__":
    draw(*map(Path, sys.argv[1:4]), *map(int, sys.argv[4:6]))
