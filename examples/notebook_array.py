"""How a notebook calls gimseg: pixels from anywhere in, classes as an array out, no file between.

    python examples/notebook_array.py IMAGE --row 1000 --col 2000 --side 1024

Here a piece of an image is read with rasterio; a window of a web service or a cube of
xarray is used in the same way.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.windows import Window

from gimseg import Predictor
from gimseg.products import Products


@click.command()
@click.argument("image", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--row", default=0, show_default=True, help="First row of the piece, px.")
@click.option("--col", default=0, show_default=True, help="First column of the piece, px.")
@click.option("--side", default=1024, show_default=True, help="Rows and columns of the piece, px.")
@click.option("--model", default="builtin", show_default=True)
def main(image: Path, row: int, col: int, side: int, model: str) -> None:
    """Tell how much of a piece of IMAGE each class covers, and how sure the model is."""
    with rasterio.open(image) as raster:
        window = Window(col, row, min(side, raster.width - col), min(side, raster.height - row))
        piece = raster.read(window=window)
        geobox = GeoBox(piece.shape[1:], raster.window_transform(window), raster.crs.to_wkt())
        nodata = raster.nodata
    products = Products(probabilities=True, uncertainty="entropy")
    found = Predictor(model).predict_array(piece, geobox, nodata=nodata, products=products, match_input=True)
    for item, share in zip(found.legend.classes, found.probabilities, strict=True):
        print(
            f"{item.name}: {np.mean(found.classes == item.value):.1%} of the pixels, {np.nanmean(share):.1%} expected"
        )
    print(f"mean uncertainty {np.nanmean(found.uncertainty):.2f}")


if __name__ == "__main__":
    main()
