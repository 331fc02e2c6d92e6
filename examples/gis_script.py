"""How a GIS script calls gimseg: a folder of images in, one GeoPackage of polygons each out.

    python examples/gis_script.py IMAGES_FOLDER RESULTS_FOLDER --model builtin --min-area 10

The network is loaded once for all images. An image that cannot be used is named and
the others go on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gimseg import Predictor, vectorize
from gimseg.errors import GimsegError
from gimseg.products import Products


@click.command()
@click.argument("images", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("results", type=click.Path(file_okay=False, path_type=Path))
@click.option("--model", default="builtin", show_default=True)
@click.option("--min-area", default=10.0, show_default=True, help="Drop polygons below this area, m².")
def main(images: Path, results: Path, model: str, min_area: float) -> None:
    """Segment all GeoTIFFs of IMAGES; say how many objects and how much area were found."""
    results.mkdir(parents=True, exist_ok=True)
    predictor = Predictor(model)
    failed = 0
    for image in sorted(images.glob("*.tif")):
        mask, layer = results / f"{image.stem}_mask.tif", results / f"{image.stem}.gpkg"
        try:
            # How sure the model is lies beside the mask: where to look first.
            predictor.predict(image, mask, nodata="auto", products=Products(uncertainty="entropy"), overwrite=True)
            made = vectorize(mask, layer, min_area_m2=min_area, simplify_m=0.3, overwrite=True)
        except GimsegError as error:
            failed += 1
            print(f"{image.name}: {error}", file=sys.stderr)
            continue
        objects = made.to_geodataframe()
        area = objects["area_m2"].sum() if "area_m2" in objects else float("nan")
        print(f"{image.name}: {len(objects)} objects, {area:,.0f} m², in {layer}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
