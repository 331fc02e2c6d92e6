"""The picture of a layout from above: ground, crowns and roofs with heights, lit by one sun.

Everything is painted in three planes (colour, height, slope towards the sun) and lit
once at the end, so that whatever stands on the ground throws its shadow on the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import scipy.fft
from affine import Affine
from numpy.random import Generator
from rasterio.features import rasterize
from scipy.ndimage import gaussian_filter
from shapely.geometry.base import BaseGeometry

from gimseg.layouts import Building, Layout, Tree, Wing

_COLOURS = {
    "tile": (0.66, 0.38, 0.27),
    "metal": (0.72, 0.75, 0.76),
    "rusty": (0.55, 0.43, 0.36),
    "concrete": (0.64, 0.62, 0.58),
    "slate": (0.33, 0.35, 0.39),
    "thatch": (0.47, 0.39, 0.28),
    "turf": (0.20, 0.50, 0.10),
}
_CLAY = (0.82, 0.55, 0.18)
_PAINTS = ((0.31, 0.47, 0.66), (0.56, 0.29, 0.26), (0.47, 0.57, 0.50), (0.36, 0.43, 0.53))
_CARS = ((0.85, 0.85, 0.85), (0.8, 0.8, 0.82), (0.2, 0.2, 0.22), (0.6, 0.12, 0.12), (0.2, 0.3, 0.5), (0.5, 0.5, 0.5))
_GROUND = {  # two colours that a texture mixes, and how strong the rows are
    "green": ((0.27, 0.37, 0.17), (0.42, 0.50, 0.24), 0.35),
    "young": ((0.58, 0.47, 0.35), (0.36, 0.45, 0.22), 0.9),
    "ploughed": ((0.46, 0.36, 0.27), (0.62, 0.50, 0.38), 0.6),
    "straw": ((0.63, 0.56, 0.39), (0.73, 0.66, 0.48), 0.4),
    "fallow": ((0.52, 0.49, 0.33), (0.40, 0.43, 0.24), 0.1),
    "meadow": ((0.35, 0.42, 0.21), (0.52, 0.50, 0.32), 0.0),
    "wood": ((0.26, 0.31, 0.16), (0.42, 0.41, 0.26), 0.0),
    "yard": ((0.38, 0.44, 0.23), (0.62, 0.52, 0.39), 0.0),
}


class View(NamedTuple):
    """Pixels over a layout: `shape` (rows, cols), `resolution` (m), and the lower left corner (m)."""

    shape: tuple[int, int]
    resolution: float
    left: float
    bottom: float

    def transform(self, fine: int = 1) -> Affine:
        """From (col, row), each pixel cut into `fine` a side, to layout metres."""
        top, step = self.bottom + self.shape[0] * self.resolution, self.resolution / fine
        return Affine(step, 0, self.left, 0, -step, top)

    def patch(self, x: float, y: float, reach: float) -> tuple[slice, slice]:
        """The pixels within `reach` metres of a point, possibly none."""
        col, row = (x - self.left) / self.resolution, self.shape[0] - (y - self.bottom) / self.resolution
        half = reach / self.resolution + 1
        rows = slice(max(0, int(row - half)), max(0, min(self.shape[0], int(row + half) + 1)))
        cols = slice(max(0, int(col - half)), max(0, min(self.shape[1], int(col + half) + 1)))
        return rows, cols

    def metres(self, roi: tuple[slice, slice]) -> tuple[np.ndarray, np.ndarray]:
        """x of shape (1, cols) and y of shape (rows, 1) of the pixel centres of a patch."""
        x = self.left + (np.arange(roi[1].start, roi[1].stop, dtype=np.float32) + 0.5) * self.resolution
        below = self.shape[0] - 0.5 - np.arange(roi[0].start, roi[0].stop, dtype=np.float32)
        y = self.bottom + below * self.resolution
        return x[None, :], y[:, None]

    def coverage(self, geometries: Iterable[BaseGeometry], fine: int = 3) -> np.ndarray:
        """How much of each pixel the geometries cover, 0 to 1, float32 (rows, cols)."""
        rows, cols = self.shape
        shapes = [(geometry, 1) for geometry in geometries if not geometry.is_empty]
        if not shapes:
            return np.zeros(self.shape, np.float32)
        size = (rows * fine, cols * fine)
        mask = rasterize(shapes, size, transform=self.transform(fine), dtype="uint8")
        return mask.reshape(rows, fine, cols, fine).sum(axis=(1, 3), dtype=np.float32) / fine**2


class Sun(NamedTuple):
    """Unit vector towards the sun: east, north, up."""

    east: float
    north: float
    up: float


class Canvas:
    """The three planes: colour (rows, cols, 3), height above ground (m), light (1 = level ground in the sun)."""

    def __init__(self, view: View, sun: Sun, rng: Generator) -> None:
        self.view, self.sun, self.rng = view, sun, rng
        self.colour = np.zeros((*view.shape, 3), np.float32)
        self.height = np.zeros(view.shape, np.float32)
        self.light = np.ones(view.shape, np.float32)
        self.fine = _noise(rng, view, 2.5, 0.6)
        self.rough = _noise(rng, view, 12.0, 1.0)
        self.broad = _noise(rng, view, 60.0, 1.6)

    def blend(self, colour: tuple[float, ...] | np.ndarray, cover: np.ndarray) -> None:
        """Lay a colour over the ground where `cover` (0 to 1) says."""
        self.colour += (np.asarray(colour, np.float32) - self.colour) * cover[..., None]

    def slope(self, along_east: np.ndarray, along_north: np.ndarray) -> np.ndarray:
        """Light on surfaces that rise so many metres a metre to the east and north."""
        towards = self.sun.up - along_east * self.sun.east - along_north * self.sun.north
        return np.maximum(towards / np.sqrt(1 + along_east**2 + along_north**2), 0) / self.sun.up


def paint(layout: Layout, view: View, seed: int) -> np.ndarray:
    """The picture of a layout.

    Returns:
        uint8 (3, rows, cols), no value above 252.
    """
    rng = np.random.default_rng([seed, 2])
    azimuth, elevation = np.radians(rng.uniform(105, 160)), np.radians(rng.uniform(42, 54))
    sun = Sun(np.sin(azimuth) * np.cos(elevation), np.cos(azimuth) * np.cos(elevation), np.sin(elevation))
    canvas = Canvas(view, sun, rng)
    _paint_land(canvas, layout)
    _paint_yards(canvas, layout)
    _paint_roads(canvas, layout)
    _paint_ponds(canvas, layout)
    _paint_walls(canvas, layout)
    for car in layout.cars:
        _paint_car(canvas, car)
    for building in layout.buildings:
        _paint_building(canvas, building)
    _paint_trees(canvas, layout.trees)
    return _exposed(canvas)


def _noise(rng: Generator, view: View, longest_m: float, exponent: float) -> np.ndarray:
    """Random texture of mean 0 and deviation 1 with no waves longer than about `longest_m`, float32 (rows, cols)."""
    rows, cols = view.shape
    waves = scipy.fft.rfft2(rng.standard_normal(view.shape, np.float32))
    fy, fx = np.fft.fftfreq(rows, view.resolution), np.fft.rfftfreq(cols, view.resolution)
    frequency = np.hypot(fy[:, None], fx[None, :]).astype(np.float32)
    waves /= (frequency**2 + (1 / longest_m) ** 2) ** (exponent / 2)
    waves[0, 0] = 0
    texture = scipy.fft.irfft2(waves, s=view.shape)
    return (texture / texture.std()).astype(np.float32)


def _paint_land(canvas: Canvas, layout: Layout) -> None:
    """Parcels in their own tints, with rows where something is grown."""
    view, rng, parcels = canvas.view, canvas.rng, layout.parcels
    shapes = [(parcel.polygon, number) for number, parcel in enumerate(parcels, 1)]
    number = rasterize(shapes, view.shape, transform=view.transform(), dtype="int32")
    covers = [_GROUND["meadow"], *(_GROUND[parcel.cover] for parcel in parcels)]
    tint = rng.normal(1, 0.07, (len(covers), 1)) + rng.normal(0, 0.018, (len(covers), 3))
    angle = np.array([0.0, *(parcel.angle for parcel in parcels)])
    period = rng.uniform(1.0, 3.2, len(covers))
    # Rows that the pixels cannot resolve fade into their mean instead of making moiré.
    strength = np.array([rows for *_, rows in covers]) * np.exp(-((1.3 * view.resolution / period) ** 2))
    table = [-np.sin(angle) / period, np.cos(angle) / period, strength, rng.uniform(0.2, 0.7, len(covers))]
    east, north, strong, mean = (column.astype(np.float32)[number] for column in table)
    x, y = view.metres((slice(0, view.shape[0]), slice(0, view.shape[1])))
    rows = np.sin(2 * np.pi * (x * east + y * north) + 0.9 * canvas.rough) * strong
    # Yards are worn in patches, not in shades: the texture is steeper there.
    steep = np.array([0.14, *(0.42 if parcel.cover == "yard" else 0.14 for parcel in parcels)], np.float32)[number]
    mix = np.clip(mean + 0.4 * rows + steep * canvas.broad + 0.13 * canvas.rough + 0.08 * canvas.fine, 0, 1)
    dark, bright = (np.array([c[i] for c in covers]) * tint for i in (0, 1))
    first, second = dark.astype(np.float32)[number], bright.astype(np.float32)[number]
    canvas.colour[:] = first + (second - first) * mix[..., None]
    canvas.colour *= (1 + 0.05 * canvas.fine + 0.035 * rows)[..., None]
    edges = view.coverage([parcel.polygon.exterior.buffer(0.45) for parcel in parcels])
    canvas.blend((0.36, 0.40, 0.22), edges * np.clip(0.35 + 0.5 * canvas.rough, 0, 0.9))


def _paint_yards(canvas: Canvas, layout: Layout) -> None:
    """Bare soil where people walk, around houses and in patches, and paved courts."""
    view = canvas.view
    worn = view.coverage([building.footprint.buffer(2.6) for building in layout.buildings], 1)
    worn = gaussian_filter(worn, 1.4 / view.resolution, truncate=2)
    worn = np.clip(1.5 * worn + 0.35 * canvas.rough - 0.35, 0, 0.9)
    bare = np.clip(1.3 * (canvas.broad - 1.65) + 0.25 * canvas.rough, 0, 0.85)
    soil = np.array((0.66, 0.53, 0.40)) + canvas.rng.normal(0, 0.02, 3)
    canvas.blend(soil * (1 + 0.05 * canvas.fine)[..., None], np.maximum(worn, bare))
    pads = view.coverage(layout.pads)
    canvas.blend(np.array((0.55, 0.52, 0.46)) * (1 + 0.06 * canvas.rough + 0.03 * canvas.fine)[..., None], pads)
    floors = view.coverage([floor.to_polygon() for floor in layout.floors])
    canvas.blend(np.array(_CLAY) * (1 + 0.05 * canvas.rough + 0.03 * canvas.fine)[..., None], floors)


def _paint_roads(canvas: Canvas, layout: Layout) -> None:
    """Dusty shoulders, then tracks with two ruts, dirt roads, and asphalt with lighter edges."""
    view = canvas.view
    ragged = 0.35 * canvas.rough + 0.15 * canvas.fine
    shoulder = view.coverage([road.line.buffer(road.width / 2 + 1.3) for road in layout.roads], 1)
    shoulder = gaussian_filter(shoulder, 0.7 / view.resolution)
    canvas.blend((0.56, 0.49, 0.36), np.clip(shoulder * 0.9 + ragged - 0.2, 0, 0.75))
    by = {kind: [road for road in layout.roads if road.surface == kind] for kind in ("track", "dirt", "asphalt")}
    ruts = [road.line.buffer(1.15).difference(road.line.buffer(0.45)) for road in by["track"]]
    dirt = [road.line.buffer(road.width / 2) for road in by["dirt"]]
    earth = (
        np.array((0.67, 0.56, 0.43)) * (1 + 0.06 * canvas.broad + 0.06 * canvas.rough + 0.04 * canvas.fine)[..., None]
    )
    canvas.blend(earth * 0.93, view.coverage(ruts) * np.clip(0.8 + ragged, 0, 1))
    # Edges of dirt roads are worn, not cut: a little blur and noise on the coverage.
    worn = gaussian_filter(view.coverage(dirt), 0.25 / view.resolution)
    canvas.blend(earth, np.clip(worn * 1.5 - 0.3 + 0.9 * ragged * (worn < 0.98), 0, 0.95))
    edge = view.coverage([road.line.buffer(road.width / 2) for road in by["asphalt"]])
    inner = view.coverage([road.line.buffer(road.width / 2 - 0.5) for road in by["asphalt"]])
    middle = view.coverage([road.line.buffer(0.09) for road in by["asphalt"] if road.width > 6.4])
    tar = np.array((0.47, 0.47, 0.465)) * (1 + 0.05 * canvas.rough + 0.03 * canvas.fine)[..., None]
    canvas.blend(np.array((0.60, 0.58, 0.53)) * (1 + 0.05 * canvas.rough)[..., None], edge)
    canvas.blend(tar, inner)
    canvas.blend((0.8, 0.79, 0.74), middle * 0.6)


def _paint_ponds(canvas: Canvas, layout: Layout) -> None:
    view = canvas.view
    bank = view.coverage([pond.buffer(1.4) for pond in layout.ponds], 1)
    canvas.blend(
        (0.60, 0.53, 0.40),
        np.clip(gaussian_filter(bank, 0.6 / view.resolution) + 0.2 * canvas.rough, 0, 0.9) * (bank > 0),
    )
    water = view.coverage(layout.ponds)
    deep = gaussian_filter(water, 2.0 / view.resolution)[..., None]
    shallow, dark = np.array((0.40, 0.41, 0.30)), np.array((0.20, 0.27, 0.24))
    canvas.blend((shallow + (dark - shallow) * deep) * (1 + 0.02 * canvas.broad)[..., None], water)


def _paint_walls(canvas: Canvas, layout: Layout) -> None:
    """Garden walls: thin, light, as high as a man."""
    walls = canvas.view.coverage([wall.buffer(0.17) for wall in layout.walls])
    canvas.blend((0.68, 0.64, 0.57), walls)
    canvas.height = np.maximum(canvas.height, 1.7 * (walls > 0.4))


def _paint_car(canvas: Canvas, car: Wing) -> None:
    roi = canvas.view.patch(car.x, car.y, car.length)
    along, across, inside = _in_wing(canvas.view, roi, car)
    paint = np.array(_CARS[canvas.rng.integers(len(_CARS))])
    glass = (np.abs(along - 0.75) < 0.35) | (np.abs(along + 1.5) < 0.25)
    colour = np.where((glass & (np.abs(across) < 0.75))[..., None], 0.15, paint)
    canvas.colour[roi] += (colour - canvas.colour[roi]) * inside[..., None]
    canvas.height[roi] = np.maximum(canvas.height[roi], 1.4 * (inside > 0.5))


def _in_wing(view: View, roi: tuple[slice, slice], wing: Wing) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Metres along and across the ridge, and how much of each pixel is inside (0 to 1), each (rows, cols)."""
    x, y = view.metres(roi)
    cos, sin = np.float32(np.cos(wing.angle)), np.float32(np.sin(wing.angle))
    along = (x - wing.x) * cos + (y - wing.y) * sin
    across = (y - wing.y) * cos - (x - wing.x) * sin
    outside = np.maximum(np.abs(along) - wing.length / 2, np.abs(across) - wing.width / 2)
    return along, across, np.clip(0.5 - outside / view.resolution, 0, 1)


def _paint_building(canvas: Canvas, building: Building) -> None:
    """One roof: the highest wing wins at each pixel, which makes the valleys of L-shapes."""
    view, rng = canvas.view, canvas.rng
    centre = building.footprint.centroid
    left, bottom, right, top = building.footprint.bounds
    roi = view.patch(centre.x, centre.y, np.hypot(right - left, top - bottom))
    base = _roof_colour(building, rng)
    grain, tone = (canvas.fine[roi], canvas.rough[roi], view.resolution), int(rng.integers(2**32))
    cover = np.zeros(canvas.height[roi].shape, np.float32)
    height, light, colour = cover.copy(), cover + 1, np.zeros((*cover.shape, 3), np.float32)
    for wing in building.wings:
        along, across, inside = _in_wing(view, roi, wing)
        rise, slope_along, slope_across = _roof_form(building, wing, along, across)
        cos, sin = np.cos(wing.angle), np.sin(wing.angle)
        lit = canvas.slope(slope_along * cos - slope_across * sin, slope_along * sin + slope_across * cos)
        wins = (inside > 0) & (building.eaves_m + rise > height)
        height[wins] = (building.eaves_m + rise)[wins]
        light[wins] = lit[wins]
        texture = _roof_texture(grain, building, wing, across, along, np.random.default_rng(tone))
        colour[wins] = (base * texture)[wins]
        cover = np.maximum(cover, inside)
    if building.material == "rusty":
        rust = np.clip(0.5 * canvas.rough[roi] + 0.15 * canvas.fine[roi] + rng.uniform(0, 0.8), 0, 1)[..., None]
        colour += (np.array((0.47, 0.30, 0.21)) - colour) * rust * 0.75
    canvas.colour[roi] += (colour - canvas.colour[roi]) * cover[..., None]
    canvas.light[roi] += (light - canvas.light[roi]) * cover
    canvas.height[roi] = np.where(cover > 0.5, height, canvas.height[roi])


def _roof_colour(building: Building, rng: Generator) -> np.ndarray:
    paint = building.material == "painted"
    base = np.array(_PAINTS[rng.integers(len(_PAINTS))] if paint else _COLOURS[building.material])
    return base * rng.normal(1, 0.09) + rng.normal(0, 0.015, 3)


def _roof_form(
    building: Building, wing: Wing, along: np.ndarray, across: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Height above the eaves (m), and its slope along and across the ridge."""
    to_side, to_end = wing.width / 2 - np.abs(across), wing.length / 2 - np.abs(along)
    flat = np.zeros_like(across)
    if building.roof == "flat":
        parapet = np.minimum(to_side, to_end) < 0.35
        return 0.5 * parapet, flat, flat
    if building.roof == "shed":
        pitch = building.pitch * 0.5
        return pitch * (across + wing.width / 2), flat, flat + pitch
    falls_across, falls_along = -building.pitch * np.sign(across), -building.pitch * np.sign(along)
    if building.roof == "gable":
        return building.pitch * to_side, flat, falls_across
    end = to_end < to_side
    rise = building.pitch * np.minimum(to_side, to_end)
    return rise, np.where(end, falls_along, 0), np.where(end, 0, falls_across)


def _roof_texture(
    grain: tuple[np.ndarray, np.ndarray, float],
    building: Building,
    wing: Wing,
    across: np.ndarray,
    along: np.ndarray,
    rng: Generator,
) -> np.ndarray:
    """Factor on the colour of a roof, (rows, cols, 1): sheets, tile courses, stains, ridge.

    `grain` is fine and rough texture and the resolution (m), at which tile courses fade.
    """
    fine, rough, resolution = grain
    if building.material in ("metal", "painted", "rusty"):
        sheets = rng.normal(0, 0.10 if building.material == "rusty" else 0.045, (4, 128))
        which = sheets[(across > 0) * 2 + (np.abs(across) > 2.6), (along / 0.95 + 64).astype(int) % 128]
        factor = 1 + which + 0.03 * rough + 0.02 * fine
    elif building.material == "concrete":
        factor = 1 + 0.08 * rough + 0.03 * fine
        edge = np.minimum(wing.width / 2 - np.abs(across), wing.length / 2 - np.abs(along)) < 0.35
        factor += 0.12 * edge
        at = rng.uniform(-0.3, 0.3, 2) * (wing.length, wing.width)
        tank = np.hypot(along - at[0], across - at[1]) < rng.uniform(0.6, 0.95)
        factor = np.where(tank, rng.choice([0.3, 1.3]), factor)
    else:
        courses = np.sin(2 * np.pi * across / 0.7) * np.exp(-((resolution / 0.5) ** 2))
        rugged = 0.11 if building.material == "thatch" else 0.06
        factor = 1 + 0.07 * courses + rugged * fine + 0.05 * rough
    if building.roof in ("gable", "hip"):
        factor = factor * (1 + (0.12 if building.material != "thatch" else -0.12) * (np.abs(across) < 0.2))
    return np.maximum(factor, 0.2)[..., None]


def _paint_trees(canvas: Canvas, trees: Iterable[Tree]) -> None:
    """Crowns are domes with holes of noise; palms are stars. The relief of all crowns is lit at once."""
    view, rng = canvas.view, canvas.rng
    crowns = np.zeros(view.shape, np.float32)
    cover = np.zeros(view.shape, np.float32)
    for tree in trees:
        warm, bright, turn = rng.uniform(0, 1), rng.normal(1, 0.14), rng.uniform(0, 6.28)
        roi = view.patch(tree.x, tree.y, tree.radius * 1.25)
        x, y = view.metres(roi)
        reach = np.hypot(x - tree.x, y - tree.y) / tree.radius
        if tree.palm:
            reach = reach / (0.5 + 0.5 * np.abs(np.cos(np.arctan2(y - tree.y, x - tree.x) * 4.5 + turn)))
        dome = 1 - reach**2 + 0.22 * canvas.rough[roi] + 0.1 * canvas.fine[roi]
        inside = np.clip(dome * 4, 0, 1) * (reach < 1.25)
        height = (1.2 + 1.5 * tree.radius) * np.sqrt(np.clip(dome, 0, 1.4))
        wins = (height > crowns[roi]) & (inside > 0)
        leaf = np.array((0.22, 0.31, 0.12)) * (1 - warm) + np.array((0.36, 0.40, 0.17)) * warm
        crowns[roi][wins] = height[wins]
        colour = canvas.colour[roi]
        colour[wins] += (leaf.astype(np.float32) * np.float32(bright) - colour[wins]) * inside[wins][:, None]
        cover[roi] = np.maximum(cover[roi], inside)
    relief = crowns + cover * (0.5 * canvas.fine + 0.35 * canvas.rough)
    up, right = np.gradient(gaussian_filter(relief, 0.25 / view.resolution), view.resolution)
    lit = np.clip(canvas.slope(0.55 * right, -0.55 * up), 0.25, 1.5) * (0.82 + 0.3 * np.clip(crowns / 6, 0, 1))
    canvas.light += (lit - canvas.light) * cover
    canvas.colour *= (1 + 0.09 * canvas.fine * cover)[..., None]
    canvas.height = np.maximum(canvas.height, crowns * (cover > 0.4))


def _sunlit(height: np.ndarray, sun: Sun, resolution: float) -> np.ndarray:
    """How much of the sun each pixel sees, 0 to 1: walk towards the sun and look for something higher."""
    flat = np.hypot(sun.east, sun.north)
    climb = sun.up / flat
    shaded, (rows, cols) = np.zeros(height.shape, np.float32), height.shape
    steps = int(np.ceil(height.max() / climb / resolution))
    for step in range(1, steps + 1):
        down, right = round(-step * sun.north / flat), round(step * sun.east / flat)
        here = (slice(max(0, -down), rows - max(0, down)), slice(max(0, -right), cols - max(0, right)))
        there = (slice(max(0, down), rows + min(0, down)), slice(max(0, right), cols + min(0, right)))
        if here[0].start >= here[0].stop or here[1].start >= here[1].stop:
            break
        over = height[there] - height[here] - step * resolution * climb
        np.maximum(shaded[here], np.clip(over / (0.5 * resolution + 0.15), 0, 1), out=shaded[here])
    return 1 - gaussian_filter(shaded, 0.2 / resolution)


def _exposed(canvas: Canvas) -> np.ndarray:
    """Light, haze, the lens and the sensor: colour planes to uint8 (3, rows, cols)."""
    view, rng = canvas.view, canvas.rng
    direct = (canvas.light * _sunlit(canvas.height, canvas.sun, view.resolution))[..., None]
    sunlight, sky = np.array((0.70, 0.675, 0.63), np.float32), np.array((0.32, 0.345, 0.40), np.float32)
    picture = canvas.colour * (sunlight * direct + sky)
    haze = rng.uniform(0.03, 0.07) + 0.012 * canvas.broad[..., None]
    air = np.array((0.78, 0.80, 0.82), np.float32)
    picture = (picture + (air - picture) * haze) * rng.normal(1.02, 0.03) * rng.normal(1, 0.012, 3)
    for band in range(3):
        picture[..., band] = gaussian_filter(picture[..., band], 0.55, truncate=3)
    grain = gaussian_filter(rng.standard_normal(picture.shape, np.float32), (0.5, 0.5, 0), truncate=2)
    return np.clip(picture * 255 + 3.2 * grain, 2, 252).astype(np.uint8).transpose(2, 0, 1)
