"""Mask to polygons: exact outlines of every class, in memory that the raster's size does not decide.

The outlines are those of one pass over the whole mask (:mod:`gimseg.tracing`), then they
are cleaned as asked for (:mod:`gimseg.cleaning`), measured and written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from queue import Full, Queue
from typing import Any, TypeAlias

import geopandas as gpd
import numpy as np
from pyproj import CRS
from rasterio.enums import ColorInterp
from rasterio.transform import Affine

from gimseg.cleaning import Cleaned, Cleaning
from gimseg.errors import GridError, LegendError, OutputError, RasterError, TilingError
from gimseg.ground import Ground
from gimseg.legend import BACKGROUND, LEGEND_TAG, UNLABELLED, Legend, LegendClass, default_colour
from gimseg.outputs import check_outputs, staged
from gimseg.progress import Progress, silent
from gimseg.raster_files import DRIVERS, RasterFile, check_blocks, check_file, mask_kind, open_dataset
from gimseg.styles import joint_style, read_own_style, write_style
from gimseg.tracing import Traced, trace
from gimseg.vector_output import check_features, write_features

OBJECT_NAMES = ("connectivity", "instances")
"""The options of :func:`vectorize` that say what an object is."""

PathLike = str | os.PathLike[str]

_Frames: TypeAlias = "Queue[gpd.GeoDataFrame | None]"

_CHUNK = 10_000  # features written together: the writers are slow in small bites
_MAX_READ = 2**26  # pixels read together at most, to decode each block of the file once


@dataclass(frozen=True)
class Vectorized:
    """What came of a mask.

    Attributes:
        count: number of polygons written.
        counts: number of polygons of each class, by name.
        paths: the files, in the order they were asked for.
        legend: names and colours of the classes.
        notes: what a person should know.
    """

    count: int
    counts: dict[str, int]
    paths: tuple[Path, ...]
    legend: Legend
    notes: tuple[str, ...] = ()


def vectorize(
    mask: PathLike,
    outputs: PathLike | Sequence[PathLike],
    *,
    legend: Legend | None = None,
    connectivity: int = 4,
    instances: PathLike | None = None,
    overwrite: bool = False,
    block: int = 2048,
    progress: Progress = silent,
    **cleaning: Any,
) -> Vectorized:
    """Write the polygons of every class of a mask, with a QGIS style beside each file.

    A polygon is a connected region of one value; 0, 255, nodata and masked pixels give
    none. Columns: ``class``, ``class_id``, where there is a CRS ``area_m2``, the area on
    the ellipsoid, and with ``right_angles`` ``regular``. Polygons lie where the file's own
    transform puts its pixels.

    Args:
        mask: raster of one band, whole numbers 0 to 255.
        outputs: one file or several, by their endings: .shp .gpkg .fgb .geojson .parquet.
        legend: names and colours; by default those in the mask, else ``class_1``, ...
        connectivity: 4: pixels of one object share edges; 8: or corners, and polygons have
            several parts.
        instances: split what touches: ``"distance"``, or a raster of probabilities on the
            grid of the mask.
        overwrite: existing outputs, and a style that a person made, may be replaced.
        block: about block x block pixels are worked on together; changes no polygon.
        progress: told of millions of pixels done.
        **cleaning: see :class:`gimseg.cleaning.Cleaning`: ``min_area_m2``,
            ``fill_holes_m2``, ``simplify_m``, ``coverage``, ``smooth_m``, ``right_angles``.

    Raises:
        OutputError: an output exists or cannot be written; before any work.
        RasterError: the mask cannot be read, or is no mask of classes.
        GridError: an area was asked for and the mask has no usable CRS.
        LegendError: the mask's legend cannot be read.
    """
    paths = tuple(map(Path, [outputs] if isinstance(outputs, str | os.PathLike) else outputs))
    steps = Cleaning(**cleaning)
    _check_request(paths, block, connectivity)
    check_outputs(paths, [mask], overwrite=overwrite)
    source = _Mask.open(mask)
    ground = Ground.of(source.transform, source.crs_wkt, source.file.shape)
    steps.check(ground, mask)
    fields = {"class": "str", "class_id": "int32"} | ({"area_m2": "float64"} if ground.tells_metres else {})
    fields |= {"regular": "bool"} if steps.right_angles else {}
    for path in paths:
        check_features(path, fields, ground.crs)
    names = _Names(legend or legend_of_mask(mask))
    objects = _gathered(trace(source.strips(block, progress)))
    frames = _frames(steps.stream(objects, ground), ground, names)
    kept = {} if overwrite else {path: read_own_style(path) for path in paths}
    _write_all(paths, frames, fields, ground.crs, lambda path: kept.get(path) or joint_style(names.legend()))
    return Vectorized(sum(names.counts.values()), dict(names.counts), paths, names.legend(), ground.notes)


def _check_request(paths: Sequence[Path], block: int, connectivity: int) -> None:
    if not paths:
        raise OutputError("no output is given: name one at least, like polygons.gpkg")
    if block < 1 or connectivity not in (4, 8):
        raise TilingError(f"block={block}, connectivity={connectivity}: the block must be 1 at least, the other 4 or 8")


def legend_of_mask(path: PathLike) -> Legend | None:
    """The legend that a mask carries.

    That is its tag GIMSEG_LEGEND; else its tags ``class_1``, ... with the names of its
    values; else one class for each colour of its colour table.

    Returns:
        None if it has none of these.

    Raises:
        RasterError: the file cannot be read.
        LegendError: the tags are damaged.
    """
    with open_dataset(check_file(path), DRIVERS) as dataset:
        tags = dataset.tags()
        colours = dataset.colormap(1) if dataset.colorinterp[0] is ColorInterp.palette else {}
    try:
        if LEGEND_TAG in tags:
            return Legend.from_dict(json.loads(tags[LEGEND_TAG]))
        # Colour table entries that nobody set are black, opaque or not.
        shown = {value: "#" + bytes(rgb).hex() for value, (*rgb, opacity) in colours.items() if any(rgb) and opacity}
        named = {value: tags[f"class_{value}"] for value in range(256) if f"class_{value}" in tags}
        classes = [
            _class_of(value, named.get(value), shown.get(value))
            for value in sorted(named or shown)
            if BACKGROUND < value < UNLABELLED
        ]
        return Legend(tuple(classes)) if classes else None
    except (json.JSONDecodeError, AttributeError, TypeError, LegendError) as error:
        raise LegendError(f"{path}: its tags hold no legend ({error}): give a legend") from error


def _class_of(value: int, name: str | None = None, colour: str | None = None) -> LegendClass:
    return LegendClass(name or f"class_{value}", value, colour or default_colour(value - 1))


@dataclass(frozen=True)
class _Mask:
    """A raster of classes, read in its own rows and columns."""

    file: RasterFile
    transform: Affine
    crs_wkt: str | None
    block_height: int

    @classmethod
    def open(cls, path: PathLike) -> _Mask:
        path = check_file(path)
        with open_dataset(path, DRIVERS) as dataset:
            check_blocks(dataset, path)
            if dataset.count != 1:
                raise RasterError(f"{path} has {dataset.count} bands; a mask of classes has one: give the mask")
            if dataset.gcps[0] and dataset.transform.is_identity:
                raise GridError(f"{path} is placed by ground control points: warp it first (gdalwarp -r near)")
            file = RasterFile(
                path, DRIVERS, (1,), dataset.shape, dataset.dtypes[0], dataset.nodatavals, mask=mask_kind(dataset)
            )
            wkt = dataset.crs.to_wkt() if dataset.crs else None
            return cls(file, dataset.transform, wkt, dataset.block_shapes[0][0])

    def strips(self, block: int, progress: Progress) -> Iterator[np.ndarray]:
        """Rows from the top, uint8 (rows, width), 0 where there is no polygon."""
        height, width = self.file.shape
        rows = max(1, block * block // width)
        whole_blocks = -(-rows // self.block_height) * self.block_height
        read = whole_blocks if whole_blocks * width <= _MAX_READ else rows
        progress("polygons", 0, height * width / 1e6, "Mpx")
        for top in range(0, height, read):
            labels = self._labels(top, min(top + read, height))
            for start in range(0, len(labels), rows):
                strip = labels[start : start + rows]
                yield strip
                progress("polygons", (top + start + len(strip)) * width / 1e6, height * width / 1e6, "Mpx")

    def _labels(self, top: int, bottom: int) -> np.ndarray:
        values = self.file.read((slice(top, bottom), slice(0, self.file.shape[1]))).data[0]
        with np.errstate(invalid="ignore"):
            labels = values.astype(np.uint8, copy=False)
        if values.dtype != np.uint8 and not np.array_equal(values, labels):
            odd = values[values != labels][0]
            raise RasterError(f"{self.file.path} holds the value {odd}; classes are whole numbers from 0 to 255")
        return np.where(labels == UNLABELLED, np.uint8(BACKGROUND), labels)


@dataclass
class _Names:
    """Names of the classes met so far, and how many polygons each has."""

    given: Legend | None
    counts: dict[str, int] = field(default_factory=dict)
    _by_value: dict[int, LegendClass] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for item in self.given.classes if self.given else ():
            self._by_value[item.value] = item
            self.counts[item.name] = 0

    def count(self, values: np.ndarray) -> np.ndarray:
        """The name of each value, object (n,)."""
        for value, times in zip(*np.unique(values, return_counts=True), strict=True):
            item = self._by_value.setdefault(int(value), _class_of(int(value)))
            self.counts[item.name] = self.counts.get(item.name, 0) + int(times)
        names = np.empty(len(values), object)
        names[:] = [self._by_value[value].name for value in values.tolist()]
        return names

    def legend(self) -> Legend:
        """The classes given, and those found besides."""
        extra = [item for value, item in sorted(self._by_value.items()) if item.name not in self._given_names]
        classes = (*(self.given.classes if self.given else ()), *extra)
        return Legend(classes) if classes else Legend.binary()

    @property
    def _given_names(self) -> tuple[str, ...]:
        return self.given.names if self.given else ()


def _frames(cleaned: Iterable[Cleaned], ground: Ground, names: _Names) -> Iterator[gpd.GeoDataFrame]:
    """Tables of finished polygons; one at least, so that a file without polygons has its columns."""
    for polygons, values, regular in cleaned:
        placed = ground.place(polygons)
        columns = {"class": names.count(values), "class_id": values.astype(np.int32), "regular": regular}
        if ground.tells_metres:
            columns["area_m2"] = ground.areas_m2(placed)
        yield gpd.GeoDataFrame(columns, geometry=placed, crs=ground.crs)


def _gathered(traced: Iterable[Traced]) -> Iterator[Traced]:
    """Join small groups to ones of _CHUNK polygons or more; the last may be empty."""
    waiting: list[Traced] = []
    count = 0
    for some in traced:
        waiting.append(some)
        count += len(some.values)
        if count >= _CHUNK:
            yield _joined(waiting)
            waiting, count = [], 0
    yield _joined(waiting)


def _joined(groups: Sequence[Traced]) -> Traced:
    polygons = np.concatenate([np.empty(0, object), *(one.polygons for one in groups)])
    return Traced(polygons, np.concatenate([np.empty(0, np.uint8), *(one.values for one in groups)]))


def _write_all(
    paths: Sequence[Path],
    frames: Iterator[gpd.GeoDataFrame],
    fields: dict[str, str],
    crs: CRS | None,
    style_of: Callable[[Path], str],
) -> None:
    """Write the same tables to every file in one pass over them, and the styles; all files appear, or none."""
    queues: list[_Frames] = [Queue(maxsize=1) for _ in paths]
    with ExitStack() as stack:
        parts = [stack.enter_context(staged(path)) for path in paths]
        with ThreadPoolExecutor(len(paths)) as pool:
            writers = [
                pool.submit(_write_one, path, part, queue, fields, crs)
                for path, part, queue in zip(paths, parts, queues, strict=True)
            ]
            try:
                for frame in frames:
                    if not all(_put(frame, queue, writer) for queue, writer in zip(queues, writers, strict=True)):
                        break
            finally:
                # However it ended: unfinished files are thrown away with their folders.
                for queue, writer in zip(queues, writers, strict=True):
                    _put(None, queue, writer)
        for writer in writers:
            writer.result()
        for path, part in zip(paths, parts, strict=True):
            write_style(part, style_of(path))


def _write_one(path: Path, part: Path, queue: _Frames, fields: dict[str, str], crs: CRS | None) -> None:
    try:
        write_features(part, _taken(queue), fields=fields, crs=crs)
    except OutputError as error:
        # The person knows the output, not where it is made.
        raise OutputError(str(error).replace(str(part), str(path))) from error


def _put(item: gpd.GeoDataFrame | None, queue: _Frames, writer: Future[None]) -> bool:
    """Hand over as soon as there is room; False if nobody is there to take it any more."""
    while not writer.done():
        try:
            queue.put(item, timeout=0.1)
            return True
        except Full:
            continue
    return False


def _taken(queue: _Frames) -> Iterator[gpd.GeoDataFrame]:
    while (frame := queue.get()) is not None:
        yield frame
