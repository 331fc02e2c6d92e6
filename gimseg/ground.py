"""What pixels measure on the ground: their place on the map, lengths in metres, areas on the ellipsoid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import shapely
from pyproj import CRS, Geod, Transformer
from pyproj.exceptions import CRSError
from rasterio.transform import Affine

from gimseg.errors import GridError

_LONG_M = 20_000.0  # edges from here on are cut: a line that is straight on the map bends on the ellipsoid


class Measures(NamedTuple):
    """What polygons measure on the ellipsoid.

    Attributes:
        areas_m2: float64 (n,).
        perimeters_m: float64 (n,), of shell and holes together.
    """

    areas_m2: np.ndarray
    perimeters_m: np.ndarray


class Ragged(NamedTuple):
    """Polygons as one array of points.

    Attributes:
        points: float64 (p, 2), ring after ring, each closed.
        rings: (r + 1,) where each ring begins in `points`, and the end.
        firsts: (n,) where each polygon begins in `points`.
    """

    points: np.ndarray
    rings: np.ndarray
    firsts: np.ndarray

    @classmethod
    def of(cls, polygons: np.ndarray) -> Ragged:
        """From shapely polygons, of one part or several, (n,): one at least, none empty."""
        parts, firsts = polygons, np.arange(len(polygons))
        if (shapely.get_type_id(polygons) != shapely.GeometryType.POLYGON).any():
            parts, owners = shapely.get_parts(polygons, return_index=True)
            firsts = np.searchsorted(owners, firsts)
        _, points, (rings, shells) = shapely.to_ragged_array(parts)
        return cls(points, rings, rings[shells[firsts]])

    def sums(self, of_edges: np.ndarray) -> np.ndarray:
        """Sums over the edges of each polygon, (n,).

        Args:
            of_edges: (p - 1,), for each point what leads to the next one; what leads
                from ring to ring is left out.
        """
        inner = np.append(of_edges, 0).astype(of_edges.dtype)
        inner[self.rings[1:] - 1] = 0
        return np.add.reduceat(inner, self.firsts)


@dataclass(frozen=True)
class Ground:
    """From pixels to the map, and what things measure there.

    Attributes:
        pixel_m: width and height of a pixel at the raster's centre: metres, or the raster's
            own unit if nothing tells metres.
        to_degrees: from map coordinates to longitudes and latitudes on the CRS's own
            ellipsoid; None if nothing tells metres.
        centre_longitude: of the raster, degrees.
        trouble: why nothing tells metres.
    """

    transform: Affine
    crs: CRS | None
    pixel_m: tuple[float, float]
    to_degrees: Transformer | None
    centre_longitude: float = 0.0
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
            return cls(transform, None, own, None, trouble="has no CRS")
        if crs.geodetic_crs is None or crs.ellipsoid is None:
            trouble = f"has the CRS {crs.name!r}, which is not tied to the Earth"
            return cls(transform, crs, own, None, trouble=trouble)
        rows, columns = shape
        steps = np.array([(columns / 2, rows / 2), (columns / 2 + 1, rows / 2), (columns / 2, rows / 2 + 1)])
        x, y = _placed(transform, steps).T
        to_degrees = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
        lon, lat = to_degrees.transform(x, y)
        if not (np.isfinite([lon, lat]).all() and abs(lat[0]) <= 90):
            trouble = f"lies at ({x[0]:g}, {y[0]:g}), where its CRS {crs.name!r} has no place"
            return cls(transform, crs, own, None, trouble=trouble)
        geod = Geod(a=crs.ellipsoid.semi_major_metre, b=crs.ellipsoid.semi_minor_metre)
        _, _, (width, height) = geod.inv(lon[[0, 0]], lat[[0, 0]], lon[1:], lat[1:])
        return cls(transform, crs, (width, height), to_degrees, float(lon[0]))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know."""
        return (f"the mask {self.trouble}: the polygons have no area_m2 and no perimeter_m",) if self.trouble else ()

    @property
    def tells_metres(self) -> bool:
        """Whether lengths and areas are known."""
        return self.to_degrees is not None

    def place(self, polygons: np.ndarray) -> np.ndarray:
        """From pixels to the map; shells counter-clockwise."""
        return shapely.orient_polygons(shapely.transform(polygons, partial(_placed, self.transform)))

    def areas_m2(self, placed: np.ndarray) -> np.ndarray:
        """Areas on the ellipsoid of polygons on the map; see :meth:`measure`."""
        return self.measure(placed).areas_m2

    def measure(self, placed: np.ndarray) -> Measures:
        """Areas and perimeters on the ellipsoid, along edges that are straight on the map.

        Args:
            placed: polygons (n,) from :meth:`place`; only where :attr:`tells_metres`.
        """
        if not len(placed):
            return Measures(np.empty(0), np.empty(0))
        found, longest = self._measure(placed)
        far = np.flatnonzero(longest > _LONG_M)
        if len(far):
            step = _LONG_M * np.hypot(self.transform.a, self.transform.d) / self.pixel_m[0]
            finer, _ = self._measure(shapely.segmentize(placed[far], step))
            found.areas_m2[far], found.perimeters_m[far] = finer
        return found

    def _measure(self, placed: np.ndarray) -> tuple[Measures, np.ndarray]:
        """The measures, and the longest edge of each polygon, m."""
        ragged = Ragged.of(placed)
        lon, lat = self._to_radians(ragged.points)
        east, north = self._steps_m(lon, lat)
        lengths = np.hypot(east, north)
        inside = lengths.copy()
        inside[ragged.rings[1:-1] - 1] = 0
        longest = np.maximum.reduceat(np.append(inside, 0), ragged.firsts)
        return Measures(self._areas(ragged, lon, lat), ragged.sums(lengths)), longest

    def _to_radians(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Longitudes from the raster's centre, and latitudes."""
        transformer = self.to_degrees
        assert transformer is not None
        lon, lat = transformer.transform(*points.T)
        lon = lon - self.centre_longitude
        # PROJ answers within 180 degrees; a raster across the antimeridian goes on.
        lon = np.where(np.abs(lon) > 180 + 1e-9, lon - 360 * np.round(lon / 360), lon)
        return np.radians(lon), np.radians(lat)

    def _steps_m(self, lon: np.ndarray, lat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How far each point lies east and north of the one before, by the radii of curvature between them."""
        axis, squared = self._ellipsoid
        sine = np.sin((lat[1:] + lat[:-1]) / 2)
        root = np.sqrt(1 - squared * sine**2)
        return (
            np.diff(lon) * axis / root * np.sqrt(1 - sine**2),
            np.diff(lat) * axis * (1 - squared) / root**3,
        )

    def _areas(self, ragged: Ragged, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        """Areas in Lambert's cylindrical equal-area projection, where pixels of degrees keep straight edges."""
        axis, squared = self._ellipsoid
        sine, eccentricity = np.sin(lat), np.sqrt(max(squared, 1e-24))
        authalic = sine / (1 - squared * sine**2) + np.arctanh(eccentricity * sine) / eccentricity
        x, y = axis * lon, axis * (1 - squared) / 2 * authalic
        # From each ring's first point: products of whole coordinates would lose the small areas.
        first = np.repeat(ragged.rings[:-1], np.diff(ragged.rings))
        x, y = x - x[first], y - y[first]
        return np.abs(ragged.sums(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2

    @property
    def _ellipsoid(self) -> tuple[float, float]:
        """Semi-major axis, m, and the square of the eccentricity."""
        assert self.crs is not None and self.crs.ellipsoid is not None
        major, minor = self.crs.ellipsoid.semi_major_metre, self.crs.ellipsoid.semi_minor_metre
        return major, 1 - (minor / major) ** 2

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
