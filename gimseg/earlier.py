"""Polygons that were delivered before, where a mask is predicted again in part.

The whole mask is traced again, so that no object is cut where new and old meet. What is
said of a polygon that lies wholly on old ground was found by the old model, and stays:
its confidence, model and date. Polygons are told apart by their ids.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import shapely
from pyproj import CRS

from gimseg.errors import VectorError
from gimseg.vector_formats import find_kind
from gimseg.vectors import open_layer

_KEPT = ("confidence", "model", "date")
_CHUNK = 100_000


@dataclass(frozen=True, eq=False)
class Renewed:
    """Ground that is predicted again, in the CRS of the mask.

    Args:
        ground: its footprint.
        crs: of the mask, if it has one.
        pixel: side of a pixel, in the unit of the CRS.
        reach: how far from it outlines may change, in the unit of the CRS.
    """

    ground: shapely.Geometry
    crs: CRS | None
    pixel: float
    reach: float

    def holds_pixels_of(self, polygons: np.ndarray) -> np.ndarray:
        """Which polygons reach into it, bool (n,)."""
        core = self.ground.buffer(-self.pixel / 4, join_style="mitre")
        return _meets(polygons, core)

    def is_near(self, polygons: np.ndarray) -> np.ndarray:
        """Which polygons may have changed, bool (n,): those whose bounds come near."""
        return _meets(shapely.envelope(polygons), self.ground.buffer(self.reach, join_style="mitre"))


@dataclass(frozen=True, eq=False)
class EarlierLayer:
    """What a layer that was delivered says of its polygons.

    Args:
        path: of the layer.
        ids: of its polygons, sorted, uint64 (n,).
        said: columns of what is said of them, (n,) each.
        far: of which no pixel can have changed, bool (n,).
        renewed: ground that is predicted again.
        may_differ: whether the layer may hold other polygons than the mask has, far from that ground.
    """

    path: str
    ids: np.ndarray
    said: pd.DataFrame
    far: np.ndarray
    renewed: Renewed
    may_differ: bool = False
    _met: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_met", np.zeros(len(self.ids), bool))

    @classmethod
    def read(cls, path: str | os.PathLike[str], renewed: Renewed, *, may_differ: bool = False) -> EarlierLayer:
        """Read a layer, some polygons at a time, and keep a few numbers of each.

        Raises:
            VectorError: it cannot be read, or has no ids.
        """
        path = os.fspath(path)
        layer = open_layer(path)
        if "id" not in layer.fields:
            raise VectorError(f"{path} has no attribute id: it was not made by gimseg predict")
        columns = ["id", *(name for name in _KEPT if name in layer.fields)]
        parts = []
        for frame in _chunks(path, layer.layer, layer.count, columns):
            # GeoJSON is in longitude and latitude, whatever the mask is in.
            shown = (frame.to_crs(renewed.crs) if frame.crs and renewed.crs else frame).geometry.to_numpy()
            numbers = np.array([_number(text) for text in frame["id"]], np.uint64)
            parts.append(pd.DataFrame(frame[columns[1:]]).assign(_id=numbers, _far=~renewed.is_near(shown)))
        table = pd.concat(parts, ignore_index=True).sort_values("_id", kind="stable", ignore_index=True)
        for name in table.columns.intersection(["model"]):
            table[name] = table[name].astype("category")
        said = table.drop(columns=["_id", "_far"])
        return cls(path, table["_id"].to_numpy(), said, table["_far"].to_numpy(bool), renewed, may_differ)

    def carry(self, frames: Iterable[gpd.GeoDataFrame]) -> Iterator[gpd.GeoDataFrame]:
        """The same tables, where polygons on old ground keep what was said of them.

        Raises:
            VectorError: at the end, if the layer is not what the mask gives: it was made with
                other options, or edited.
        """
        strangers = 0
        for frame in frames:
            numbers = np.array([_number(text) for text in frame["id"]], np.uint64)
            places = np.searchsorted(self.ids, numbers)
            known = places < len(self.ids)
            known[known] = self.ids[places[known]] == numbers[known]
            self._met[places[known]] = True
            shown = frame.geometry.to_numpy()
            strangers += int((~known & ~self.renewed.is_near(shown)).sum())
            stays = np.flatnonzero(known & ~self.renewed.holds_pixels_of(shown))
            yield self._said_of(frame, stays, places[stays])
        gone = int((self.far & ~self._met).sum())
        if (strangers or gone) and not self.may_differ:
            raise VectorError(
                f"{self.path} is not what its mask gives: away from the ground that is predicted again it lacks "
                f"{strangers:,} polygons and has {gone:,} others. It was made with other options (give those of the "
                "prediction, as --min-area or --simplify) or edited by hand: --overwrite replaces it all the same"
            )

    def _said_of(self, frame: gpd.GeoDataFrame, rows: np.ndarray, places: np.ndarray) -> gpd.GeoDataFrame:
        said = self.said.iloc[places]
        for name in said.columns.intersection(frame.columns):
            values = frame[name].to_numpy(copy=True)
            values[rows] = said[name].astype(values.dtype) if name != "date" else pd.to_datetime(said[name]).dt.date
            frame[name] = values
        return frame


def _chunks(path: str, layer: str | None, count: int, columns: list[str]) -> Iterator[gpd.GeoDataFrame]:
    if find_kind(path) == "GeoParquet":
        yield gpd.read_parquet(path, columns=[*columns, "geometry"])
        return
    for first in range(0, max(count, 1), _CHUNK):
        yield pyogrio.read_dataframe(path, layer=layer, columns=columns, skip_features=first, max_features=_CHUNK)


def _number(text: object) -> int:
    try:
        return int(str(text), 16)
    except ValueError:
        return 0


def _meets(shapes: np.ndarray, ground: shapely.Geometry) -> np.ndarray:
    shapely.prepare(ground)
    return np.asarray(shapely.intersects(ground, shapes), bool)
