"""Images paired with ground truth, burnt on the fly at the model's ground resolution."""

from __future__ import annotations

import functools
import glob
import math
import operator
import os
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from odc.geo.geobox import GeoBox

from gimseg.errors import DatasetError
from gimseg.labelled_scenes import LabelledScene
from gimseg.leakage import check_leakage
from gimseg.legend import Legend
from gimseg.rasters import open_raster
from gimseg.vectors import Layer, Shapes, open_layer

SPLITS = ("train", "val", "test")
_SPLIT_SPELLINGS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
_RASTER_ENDINGS = (".tif", ".tiff", ".jp2", ".png", ".img", ".vrt")

_PATHS = ("image_paths", "mask_paths", "aoi_paths", "ignore_paths")

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
Opened = Callable[[str], Layer]


@dataclass(frozen=True)
class Dataset:
    """GeoTIFFs and their ground truth.

    Args:
        tag: a name for people.
        spatial_resolution: ground resolution that images and ground truth are
            brought to, metres per pixel; in the raster's own unit where it has
            no CRS.
        image_paths: rasters; globs allowed.
        mask_paths: ground truth: vector layers of polygons, lines or points in any
            CRS, or rasters of class values. All of them hold for all images.
        aoi_paths: polygons inside which the ground truth is complete; outside,
            pixels are unlabelled. None: the whole footprint.
        ignore_paths: polygons inside which nothing is known: unlabelled, whatever
            the ground truth says.
        legend: classes; None: one class, ``object``.
        bands: bands to use, from 1; None: all but those tagged alpha.
        split: ``train``, ``val``, ``test``, the attribute of the AoI layer that holds
            one of these, or None.
        crs: CRS of rasters that have none.
        vector_crs: CRS of layers that have none, or a wrong one.
        nodata: value, or ``"auto"`` for a border that nothing declares.
        point_radius_m: radius of a labelled point, m; None: one pixel.
        line_width_m: width of a labelled line, m.
        weight: how many times as often as others its windows are drawn in training.

    Raises:
        DatasetError: a path matches nothing, or a value is out of range.

    Example:
        >>> Dataset(tag="bad_AoI", spatial_resolution=0.2, image_paths=[]) + Dataset("b", 0.2, [])
        Traceback (most recent call last):
        gimseg.errors.DatasetError: dataset 'bad_AoI' has no image: give image_paths at least one GeoTIFF
    """

    tag: str
    spatial_resolution: float
    image_paths: Paths
    mask_paths: Paths = ()
    aoi_paths: Paths = ()
    legend: Legend | None = None
    bands: Sequence[int] | None = None
    split: str | None = None
    crs: str | None = None
    vector_crs: str | None = None
    nodata: float | str | None = None
    point_radius_m: float | None = None
    line_width_m: float | None = None
    ignore_paths: Paths = ()
    weight: float = 1.0

    def __post_init__(self) -> None:
        for name in _PATHS:
            object.__setattr__(self, name, _matching(getattr(self, name), f"dataset '{self.tag}', {name}"))
        if self.bands is not None:
            object.__setattr__(self, "bands", tuple(int(band) for band in self.bands))
        if not self.image_paths:
            raise DatasetError(f"dataset '{self.tag}' has no image: give image_paths at least one GeoTIFF")
        if not self.spatial_resolution > 0:
            raise DatasetError(
                f"dataset '{self.tag}': spatial_resolution is {self.spatial_resolution}; it must be above 0 metres"
            )
        if not 0 < self.weight < math.inf:
            raise DatasetError(f"dataset '{self.tag}': weight is {self.weight}; it must be above 0 and finite")
        if self.split in _SPLIT_SPELLINGS:
            object.__setattr__(self, "split", _SPLIT_SPELLINGS[self.split])
        elif self.split is not None and not self.aoi_paths:
            raise DatasetError(
                f"dataset '{self.tag}': split {self.split!r} is none of {', '.join(SPLITS)}, and there is no AoI layer "
                "whose attribute it could be: correct it or give aoi_paths"
            )

    @property
    def images(self) -> tuple[str, ...]:
        """All rasters that image_paths names."""
        return cast(tuple[str, ...], self.image_paths)

    @property
    def masks(self) -> tuple[str, ...]:
        """All layers and rasters that mask_paths names."""
        return cast(tuple[str, ...], self.mask_paths)

    @property
    def aois(self) -> tuple[str, ...]:
        """All layers that aoi_paths names."""
        return cast(tuple[str, ...], self.aoi_paths)

    @property
    def ignored(self) -> tuple[str, ...]:
        """All layers that ignore_paths names."""
        return cast(tuple[str, ...], self.ignore_paths)

    @property
    def classes(self) -> Legend:
        """The legend, or that of one class where none was given."""
        return self.legend or Legend.binary()

    def __add__(self, other: Dataset | Datasets) -> Datasets:
        return Datasets((self,)) + other

    def scenes(self) -> tuple[LabelledScene, ...]:
        """Open all images with their ground truth.

        Raises:
            GimsegError: a file cannot be read, or the ground truth misses an image.
        """
        # A layer is described once, however many images it labels.
        opened: Opened = functools.cache(functools.partial(open_layer, crs=self.vector_crs))
        return tuple(_open_scene(self, path, opened) for path in self.images)


@dataclass(frozen=True)
class Datasets:
    """Several datasets that one model learns from; they share legend and number of bands.

    Raises:
        DatasetError: none given, tags that repeat, or legends that differ.
    """

    items: tuple[Dataset, ...]

    def __post_init__(self) -> None:
        if not self.items:
            raise DatasetError("no dataset given: name at least one")
        tags = [item.tag for item in self.items]
        repeated = sorted({tag for tag in tags if tags.count(tag) > 1})
        if repeated:
            raise DatasetError(f"datasets share the tag {repeated[0]!r}: give each its own")
        for item in self.items[1:]:
            if item.classes != self.items[0].classes:
                raise DatasetError(
                    f"datasets '{self.items[0].tag}' and '{item.tag}' differ in their legends "
                    f"({', '.join(self.items[0].classes.names)} and {', '.join(item.classes.names)}): "
                    "give both the same"
                )

    def __add__(self, other: Dataset | Datasets) -> Datasets:
        return Datasets(self.items + (other.items if isinstance(other, Datasets) else (other,)))

    def __iter__(self) -> Iterator[Dataset]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def legend(self) -> Legend:
        """The legend that all datasets share."""
        return self.items[0].classes

    def at_resolution(self, spatial_resolution: float) -> Datasets:
        """The same datasets at another ground resolution, metres per pixel."""
        return Datasets(tuple(replace(item, spatial_resolution=spatial_resolution) for item in self))

    def with_bands(self, bands: Sequence[int]) -> Datasets:
        """The same datasets with these bands, from 1."""
        return Datasets(tuple(replace(item, bands=tuple(bands)) for item in self))

    def scenes(self) -> tuple[LabelledScene, ...]:
        """Open all images of all datasets; see :meth:`Dataset.scenes`.

        Raises:
            DatasetError: numbers of bands differ, or one piece of ground lies in two splits.
        """
        scenes = tuple(scene for item in self for scene in item.scenes())
        _check_bands(scenes)
        check_leakage(scenes)
        return scenes


def read_datasets(path: str | os.PathLike[str]) -> Datasets:
    """Read a TOML file that lists datasets; its paths are relative to the file.

    Raises:
        DatasetError: the file is no TOML, or a key is missing or unknown.
        LegendError: the legend is wrong.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist: give a TOML file that lists [[dataset]] tables") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} is no TOML: {error}") from error
    legend = Legend.from_dict(content["legend"]) if "legend" in content else None
    tables = content.get("dataset")
    if not isinstance(tables, list) or not tables:
        raise DatasetError(f"{path} has no [[dataset]] table: it needs tag, spatial_resolution and image_paths")
    return Datasets(tuple(_dataset_of_table(table, legend, path) for table in tables))


def _dataset_of_table(table: dict[str, Any], legend: Legend | None, path: Path) -> Dataset:
    known = {item.name for item in fields(Dataset)}
    unknown = sorted(set(table) - known)
    missing = [name for name in ("tag", "spatial_resolution", "image_paths") if name not in table]
    if unknown or missing:
        wrong = f"unknown key {unknown[0]!r}" if unknown else f"no key {missing[0]!r}"
        raise DatasetError(f"{path}, dataset {table.get('tag', '?')!r}: {wrong}; known are {', '.join(sorted(known))}")
    table = dict(table)
    own = table.pop("legend", None)
    for name in _PATHS:
        given = table.get(name, ())
        table[name] = [os.path.join(path.parent, item) for item in ([given] if isinstance(given, str) else given)]
    return Dataset(**table, legend=Legend.from_dict(own) if own else legend)


def _matching(paths: Paths, where: str) -> tuple[str, ...]:
    """All files that paths and globs name, in the order given, each once."""
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    found: list[str] = []
    for given in paths:
        path = os.fspath(given)
        # A path that is there is meant as it stands, brackets and all.
        matches = [path] if os.path.exists(path.split("|")[0]) or path.startswith("/vsi") else sorted(glob.glob(path))
        if not matches:
            raise DatasetError(f"{where}: {path} matches no file: correct the path (it is relative to {os.getcwd()})")
        found.extend(matches)
    return tuple(dict.fromkeys(found))


def _open_scene(dataset: Dataset, path: str, opened: Opened) -> LabelledScene:
    raster = open_raster(path, bands=dataset.bands, crs=dataset.crs, nodata=dataset.nodata)
    geobox = raster.grid(dataset.spatial_resolution)
    legend = dataset.classes
    vectors = [mask for mask in dataset.masks if not is_label_raster(mask)]
    truth, notes = _open_truth(dataset, vectors, geobox, path, opened)
    truth_views = tuple(
        mask_raster.on(geobox, "nearest")
        for mask_raster in (open_raster(mask, crs=dataset.crs) for mask in dataset.masks if is_label_raster(mask))
        if _overlap(mask_raster.geobox, geobox)
    )
    if dataset.mask_paths and not truth and not truth_views:
        raise DatasetError(
            f"dataset '{dataset.tag}': the ground truth misses {path} altogether. "
            f"{_extents(vectors, geobox, opened)}: "
            "correct the paths, or declare the CRS with vector_crs"
        )
    areas = _open_areas(dataset, geobox, opened)
    if not dataset.aoi_paths and truth:
        notes += _coverage_note(truth, geobox, path)
    return LabelledScene(
        tag=dataset.tag,
        raster=raster,
        view=raster.on(geobox),
        legend=legend,
        truth=truth,
        truth_views=truth_views,
        areas=areas,
        split=dataset.split if dataset.split in SPLITS else None,
        ignored=_open_ignored(dataset, geobox, opened),
        notes=(*raster.notes, *notes),
        weight=dataset.weight,
    )


def is_label_raster(path: str) -> bool:
    """Whether a path of ground truth means a raster of class values, by its ending."""
    return path.lower().endswith(_RASTER_ENDINGS)


def _open_truth(
    dataset: Dataset, vectors: Sequence[str], geobox: GeoBox, path: str, opened: Opened
) -> tuple[tuple[Shapes, ...], tuple[str, ...]]:
    """Layers whose extent meets the raster, and what was mended in them."""
    truth: list[Shapes] = []
    notes: list[str] = []
    for mask in vectors:
        layer = opened(mask)
        if layer.count and not layer.meets(geobox):
            continue
        shapes = layer.shapes(
            geobox, dataset.classes, point_radius_m=dataset.point_radius_m, line_width_m=dataset.line_width_m
        )
        truth.append(shapes)
        notes.extend(f"{mask}: {note}" for note in (*layer.notes, *shapes.notes))
    return tuple(truth), tuple(notes)


def _open_areas(dataset: Dataset, geobox: GeoBox, opened: Opened) -> dict[str | None, Shapes]:
    """Split -> AoIs; a raster that no AoI meets gets an empty one, so that it is unlabelled."""
    areas: dict[str | None, Shapes] = {}
    by_attribute = dataset.split is not None and dataset.split not in SPLITS
    legend = Legend.splits(dataset.split) if by_attribute and dataset.split else None
    for path in dataset.aois:
        shapes = opened(path).shapes(geobox, legend)
        if legend is None:
            areas[None] = shapes if None not in areas else areas[None] + shapes
            continue
        for name, value in zip(legend.names, legend.values, strict=True):
            part = shapes.of_value(value)
            areas[name] = part if name not in areas else areas[name] + part
    return areas


def _open_ignored(dataset: Dataset, geobox: GeoBox, opened: Opened) -> Shapes | None:
    layers = [opened(path).shapes(geobox) for path in dataset.ignored]
    return functools.reduce(operator.add, layers) if layers else None


def _overlap(one: GeoBox, other: GeoBox) -> bool:
    if one.crs is None or other.crs is None:
        return bool(one.extent.geom.intersects(other.extent.geom))
    return bool(one.extent.to_crs(other.crs).geom.intersects(other.extent.geom))


def _extents(vectors: Sequence[str], geobox: GeoBox, opened: Opened) -> str:
    raster = ", ".join(f"{edge:.6g}" for edge in geobox.extent.boundingbox)
    layers = "; ".join(
        f"{path} " + ", ".join(f"{edge:.6g}" for edge in bounds)
        for path in vectors[:3]
        if (bounds := opened(path).bounds_in(geobox.crs))
    )
    return f"In {geobox.crs or 'raster coordinates'}: raster {raster}; {layers} (left, bottom, right, top)"


def _coverage_note(truth: Sequence[Shapes], geobox: GeoBox, path: str) -> tuple[str, ...]:
    boxes = [box for box in (shapes.bounds for shapes in truth if not shapes.partial) if box]
    if not boxes:
        return ()
    left, bottom = np.min([box[:2] for box in boxes], axis=0)
    right, top = np.max([box[2:] for box in boxes], axis=0)
    frame = geobox.extent.boundingbox
    wide = max(0.0, min(right, frame.right) - max(left, frame.left))
    high = max(0.0, min(top, frame.top) - max(bottom, frame.bottom))
    share = wide * high / (frame.span_x * frame.span_y)
    if share >= 0.5:
        return ()
    return (
        f"the ground truth's extent covers {share:.0%} of {path}: what lies outside counts as background; "
        "give aoi_paths if it is not complete there",
    )


def _check_bands(scenes: Sequence[LabelledScene]) -> None:
    first = scenes[0]
    for scene in scenes[1:]:
        if len(scene.raster.bands) != len(first.raster.bands):
            raise DatasetError(
                f"{first.path} has {len(first.raster.bands)} bands and {scene.path} has {len(scene.raster.bands)}: "
                "name the same number of bands in each dataset (bands = [1, 2, 3])"
            )
