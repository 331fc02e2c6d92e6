"""A STAC item beside a prediction: where it lies, what its bands mean, which model made it.

SpatioTemporal Asset Catalogs are how archives of imagery are searched. The item follows
STAC 1.1 with the extensions projection 2.0, raster 2.0, classification 2.0 and, where the
model lies in a folder, machine learning model (MLM) 1.5, whose inputs, outputs and scaling
are those of the recipe.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pystac
import rasterio
import torch
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry
from pystac.extensions.classification import Classification, ClassificationExtension
from pystac.extensions.projection import ProjectionExtension

from gimseg import __version__
from gimseg.imagery import raster_files
from gimseg.legend import BACKGROUND, UNLABELLED, Legend
from gimseg.levelling import Levels
from gimseg.models import Model, find_model
from gimseg.outputs import write_text
from gimseg.preflight import Plan
from gimseg.products import SCALE
from gimseg.raster_files import GDAL_ERRORS, is_virtual
from gimseg.rasters import metres_per_unit
from gimseg.recipes import Recipe

RASTER_SCHEMA = "https://stac-extensions.github.io/raster/v2.0.0/schema.json"
MLM_SCHEMA = "https://stac-extensions.github.io/mlm/v1.5.0/schema.json"

_MEDIA = {
    ".gpkg": pystac.MediaType.GEOPACKAGE,
    ".fgb": pystac.MediaType.FLATGEOBUF,
    ".geojson": pystac.MediaType.GEOJSON,
    ".parquet": pystac.MediaType.PARQUET,
    ".shp": "application/vnd.shp",
}


@dataclass(frozen=True)
class Delivered:
    """What an item tells of.

    Args:
        plan: of the prediction.
        model: that predicted.
        folders: of the models that it was loaded from; none: it was made in memory.
        rasters: files by what they hold: ``classes``, ``probabilities``, ``uncertainty``.
        layers: files of polygons.
    """

    plan: Plan
    model: Model
    folders: Sequence[str | os.PathLike[str]]
    rasters: Mapping[str, Path]
    layers: Sequence[Path] = ()


def item_path(output: Path) -> Path:
    """Where the item of an output lies.

    Example:
        >>> item_path(Path("out/big.tif")).as_posix()
        'out/big.json'
    """
    return output.with_suffix(".json")


def write_item(path: Path, delivered: Delivered) -> None:
    """Write the item; the same prediction gives the same bytes.

    Raises:
        OutputError: it cannot be written.
    """
    table = make_item(path, delivered).to_dict(include_self_link=False, transform_hrefs=False)
    write_text(path, json.dumps(table, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def is_item(path: Path) -> bool:
    """Whether a file is a STAC item."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(table, dict) and "stac_version" in table and table.get("type") == "Feature"


def rehome_item(path: Path, folder: Path) -> None:
    """Rewrite an item for another folder, to which it goes together with the files beside it.

    Raises:
        OutputError: it cannot be written.
    """
    table = json.loads(path.read_text(encoding="utf-8"))
    for asset in table["assets"].values():
        file = path.parent / asset["href"]
        if not is_virtual(asset["href"]) and file.parent.resolve() != path.parent.resolve():
            asset["href"] = os.path.relpath(file, folder)
    write_text(path, json.dumps(table, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def make_item(path: Path, delivered: Delivered) -> pystac.Item:
    """The item that will lie at `path`; all paths in it are relative to that, but those of models."""
    plan = delivered.plan
    geometry = None if plan.target.crs is None else _footprint(plan.target)
    first, last = _times(plan)
    item = pystac.Item(
        id=path.stem,
        geometry=None if geometry is None else geometry.json,
        bbox=None if geometry is None else list(geometry.boundingbox.bbox),
        datetime=first if first == last else None,
        start_datetime=None if first == last else first,
        end_datetime=None if first == last else last,
        properties={"description": f"{', '.join(plan.legend.names)} predicted by gimseg {__version__}"},
    )
    _add_projection(item, plan)
    for name, file in delivered.rasters.items():
        _add_raster(item, name, os.path.relpath(file, path.parent), plan)
    for file in delivered.layers:
        media = _MEDIA.get(file.suffix.lower())
        href = os.path.relpath(file, path.parent)
        item.add_asset(f"polygons_{file.suffix[1:]}", pystac.Asset(href, "Polygons", media_type=media, roles=["data"]))
    for number, source in enumerate(raster_files(plan.raster), 1):
        href = source if is_virtual(source) else os.path.relpath(source, path.parent)
        item.add_asset("image" if number == 1 else f"image_{number}", pystac.Asset(href, "Image", roles=["source"]))
    if delivered.folders:
        _add_model(item, delivered)
    return item


def _footprint(geobox: GeoBox) -> Geometry:
    """In longitude and latitude; a few points on each side, which are curved there."""
    left, bottom, right, top = geobox.extent.boundingbox.bbox
    return geobox.extent.to_crs("EPSG:4326", resolution=max(right - left, top - bottom) / 8, wrapdateline=True)


def _add_projection(item: pystac.Item, plan: Plan) -> None:
    crs = plan.target.crs
    code = None if crs is None else crs.to_epsg()
    ProjectionExtension.ext(item, add_if_missing=True).apply(
        code=f"EPSG:{code}" if code else None,
        wkt2=None if code or crs is None else crs.to_wkt(),
        shape=list(plan.shape),
        transform=list(plan.target.affine)[:6],
        bbox=list(plan.target.boundingbox.bbox),
    )


def _add_raster(item: pystac.Item, name: str, href: str, plan: Plan) -> None:
    legend = plan.legend
    bands = {"probabilities": legend.names, "uncertainty": ("uncertainty",), "classes": ("classes",)}[name]
    media = pystac.MediaType.COG if plan.options.cog else pystac.MediaType.GEOTIFF
    fields: dict[str, Any] = {
        "bands": [{"name": band} for band in bands],
        "data_type": "uint8",
        "nodata": UNLABELLED,
        "raster:sampling": "area",
    }
    if plan.target.crs is not None:
        pixel = abs(plan.target.affine.determinant) ** 0.5 * metres_per_unit(plan.target)[0]
        fields["raster:spatial_resolution"] = round(pixel, 6)
    if name != "classes":
        fields |= {"raster:scale": SCALE, "raster:offset": 0}
    title = {"classes": "Classes", "probabilities": "Probabilities of classes", "uncertainty": "Uncertainty"}[name]
    asset = pystac.Asset(href, title, media_type=media, roles=["data"], extra_fields=fields)
    item.add_asset(name, asset)
    if RASTER_SCHEMA not in item.stac_extensions:
        item.stac_extensions.append(RASTER_SCHEMA)
    if name == "classes":
        ClassificationExtension.ext(asset, add_if_missing=True).apply(classes=_classes(legend, nodata=True))


def _classes(legend: Legend, nodata: bool = False) -> list[Classification]:
    found = [Classification.create(BACKGROUND, "none of the classes", name="background")]
    for each in legend.classes:
        hint = each.colour[1:].upper()
        found.append(Classification.create(each.value, each.name, name=_slug(each.name), color_hint=hint))
    if nodata:
        found.append(Classification.create(UNLABELLED, "nothing to say", name="nodata", nodata=True))
    return found


def _add_model(item: pystac.Item, delivered: Delivered) -> None:
    """The MLM extension; pystac's own class writes a single object where its schema wants a list."""
    model = delivered.model
    recipe = model.recipe
    item.stac_extensions.append(MLM_SCHEMA)
    named = model.architecture or {}
    names = _band_names(delivered.plan)
    item.properties |= {
        "bands": [{"name": name} for name in names],
        "mlm:name": re.sub(r"[^a-zA-Z0-9_.\-]+", "-", f"gimseg-{model.name}").strip("-._"),
        "mlm:architecture": str(named.get("name") or model.name),
        "mlm:tasks": ["semantic-segmentation"],
        "mlm:framework": "PyTorch",
        "mlm:framework_version": torch.__version__.partition("+")[0],
        "mlm:total_parameters": sum(weights.numel() for weights in model.network.parameters()),
        "mlm:input": [*_inputs(recipe, names, delivered.plan.identity.get("levels"))],
        "mlm:output": [_output(recipe)],
        "mlm:hyperparameters": {
            "window_px": delivered.plan.lattice.window,
            "halo_px": delivered.plan.lattice.halo,
            "resolution": recipe.resolution,
            "gimseg_fingerprint": delivered.plan.identity["model"]["fingerprint"],
        },
    }
    for number, folder in enumerate(delivered.folders, 1):
        weights = pystac.Asset(
            os.fspath(find_model(folder).resolve() / "model.safetensors"),
            "Weights",
            media_type="application/octet-stream",
            roles=["mlm:model", "mlm:weights"],
            extra_fields={"mlm:artifact_type": "safetensors.torch.save_file"},
        )
        item.add_asset("model" if number == 1 else f"model_{number}", weights)


def _band_names(plan: Plan) -> list[str]:
    """Of the bands that the model takes, each once."""
    named = dict(zip(plan.raster.bands, plan.raster.band_names, strict=True))
    return list(named.values())


def _inputs(recipe: Recipe, names: Sequence[str], levels: Levels | None) -> list[dict[str, Any]]:
    """One for each way in which the bands are normalised; `levels` are those of the raster, where it has its own."""
    inputs = []
    means, deviations = levels or (recipe.mean, recipe.std)
    for first in range(0, len(recipe.bands), len(names)):
        scaling = zip(means[first:], deviations[first:], names, strict=False)
        inputs.append(
            {
                "name": "image" if first == 0 else f"image {first // len(names) + 1}",
                "bands": list(names),
                "input": {
                    "shape": [-1, len(names), recipe.window, recipe.window],
                    "dim_order": ["batch", "bands", "height", "width"],
                    "data_type": "float32",
                },
                "description": f"{recipe.dtype} values at {recipe.resolution:g} {recipe.crs_unit} per pixel",
                "value_scaling": [{"type": "z-score", "mean": mean, "stddev": std} for mean, std, _ in scaling],
            }
        )
    return inputs


def _output(recipe: Recipe) -> dict[str, Any]:
    return {
        "name": "logits",
        "tasks": ["semantic-segmentation"],
        "result": {
            "shape": [-1, recipe.legend.n_channels, recipe.window, recipe.window],
            "dim_order": ["batch", "channel", "height", "width"],
            "data_type": "float32",
        },
        "classification:classes": [each.to_dict() for each in _classes(recipe.legend)],
        "description": f"{recipe.activation} of them are probabilities",
    }


def _times(plan: Plan) -> tuple[datetime, datetime]:
    """When the images were taken: what their tags say, else when their files were written."""
    times = sorted(_time(path) for path in raster_files(plan.raster))
    return times[0], times[-1]


def _time(path: str) -> datetime:
    if is_virtual(path):
        return datetime.fromtimestamp(0, UTC)
    try:
        with rasterio.open(path) as dataset:
            tag = dataset.tags().get("TIFFTAG_DATETIME", "")
        return datetime.strptime(tag, "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC)
    except (ValueError, *GDAL_ERRORS):
        return datetime.fromtimestamp(int(os.stat(path).st_mtime), UTC)


def _slug(name: str) -> str:
    return re.sub(r"[^0-9A-Za-z_-]+", "-", name).strip("-") or "class"
