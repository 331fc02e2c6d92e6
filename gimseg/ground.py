"""What pixels measure on the ground: their place on the map, lengths in metres, areas on the ellipsoid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import shapely
from pyproj import CRS, Geod, Transformer
from pyproj.exceptions import CRSError
from rasterio.transform import Affine

from gimseg.errors import GridError


@dataclass(frozen=True)
class Ground:
    """From pixels to the map, and what things measure there.

    Attributes:
        pixel_m: width and height of a pixel at the raster's centre: metres, or the raster's
            own unit if nothing tells metres.
        to_equal_area: from map coordinates to ones in which areas are square metres on the
            ellipsoid; None if nothing tells metres.
        trouble: why there is none.
    """

    transform: Affine
    crs: CRS | None
    pixel_m: tuple[float, float]
    to_equal_area: Transformer | None
    trouble: str = ""

    @classmethod
    def of(cls, transform: Affine, crs_wkt: str | None, shape: tuple[int, int]) -> Ground:
        """The ground under a raster.

        Args:
            transform: from (column, row) to map coordinates.
            crs_wkt: its CRS; None if it has none.
            shape: (rows, columns).

        Raises:
            GridError: the CRS cannot be read.
        """
        own = (np.hypot(transform.a, transform.d), np.hypot(transform.b, transform.e))
        try:
            crs = CRS.from_wkt(crs_wkt) if crs_wkt else None
        except CRSError as error:
            raise GridError(
                f"the CRS {crs_wkt!r} cannot be read ({error}): set it anew (gdal_edit.py -a_srs)"
            ) from error
        if crs is None:
            return cls(transform, None, own, None, "has no CRS")
        if crs.geodetic_crs is None or crs.ellipsoid is None:
            return cls(transform, crs, own, None, f"has the CRS {crs.name!r}, which is not tied to the Earth")
        rows, columns = shape
        steps = np.array([(columns / 2, rows / 2), (columns / 2 + 1, rows / 2), (columns / 2, rows / 2 + 1)])
        x, y = _placed(transform, steps).T
        lon, lat = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True).transform(x, y)
        if not (np.isfinite([lon, lat]).all() and abs(lat[0]) <= 90):
            trouble = f"lies at ({x[0]:g}, {y[0]:g}), where its CRS {crs.name!r} has no place"
            return cls(transform, crs, own, None, trouble)
        geod = Geod(a=crs.ellipsoid.semi_major_metre, b=crs.ellipsoid.semi_minor_metre)
        _, _, (width, height) = geod.inv(lon[[0, 0]], lat[[0, 0]], lon[1:], lat[1:])
        # Cylindrical: the edges of pixels in degrees, and of Web Mercator's, stay straight, so that areas are exact.
        equal_area = CRS.from_proj4(
            f"+proj=cea +lon_0={lon[0]} +a={crs.ellipsoid.semi_major_metre} +b={crs.ellipsoid.semi_minor_metre}"
        )
        return cls(transform, crs, (width, height), Transformer.from_crs(crs, equal_area, always_xy=True))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know."""
        return (f"the mask {self.trouble}: the polygons have no area_m2",) if self.trouble else ()

    def place(self, polygons: np.ndarray) -> np.ndarray:
        """From pixels to the map; shells counter-clockwise."""
        return shapely.orient_polygons(shapely.transform(polygons, partial(_placed, self.transform)))

    def areas_m2(self, placed: np.ndarray) -> np.ndarray:
        """Areas on the ellipsoid of polygons on the map; only where `to_equal_area` is known."""
        transformer = self.to_equal_area
        assert transformer is not None
        return shapely.area(shapely.transform(placed, lambda xy: np.column_stack(transformer.transform(*xy.T))))

    def simplify(self, polygons: np.ndarray, tolerance_m: float) -> tuple[np.ndarray, np.ndarray]:
        """Douglas-Peucker in ground metres, polygons in pixels before and after.

        Returns:
            valid polygons, and of which one of the given ones each is (nearly always one each).
        """
        scale = np.array(self.pixel_m)
        simple = shapely.simplify(shapely.transform(polygons, lambda xy: xy * scale), tolerance_m)
        # To a millionth of a pixel: corners of pixels come back as the whole numbers they were.
        simple = shapely.transform(simple, lambda xy: np.round(xy / scale, 6))
        broken = ~shapely.is_valid(simple)
        simple[broken] = shapely.make_valid(simple[broken], method="structure", keep_collapsed=False)
        parts, origins = shapely.get_parts(simple, return_index=True)
        whole = ~shapely.is_empty(parts) & (shapely.get_type_id(parts) == shapely.GeometryType.POLYGON)
        return parts[whole], origins[whole]


def _placed(transform: Affine, points: np.ndarray) -> np.ndarray:
    """Map coordinates of (column, row) points, both (n, 2)."""
    a, b, c, d, e, f = transform[:6]
    column, row = points.T
    return np.column_stack([a * column + b * row + c, d * column + e * row + f])
