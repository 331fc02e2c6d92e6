"""Where things stand in a synthetic scene: roads, parcels, buildings, trees, drawn from a seed.

A layout is pure geometry in metres (x east, y north) and knows nothing of pixels
or light: :mod:`gimseg.scenes` paints it, at any resolution.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import shapely
from numpy.random import Generator
from shapely.geometry import LineString, Point, Polygon, box
from shapely.geometry.base import BaseGeometry
from shapely.ops import polygonize, split, unary_union

TURF = "turf"
MATERIALS = ("tile", "metal", "painted", "rusty", "concrete", "slate", "thatch", TURF)
_FREQUENCY = (0.22, 0.29, 0.14, 0.13, 0.10, 0.08, 0.04, 0.0)
CROPS = ("green", "young", "ploughed", "straw", "fallow")


@dataclass(frozen=True)
class Style:
    """What kind of land: shares are fractions of the area, the rest are fields.

    `turf` is the share of the buildings that have a roof of grass, `floors` that of the
    plots and fields with a drying floor of bare clay.
    """

    homes: float
    wood: float
    plot_m2: float
    field_m2: float
    turf: float = 0.0
    floors: float = 0.0


STYLES = {
    "village": Style(homes=0.55, wood=0.10, plot_m2=640.0, field_m2=1900.0),
    "farmland": Style(homes=0.16, wood=0.12, plot_m2=800.0, field_m2=3200.0),
    "town": Style(homes=0.88, wood=0.04, plot_m2=480.0, field_m2=1200.0),
    # What no other style has, to be learned later: roofs like meadows, bare soil like roofs.
    "highland": Style(homes=0.70, wood=0.05, plot_m2=640.0, field_m2=1900.0, turf=0.5, floors=0.45),
}


class Wing(NamedTuple):
    """A rectangle on the ground: centre (m), sides along and across the ridge (m), ridge angle (radians)."""

    x: float
    y: float
    length: float
    width: float
    angle: float

    def to_polygon(self) -> Polygon:
        """Its outline."""
        along = np.array([np.cos(self.angle), np.sin(self.angle)]) * self.length / 2
        across = np.array([-np.sin(self.angle), np.cos(self.angle)]) * self.width / 2
        corners = [-along - across, along - across, along + across, -along + across]
        return Polygon([(self.x + dx, self.y + dy) for dx, dy in corners])

    def beside(self, along: float, across: float, length: float, width: float, turn: float = 0.0) -> Wing:
        """Another rectangle, at an offset (m) in this one's own directions."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        x, y = self.x + along * cos - across * sin, self.y + along * sin + across * cos
        return Wing(x, y, length, width, self.angle + turn)


@dataclass(frozen=True)
class Building:
    """Wings under one roof; `roof` is gable, hip, shed or flat; `pitch` is rise over run."""

    wings: tuple[Wing, ...]
    material: str
    roof: str
    eaves_m: float
    pitch: float

    @cached_property
    def footprint(self) -> Polygon:
        """The outline of the roof."""
        return unary_union([wing.to_polygon() for wing in self.wings])


class Road(NamedTuple):
    """A centre line with a surface: asphalt, dirt, or track."""

    line: LineString
    surface: str
    width: float


class Parcel(NamedTuple):
    """A piece of land: `cover` is yard, wood, meadow or one of CROPS; crop rows run along `angle`."""

    polygon: Polygon
    cover: str
    angle: float


class Tree(NamedTuple):
    """A crown: centre and radius (m), and whether it is a palm."""

    x: float
    y: float
    radius: float
    palm: bool


@dataclass(frozen=True)
class Layout:
    """All that stands on an area (metres, x east, y north)."""

    area: Polygon
    roads: tuple[Road, ...]
    parcels: tuple[Parcel, ...]
    buildings: tuple[Building, ...]
    trees: tuple[Tree, ...]
    pads: tuple[BaseGeometry, ...]
    walls: tuple[BaseGeometry, ...]
    cars: tuple[Wing, ...]
    ponds: tuple[Polygon, ...]
    floors: tuple[Wing, ...] = ()


def draw_layout(seed: int, width_m: float, height_m: float, style: Style) -> Layout:
    """Draw a layout that covers (0, 0) to (width_m, height_m).

    The same arguments give the same layout.
    """
    rng = np.random.default_rng([seed, 1])
    area = box(0, 0, width_m, height_m)
    roads = _roads(rng, area)
    parcels = _parcels(rng, area, roads, style)
    buildings, pads, walls = [], [], []
    favourite: dict[int, str] = {}
    for block, parcel in parcels:
        homes = parcel.cover == "yard"
        if homes or (parcel.cover in CROPS and rng.random() < 0.06):
            liked = favourite.setdefault(block, str(rng.choice(MATERIALS, p=_FREQUENCY)))
            built = _homestead(rng, parcel, liked)
            buildings += built
            if built and rng.random() < 0.17:
                pads.append(_pad(rng, parcel, built[0]))
            if homes and rng.random() < 0.3:
                walls.append(parcel.polygon.buffer(-0.6).boundary)
    land = tuple(parcel for _, parcel in parcels)
    # Drawn apart, so that all other styles are what they were without them.
    rare = np.random.default_rng([seed, 4])
    buildings = [_turfed(building) if rare.random() < style.turf else building for building in buildings]
    houses = unary_union([building.footprint for building in buildings])
    floors = tuple(_floors(rare, land, houses, style.floors))
    ponds = tuple(_ponds(rng, land, houses, area.area))
    kept_out = [*(b.footprint for b in buildings), *ponds, *(r.line.buffer(r.width / 2) for r in roads)]
    kept_out += [floor.to_polygon() for floor in floors]
    return Layout(
        area=area,
        roads=tuple(roads),
        parcels=land,
        buildings=tuple(buildings),
        trees=tuple(_trees(rng, land, kept_out)),
        pads=tuple(pad for pad in pads if not pad.is_empty),
        walls=tuple(wall for wall in walls if not wall.is_empty),
        cars=tuple(_cars(rng, roads, buildings, area)),
        ponds=ponds,
        floors=floors,
    )


def _roads(rng: Generator, area: Polygon) -> list[Road]:
    """Two families of wavy lines that cross; some of the second family end at one of the first."""
    heading = rng.uniform(0, np.pi)
    first = list(_family(rng, area, heading, 105.0))
    second = []
    for road in _family(rng, area, heading + np.pi / 2 + rng.uniform(-0.3, 0.3), 150.0):
        if rng.random() < 0.5:
            stop = first[rng.integers(len(first))]
            parts = [part for part in split(road.line, stop.line).geoms if part.length > 40]
            road = road._replace(line=parts[rng.integers(len(parts))] if parts else road.line)
            # Asphalt that ends at a footpath looks like a mistake.
            if road.surface == "asphalt" and stop.surface != "asphalt":
                road = road._replace(surface="dirt", width=4.2)
        second.append(road)
    return first + second


def _family(rng: Generator, area: Polygon, heading: float, spacing: float) -> Iterator[Road]:
    """Roads of about one heading (radians), about `spacing` metres apart."""
    centre, reach = area.centroid, np.hypot(*np.ptp(np.reshape(area.bounds, (2, 2)), axis=0)) / 2 + 10
    run = np.arange(-reach, reach + 4, 4.0)
    offset = -reach + rng.uniform(0.2, 0.8) * spacing
    while offset < reach:
        waves = [(rng.uniform(3, 13), rng.uniform(170, 380)), (rng.uniform(0.5, 3), rng.uniform(50, 110))]
        side = offset + sum(a * np.sin(2 * np.pi * run / period + rng.uniform(0, 6.28)) for a, period in waves)
        x = centre.x + run * np.cos(heading) - side * np.sin(heading)
        y = centre.y + run * np.sin(heading) + side * np.cos(heading)
        surface = str(rng.choice(["asphalt", "dirt", "track"], p=[0.35, 0.4, 0.25]))
        width = {"asphalt": rng.uniform(5.5, 7.5), "dirt": rng.uniform(3.2, 5.0), "track": rng.uniform(2.4, 3.0)}
        yield Road(LineString(np.column_stack([x, y])), surface, width[surface])
        offset += spacing * rng.uniform(0.6, 1.4)


def _parcels(rng: Generator, area: Polygon, roads: list[Road], style: Style) -> list[tuple[int, Parcel]]:
    """Cut the land between the roads into parcels, each with the number of its block."""
    lines = [road.line for road in roads]
    tarmac = unary_union([road.line.buffer(road.width / 2 + 0.8) for road in roads])
    blocks = list(polygonize(unary_union([*lines, area.boundary]).intersection(area)))
    # A block that is too long for one use is cut first, so that the shares of the uses can be met.
    blocks = [part for block in blocks for part in _cut(rng, block, 9000.0)]
    rng.shuffle(blocks)  # type: ignore[arg-type]
    parcels, used = [], 0.0
    for number, block in enumerate(blocks):
        share = (used + block.area / 2) / area.area
        used += block.area
        homes = number == 0 or share < style.homes
        use = "homes" if homes else "wood" if share < style.homes + style.wood else "fields"
        size = style.plot_m2 if use == "homes" else style.field_m2
        for land in _polygons(block.difference(tarmac)):
            for piece in _cut(rng, land, size):
                cover = "yard" if use == "homes" else _cover(rng, use)
                parcels.append((number, Parcel(piece, cover, _angle(piece))))
    return parcels


def _cover(rng: Generator, use: str) -> str:
    if use == "wood":
        return "wood" if rng.random() < 0.6 else "meadow"
    return str(rng.choice([*CROPS, "meadow"], p=[0.24, 0.24, 0.17, 0.15, 0.1, 0.1]))


def _cut(rng: Generator, land: Polygon, size_m2: float) -> list[Polygon]:
    """Halve a polygon across its longer side until the pieces are about `size_m2` large."""
    pending, done = [land], []
    while pending:
        piece = pending.pop()
        if piece.area < size_m2 * rng.uniform(0.9, 1.8):
            done.append(piece)
            continue
        corners = np.array(piece.minimum_rotated_rectangle.exterior.coords)
        sides = np.diff(corners[:3], axis=0)
        long = sides[np.argmax(np.hypot(*sides.T))]
        middle = corners[:4].mean(axis=0) + long * rng.uniform(-0.14, 0.14)
        tilt = rng.normal(0, 0.03)
        across = np.array([-long[1] - tilt * long[0], long[0] - tilt * long[1]]) * 2
        halves = _polygons(split(piece, LineString([middle - across, middle + across])))
        (pending if len(halves) > 1 else done).extend(halves)
    return done


def _polygons(geometry: BaseGeometry) -> list[Polygon]:
    """The polygons of a geometry that are worth having (more than 4 m²)."""
    return [part for part in shapely.get_parts(geometry) if part.geom_type == "Polygon" and part.area > 4]


def _angle(polygon: Polygon) -> float:
    """Direction of the longer side, radians."""
    corners = np.array(polygon.minimum_rotated_rectangle.exterior.coords)
    sides = np.diff(corners[:3], axis=0)
    dx, dy = sides[np.argmax(np.hypot(*sides.T))]
    return float(np.arctan2(dy, dx))


def _homestead(rng: Generator, parcel: Parcel, liked: str) -> list[Building]:
    """A house and its sheds, inside the parcel and clear of each other."""
    inner = parcel.polygon.buffer(-1.3)
    if inner.is_empty:
        return []
    hall = inner.area > 620 and rng.random() < 0.18
    built: list[Building] = []
    for number in range(1 + min(rng.poisson(0.45), 3)):
        size = (rng.uniform(3.6, 7), rng.uniform(3, 4.5)) if number else (rng.uniform(10, 17), rng.uniform(7.5, 11))
        if hall and not number:
            size = (rng.uniform(20, 38), rng.uniform(8, 13))
        turn = parcel.angle + rng.normal(0, 0.04) + (np.pi / 2 if rng.random() < 0.35 else 0)
        taken = unary_union([building.footprint for building in built]).buffer(0.7)
        building = _placed(rng, inner.difference(taken), turn, size, liked, small=number > 0)
        if building:
            built.append(building)
    return built


def _placed(
    rng: Generator, room: BaseGeometry, angle: float, size: tuple[float, float], liked: str, *, small: bool
) -> Building | None:
    """A building that fits into `room`, smaller at each try; None if it does not."""
    shapely.prepare(room)
    left, bottom, right, top = room.bounds if not room.is_empty else (0, 0, 0, 0)
    ell = not small and rng.random() < 0.28
    for attempt in range(14):
        length, width = np.array(size) * 0.96**attempt
        main = Wing(rng.uniform(left, right), rng.uniform(bottom, top), length, width, angle)
        wings: tuple[Wing, ...] = (main,)
        if ell:
            depth, side = width * rng.uniform(0.75, 1.0), width * rng.uniform(0.55, 0.8)
            at = (length - side) / 2 * rng.choice([-1, 1])
            wings += (main.beside(at, rng.choice([-1, 1]) * (width + depth) / 2.5, depth * 1.2, side, np.pi / 2),)
        building = _roofed(rng, wings, liked, small)
        if min(length, width) > 1.9 and room.contains(building.footprint):
            return building
    return None


def _roofed(rng: Generator, wings: tuple[Wing, ...], liked: str, small: bool) -> Building:
    material = liked if rng.random() < 0.2 else str(rng.choice(MATERIALS, p=_FREQUENCY))
    if small and material in ("tile", "slate"):
        material = "rusty"
    if material == "concrete":
        return Building(wings, material, "flat", rng.uniform(3.5, 8.5) - 1.0 * small, 0.0)
    roof = str(rng.choice(["shed", "gable"] if small else ["gable", "hip"], p=[0.7, 0.3]))
    pitch = {"thatch": 0.8, "tile": 0.55, "slate": 0.55}.get(material, 0.32) * rng.uniform(0.8, 1.15)
    return Building(wings, material, roof, rng.uniform(2.0, 2.6) if small else rng.uniform(2.7, 5.0), pitch)


def _turfed(building: Building) -> Building:
    return replace(building, material=TURF, roof="gable", pitch=0.35)


def _floors(rng: Generator, parcels: tuple[Parcel, ...], houses: BaseGeometry, share: float) -> Iterator[Wing]:
    """Drying floors of clay on plots and fields, as large as houses and clear of them."""
    open_land = [parcel for parcel in parcels if parcel.cover not in ("wood", "meadow")]
    for parcel in open_land:
        if rng.random() >= share:
            continue
        room = parcel.polygon.buffer(-1.0).difference(houses.buffer(2.0))
        left, bottom, right, top = room.bounds if not room.is_empty else parcel.polygon.bounds
        for attempt in range(20):
            length, width = np.array([rng.uniform(9, 15), rng.uniform(7, 10)]) * 0.97**attempt
            floor = Wing(rng.uniform(left, right), rng.uniform(bottom, top), length, width, parcel.angle)
            if room.contains(floor.to_polygon()):
                yield floor
                break


def _pad(rng: Generator, parcel: Parcel, house: Building) -> BaseGeometry:
    """A paved court beside a house, of the colour of concrete roofs but flat on the ground."""
    main = house.wings[0]
    side = rng.choice([-1, 1])
    court = main.beside(0, side * main.width, main.length * rng.uniform(0.6, 1.1), main.width * rng.uniform(1.2, 1.8))
    return court.to_polygon().intersection(parcel.polygon.buffer(-0.8))


def _trees(rng: Generator, parcels: tuple[Parcel, ...], kept_out: list[BaseGeometry]) -> Iterator[Tree]:
    """Woods, gardens, hedges and lone clumps, clear of buildings, roads and water."""
    drawn = []
    for parcel in parcels:
        polygon = parcel.polygon
        every_m2 = {"wood": 19.0, "meadow": 190.0, "yard": 95.0}.get(parcel.cover, 1500.0)
        size = {"wood": (2.0, 4.8), "meadow": (1.0, 4.4)}.get(parcel.cover, (0.9, 4.2))
        centres = _scattered(rng, polygon, rng.poisson(polygon.area / every_m2 / 2))
        # Half of the trees stand in clumps: they are seeded beside others.
        centres = np.vstack([centres, centres + rng.normal(0, 3.2, centres.shape)])
        if rng.random() < 0.32:
            along = np.arange(0, polygon.exterior.length, rng.uniform(2.2, 5.0))
            along = along[rng.random(along.size) < rng.uniform(0.3, 0.9)]
            hedge = shapely.get_coordinates(shapely.line_interpolate_point(polygon.exterior, along))
            drawn += [(x, y, rng.uniform(0.8, 2.1)) for x, y in hedge + rng.normal(0, 0.7, hedge.shape)]
        drawn += [(x, y, rng.uniform(*size)) for x, y in centres]
    table = np.reshape(drawn, (-1, 3))
    points, reach = shapely.points(table[:, :2]), table[:, 2] * 0.85
    close, _ = shapely.STRtree(kept_out).query(points, predicate="dwithin", distance=reach)
    palms = rng.random(len(drawn)) < 0.07
    for index in np.setdiff1d(np.arange(len(drawn)), close):
        x, y, radius = drawn[index]
        palm = bool(palms[index])
        yield Tree(x, y, min(radius + 0.8, 3.4) if palm else radius, palm)


def _scattered(rng: Generator, polygon: Polygon, count: int) -> np.ndarray:
    """Up to `count` points (n, 2) in a polygon."""
    left, bottom, right, top = polygon.bounds
    points = rng.uniform((left, bottom), (right, top), (count, 2))
    return points[shapely.contains_xy(polygon, points[:, 0], points[:, 1])]


def _cars(rng: Generator, roads: list[Road], buildings: list[Building], area: Polygon) -> Iterator[Wing]:
    """Cars on asphalt and beside some houses."""
    houses = unary_union([building.footprint for building in buildings])
    shapely.prepare(houses)
    spots = []
    for road in roads:
        count = rng.poisson(road.line.length / 60) if road.surface == "asphalt" else 0
        for at in rng.uniform(0, road.line.length, count):
            here, there = road.line.interpolate(at), road.line.interpolate(at + 1)
            angle = np.arctan2(there.y - here.y, there.x - here.x)
            spots.append(Wing(here.x, here.y, 4.2, 1.8, angle).beside(0, rng.choice([-1.6, 1.6]), 4.2, 1.8))
    for building in buildings:
        main = building.wings[0]
        if rng.random() < 0.13:
            length = rng.uniform(3.8, 5.2)
            spots.append(main.beside(rng.uniform(-3, 3), main.width / 2 + 2.2, length, 1.85, rng.normal(0, 0.2)))
    for car in spots:
        outline = car.to_polygon()
        if area.contains(outline) and not houses.intersects(outline):
            yield car


def _ponds(rng: Generator, parcels: tuple[Parcel, ...], houses: BaseGeometry, area_m2: float) -> Iterator[Polygon]:
    """About one pond for eight hectares, in open land."""
    open_land = [p.polygon for p in parcels if p.cover not in ("yard", "wood") and p.polygon.area > 900]
    wide = [polygon for polygon in open_land if not polygon.intersects(houses)]
    for index in rng.permutation(len(wide))[: max(1, round(area_m2 / 80_000))]:
        turn = np.linspace(0, 2 * np.pi, 60, endpoint=False)
        radius = rng.uniform(7, 12) * (1 + 0.18 * np.sin(2 * turn + rng.uniform(0, 6)) + 0.1 * np.sin(3 * turn))
        centre: Point = wide[index].representative_point()
        shore = Polygon(np.column_stack([centre.x + radius * np.cos(turn), centre.y + 0.8 * radius * np.sin(turn)]))
        yield from _polygons(shore.intersection(wide[index].buffer(-2)).buffer(-1).buffer(1))
