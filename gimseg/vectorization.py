"""Mask to polygons: exact outlines of every class, in memory that the raster's size does not decide.

The outlines are those of one pass over the whole mask (:mod:`gimseg.tracing`), then they
are cleaned as asked for (:mod:`gimseg.cleaning`), measured (:mod:`gimseg.attributes`) and
written.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from queue import Full, Queue
from typing import Any, TypeAlias

import geopandas as gpd
import numpy as np
import shapely

from gimseg.attributes import Attributes, ClassTally, fields_in
from gimseg.cleaning import Cleaned, Cleaning
from gimseg.confidence import Probabilities
from gimseg.crew import Crew
from gimseg.earlier import EarlierLayer
from gimseg.errors import OutputError, TilingError, VectorError
from gimseg.geopackages import POLYGONS, FurtherLayer, complete_geopackage
from gimseg.ground import Ground
from gimseg.legend import UNLABELLED, Legend
from gimseg.mask_legends import ClassName, Names, names_of_legend, names_of_mask, read_names
from gimseg.masks import Mask, Reading
from gimseg.origins import Origin
from gimseg.outputs import check_outputs, staged
from gimseg.progress import Progress, silent
from gimseg.regions import Objects, Regions
from gimseg.styles import joint_style, read_own_style, vector_style, write_style
from gimseg.tracing import Traced, trace
from gimseg.vector_output import check_features, check_size, check_text, driver_of, write_features

OBJECT_NAMES = ("connectivity", "instances")
"""The options of :func:`vectorize` that say what an object is."""
READING_NAMES = tuple(item.name for item in fields(Reading))
"""The options of :func:`vectorize` that say what in the raster is a class."""

PathLike = str | os.PathLike[str]

_Frames: TypeAlias = "Queue[gpd.GeoDataFrame | None]"

_CHUNK = 10_000  # features written together: the writers are slow in small bites
_SAMPLE = 512  # side of the squares of which the size of a Shapefile is foretold, px
_LEAST_PIXELS = 10_000_000  # of a mask whose polygons, were each one pixel, could fill a Shapefile
_FRAME_LIMIT = 1_000_000


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

    def to_geodataframe(self, limit: int = _FRAME_LIMIT) -> gpd.GeoDataFrame:
        """The polygons, read from the first of the files that keeps names whole.

        Args:
            limit: the most polygons that are read into memory.

        Raises:
            VectorError: there are more.
        """
        if self.count > limit:
            raise VectorError(
                f"{self.count:,} polygons and the limit is {limit:,}: read parts of {self.paths[0]} "
                "(bbox=...), or raise the limit"
            )
        path = min(self.paths, key=lambda path: path.suffix.lower() == ".shp")
        if driver_of(path) == "Parquet":
            return gpd.read_parquet(path)
        return gpd.read_file(path, **({"layer": POLYGONS} if driver_of(path) == "GPKG" else {}))


def vectorize(
    mask: PathLike,
    outputs: PathLike | Sequence[PathLike],
    *,
    legend: Legend | PathLike | None = None,
    connectivity: int = 4,
    instances: str | None = None,
    probabilities: PathLike | None = None,
    origin: Origin | None = None,
    layers: Sequence[FurtherLayer] = (),
    earlier: EarlierLayer | None = None,
    overwrite: bool = False,
    block: int = 2048,
    progress: Progress = silent,
    **options: Any,
) -> Vectorized:
    """Write the polygons of every class of a mask, with a QGIS style beside each file.

    A polygon is a connected region of one value; 0, 255, nodata and masked pixels give
    none. Columns: see :class:`gimseg.attributes.Attributes`. Polygons lie where the file's
    own transform puts its pixels. In a GeoPackage they are the layer ``polygons``.

    Args:
        mask: raster of classes, whole numbers, or of probabilities with a `threshold`.
        outputs: one file or several, by their endings: .shp .gpkg .fgb .geojson .geojsonl
            .parquet.
        legend: names and colours, or a file of them (.toml, .json, .qml); by default those
            in the mask, else ``class_1``, ...
        connectivity: 4: pixels of one object share edges; 8: or corners, and polygons have
            several parts.
        instances: split what touches: ``"distance"`` at necks, ``"probability"`` where the
            probabilities fall between two peaks.
        probabilities: raster for the attribute ``confidence``, in the CRS of the mask; by
            default the mask itself if a `threshold` is given, else there is none.
        origin: model and date of the polygons; by default what the mask's tags say.
        layers: further layers for each GeoPackage.
        earlier: polygons that were delivered before, of a mask that was predicted again in part.
        overwrite: existing outputs, and a style that a person made, may be replaced.
        block: about block x block pixels are worked on together; changes no polygon.
        progress: told of millions of pixels done.
        **options: those of :class:`gimseg.masks.Reading`: ``band``, ``values``, ``threshold``, ``refine``;
            and of :class:`gimseg.cleaning.Cleaning`: ``min_area_m2``, ``fill_holes_m2``,
            ``simplify_m``, ``coverage``, ``smooth_m``, ``right_angles``.

    Raises:
        OutputError: an output exists, cannot be written or would be too large for its
            format; before any work.
        RasterError: the mask or the probabilities cannot be read, or are none.
        GridError: an area was asked for and the mask has no usable CRS, or the
            probabilities lie elsewhere.
        LegendError: the legend cannot be read.
        VectorError: the earlier polygons are not those of the mask.
    """
    paths = tuple(map(Path, [outputs] if isinstance(outputs, str | os.PathLike) else outputs))
    reading = Reading(**{name: options.pop(name) for name in READING_NAMES if name in options})
    steps = Cleaning(**options)
    objects = Objects(connectivity, instances)
    objects.check(steps)
    _check_request(paths, block)
    check_outputs(paths, [mask, *([probabilities] if probabilities else [])], overwrite=overwrite)
    source = Mask.open(mask, reading, progress)
    ground = Ground.of(source.raster.transform, source.raster.crs_wkt, source.shape)
    steps.check(ground, mask)
    tally = ClassTally(_names(source, legend))
    attributes = Attributes(
        ground,
        origin or Origin.of_tags(source.raster.tags),
        _probabilities(source, probabilities, ground, tuple(tally.counts)),
        flags_angles=steps.right_angles,
        multipart=connectivity == 8,
    )
    _check_formats(paths, attributes, tally)
    _check_sizes(paths, attributes, source, steps)
    kept = {} if overwrite else {path: own for path in paths if (own := read_own_style(path))}
    regions = Regions(source, objects, steps, ground.pixel_m, block, probabilities)
    with Crew(regions.workers) as crew:
        traced = regions.stream(crew, progress)
        frames = _frames(steps.stream(_gathered(traced), ground), source, attributes, tally)
        if earlier is not None:
            frames = earlier.carry(frames)
        _write_all(paths, frames, attributes, _Dress(tally, kept, tuple(layers)))
    count = sum(tally.counts.values())
    notes = ground.notes + regions.notes
    if not count and source.holds_unlabelled_only():
        notes += (f"{mask} holds {UNLABELLED}, which is unlabelled, and no class: if it is one, give --values 255",)
    return Vectorized(count, dict(tally.counts), paths, tally.legend(), notes)


def _check_request(paths: Sequence[Path], block: int) -> None:
    if not paths:
        raise OutputError("no output is given: name one at least, like polygons.gpkg")
    if block < 1:
        raise TilingError(f"block={block}: 1 px at least is needed")


def _names(source: Mask, legend: Legend | PathLike | None) -> Names:
    """What the numbers of the mask are called."""
    if isinstance(legend, Legend):
        return names_of_legend(legend)
    if legend is not None:
        return read_names(legend)
    if source.threshold is None:
        return names_of_mask(source.path, source.raster.file.bands[0])
    (binary,) = Legend.binary(source.raster.names[0] or "object").classes
    return {binary.value: ClassName(binary.name, binary.colour)}


def _probabilities(source: Mask, path: PathLike | None, ground: Ground, names: tuple[str, ...]) -> Probabilities | None:
    if path is not None:
        found = Probabilities.open(path, ground, source.shape)
        found.check_classes(names)
        return found
    return None if source.threshold is None else Probabilities.of_scores(source.raster)


def _check_formats(paths: Sequence[Path], attributes: Attributes, tally: ClassTally) -> None:
    """Refuse, before the work, what a format cannot hold of names and texts."""
    for path in paths:
        check_features(path, fields_in(path, attributes.fields), attributes.ground.crs)
        for name in tally.counts:
            check_text(path, "class", len(name.encode()))
        check_text(path, "model", len((attributes.origin.model or "").encode()))


def _check_sizes(paths: Sequence[Path], attributes: Attributes, source: Mask, steps: Cleaning) -> None:
    """Refuse, before the work, a Shapefile that would pass 2 GB, judged by a sample of the mask."""
    shapefiles = [path for path in paths if driver_of(path) == "ESRI Shapefile"]
    height, width = source.shape
    if not shapefiles or height * width < _LEAST_PIXELS:
        return
    count = points = seen = 0
    for row, col in np.random.default_rng(0).random((16, 2)):
        top, left = int(row * max(height - _SAMPLE, 0)), int(col * max(width - _SAMPLE, 0))
        square = source.labels((slice(top, min(top + _SAMPLE, height)), slice(left, min(left + _SAMPLE, width))))
        for polygons, *_ in steps.stream(_gathered(trace([square])), attributes.ground):
            count += len(polygons)
            points += int(shapely.get_num_coordinates(polygons).sum())
        seen += square.size
    share = height * width / seen
    for path in shapefiles:
        check_size(path, fields_in(path, attributes.fields), int(count * share), int(points * share))


def _frames(
    cleaned: Iterable[Cleaned], source: Mask, attributes: Attributes, tally: ClassTally
) -> Iterator[gpd.GeoDataFrame]:
    """Tables of finished polygons; one at least, so that a file without polygons has its columns."""
    for group in cleaned:
        codes = source.codes_of(group.values)
        yield attributes.table(group, codes, tally.count(codes))


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


@dataclass(frozen=True)
class _Dress:
    """What files get besides polygons, once all classes are known."""

    tally: ClassTally
    kept: Mapping[Path, str]
    layers: tuple[FurtherLayer, ...]

    def put_on(self, part: Path, path: Path) -> None:
        """Complete a file that is still being made.

        Args:
            part: where it is.
            path: where it will be.
        """
        legend = self.tally.legend()
        # A mask of the same name shares the style beside it.
        beside = joint_style(legend) if self.tally.is_of_masks() else vector_style(legend)
        write_style(part, self.kept.get(path, beside))
        if driver_of(path) == "GPKG":
            complete_geopackage(part, self.layers, {POLYGONS: self.kept.get(path, vector_style(legend))})


def _write_all(
    paths: Sequence[Path], frames: Iterator[gpd.GeoDataFrame], attributes: Attributes, dress: _Dress
) -> None:
    """Write the same tables to every file in one pass over them, and the styles; all files appear, or none."""
    queues: list[_Frames] = [Queue(maxsize=1) for _ in paths]
    with ExitStack() as stack:
        parts = [stack.enter_context(staged(path)) for path in paths]
        with ThreadPoolExecutor(len(paths)) as pool:
            writers = [
                pool.submit(_write_one, path, part, queue, attributes)
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
            with _naming(path, part):
                dress.put_on(part, path)


def _write_one(path: Path, part: Path, queue: _Frames, attributes: Attributes) -> None:
    short = dict(zip(attributes.fields, fields_in(path, attributes.fields), strict=True))
    frames = (frame.rename(columns=short) for frame in _taken(queue))
    with _naming(path, part):
        columns = fields_in(path, attributes.fields)
        crs, kind = attributes.ground.crs, attributes.geometry_type
        write_features(part, frames, fields=columns, crs=crs, geometry_type=kind, layer=POLYGONS)


@contextmanager
def _naming(path: Path, part: Path) -> Iterator[None]:
    """The person knows the output, not where it is made."""
    try:
        yield
    except OutputError as error:
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
