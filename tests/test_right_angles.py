"""Laws of right angles: what was right-angled comes back; what is not is left alone."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from rasterio.features import rasterize
from shapely.affinity import rotate

from gimseg.right_angles import LEAST_IOU, right_angled
from gimseg.tracing import trace

BOX = shapely.box(0, 0, 80, 40)
L_SHAPE = shapely.Polygon([(0, 0), (80, 0), (80, 30), (40, 30), (40, 70), (0, 70)])
COURT = shapely.Polygon(shapely.box(0, 0, 90, 80).exterior, [shapely.box(20, 20, 60, 50).exterior.coords[::-1]])
CHAMFERED = shapely.Polygon([(0, 0), (80, 0), (80, 40), (50, 70), (0, 70)])
SHAPES = {"box": BOX, "L": L_SHAPE, "court": COURT, "diagonal": CHAMFERED}


def burnt(shape: shapely.Polygon) -> shapely.Polygon:
    """The outline of the pixels whose centres it covers."""
    left, bottom, right, top = (round(bound) for bound in shape.bounds)
    origin = (left - 3, bottom - 3)
    mask = rasterize(
        [shape], (top - bottom + 6, right - left + 6), transform=(1, 0, origin[0], 0, 1, origin[1]), dtype=np.uint8
    )
    (polygon,) = (one for some in trace([mask]) for one in some.polygons)
    return shapely.transform(polygon, lambda xy: xy + origin)


def turns(polygon: shapely.Polygon) -> np.ndarray:
    """Angles between successive edges, degrees modulo 45."""
    found = []
    for ring in (polygon.exterior, *polygon.interiors):
        edges = np.diff(np.array(ring.coords), axis=0)
        angles = np.degrees(np.arctan2(edges[:, 1], edges[:, 0]))
        found.append(np.diff(angles, append=angles[0]))
    return (np.concatenate(found) + 22.5) % 45 - 22.5


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("angle", [0, 3, 17, 30, 45, 71])
def test_a_burnt_building_comes_back(name: str, angle: float) -> None:
    drawn = rotate(SHAPES[name], angle, origin=(0, 0))
    found, regular = right_angled(np.array([burnt(drawn)]), 1.7)
    assert regular.all()
    assert shapely.get_num_coordinates(found[0]) == shapely.get_num_coordinates(drawn)
    assert np.abs(turns(found[0])).max() < 1e-6
    overlap = found[0].intersection(drawn).area / found[0].union(drawn).area
    assert overlap > 0.975
    assert found[0].hausdorff_distance(drawn) < 1.6


def test_many_at_once_are_as_one_by_one() -> None:
    outlines = np.array([burnt(rotate(shape, angle)) for shape in SHAPES.values() for angle in range(0, 90, 7)])
    together, regular = right_angled(outlines, 1.7)
    alone = [right_angled(outlines[place : place + 1], 1.7) for place in range(len(outlines))]
    assert regular.tolist() == [flag for _, flags in alone for flag in flags]
    assert shapely.equals_exact(together, np.concatenate([found for found, _ in alone]), 1e-9).all()


def test_what_does_not_fit_stays_as_it_was() -> None:
    comb = shapely.union_all([shapely.box(0, 0, 41, 2), *(shapely.box(4 * n, 0, 4 * n + 1, 30) for n in range(11))])
    thread = shapely.LineString([(0, 0), (30, 22), (60, 5), (90, 44)]).buffer(1.2)
    for shape in (burnt(thread), burnt(comb)):
        found, regular = right_angled(np.array([shape]), 2.5)
        if not regular[0]:
            assert found[0].equals_exact(shape)
    assert not right_angled(np.array([burnt(thread)]), 2.5)[1][0]


def test_every_polygon_of_noise_is_valid_and_near() -> None:
    noise = (np.random.default_rng(2).random((120, 120)) < 0.62).astype(np.uint8)
    traced = np.concatenate([some.polygons for some in trace([noise])])
    found, regular = right_angled(traced, 1.5)
    assert shapely.is_valid(found).all() and len(found) == len(traced)
    common = shapely.area(shapely.intersection(found, traced))
    assert (common >= LEAST_IOU * (shapely.area(found) + shapely.area(traced) - common) - 1e-6).all()
    assert shapely.equals_exact(found[~regular], traced[~regular], 0).all()


def test_nothing_is_nothing() -> None:
    assert len(right_angled(np.empty(0, object), 1)[0]) == 0
