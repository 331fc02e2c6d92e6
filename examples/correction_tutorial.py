"""One correction from a bad prediction to an accepted model, with a picture of each step: that of docs/correcting.md.

    python examples/correction_tutorial.py WORK --imagery FOLDER [--model MODEL]

FOLDER holds `banepa_big/` (an image with complete outlines in an area of interest) and `buildings/` (three places
that a first model learns from, by the recipe of `train_builtin.py` with mild colours). Without it a synthetic scene is
corrected. The first training takes most of an hour of one core; MODEL is what an earlier run left as `first`.
Where a person would draw in QGIS, the known outlines take the place of the drawing. All is left in WORK: the project
and `pictures/`.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import geopandas as gpd
import matplotlib
import numpy as np
import rasterio
import shapely
from compare_recipes import MILD
from PIL import Image
from rasterio.features import rasterize
from rasterio.plot import plotting_extent
from rasterio.windows import from_bounds
from scipy.ndimage import uniform_filter
from train_builtin import LEARNED, LEGEND, SETTINGS, pretrained, sites

from gimseg import Dataset, evaluate
from gimseg.datasets import Datasets
from gimseg.pictures import blend, outcome_overlay
from gimseg.scenes import make_scene, write_scene
from gimseg.settings import Settings

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FIRST = replace(SETTINGS, augmentation=MILD)
SHORT = replace(FIRST, epochs=2, windows_per_epoch=480)
"""For synthetic scenes."""
TOWN_PX, LEARNED_PX = 1400, 1024
"""Sides of these."""
MODEL = "first"
MORE_OF_THE_OLD = (0.4, 0.6)
"""Shares of the old weights, one after the other until the gate is content."""
PARTED = "open(1 m), fill(4 m2), watershed(40 m), drop(20 m2)"
"""What makes single houses of a mask in which they touch."""
HELD_BACK = "the old model stays"
COUNT, SIDE_M = 3, 150
BLOCK_M, TEST_EVERY, GAP_M = 60.0, 5, 8.0
IMAGE, TRUTH, AREAS = "town.tif", "town_truth.gpkg", "suggestions.gpkg"
FOUND, DRAWN, AREA = "#00e5ff", "#ffd200", "#ff2fd0"
MOST_BYTES = 400_000


def cut_town(folder: Path, work: Path) -> None:
    """The part of an image whose buildings are all outlined, and these outlines."""
    area = gpd.read_file(folder / "banepa_labelled_aoi.geojson")
    with rasterio.open(folder / "banepa_big.tif") as image:
        area = area.to_crs(image.crs)
        window = from_bounds(*area.total_bounds, image.transform).round_offsets().round_lengths()
        profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": window.height, "width": window.width}
        layout = {"tiled": True, "compress": "deflate", "predictor": 2, "photometric": "rgb"}
        place = {"crs": image.crs, "transform": image.window_transform(window)}
        with rasterio.open(work / IMAGE, "w", **profile, **layout, **place) as town:
            town.write(image.read((1, 2, 3), window=window))
    outlines = gpd.read_file(folder / "banepa_osm_buildings_partial.geojson").to_crs(area.crs)
    outlines.geometry = outlines.make_valid()
    outlines[["geometry"]].clip(area).explode().query("geometry.geom_type == 'Polygon'").to_file(work / TRUTH)


def make_town(work: Path) -> None:
    """A synthetic scene with roofs and ground that are nowhere else."""
    paths = write_scene(make_scene(3, (TOWN_PX, TOWN_PX), style="highland", border=False), work, "town")
    gpd.read_file(paths.labels).to_file(work / TRUTH)


def training_table(settings: Settings) -> str:
    """The table of a dataset file that says how to train: what differs from the defaults."""
    usual, lines = asdict(Settings()), ["\n[training]\n"]
    table = {name: value for name, value in asdict(settings).items() if value != usual[name] and value is not None}
    varied = table.pop("augmentation", {})
    options = table.pop("network_options", {})
    lines += [f"{name} = {json.dumps(value)}\n" for name, value in table.items()]
    for name, part in (("network_options", options), ("augmentation", varied)):
        if part:
            lines += [f"\n[training.{name}]\n", *(f"{key} = {json.dumps(value)}\n" for key, value in part.items())]
    return "".join(lines)


def write_learned(datasets: Datasets, path: Path, settings: Settings) -> None:
    """A dataset file of what is learned first, and how; blocks of each are left for the test."""
    lines = [f'[legend]\nclasses = [{{ name = "{LEGEND.names[0]}" }}]\n']
    for item in datasets:
        blocks = path.with_name(f"{item.tag}_blocks.gpkg")
        divide(item).to_file(blocks)
        lines.append(f'\n[[dataset]]\ntag = "{item.tag}"\nspatial_resolution = {item.spatial_resolution}\n')
        for key in ("image_paths", "mask_paths", "ignore_paths"):
            paths = [os.path.abspath(name) for name in getattr(item, key)]
            lines += [f"{key} = {json.dumps(paths)}\n"] if paths else []
        lines.append(f'aoi_paths = ["{blocks.name}"]\nsplit = "use"\n')
    path.write_text("".join(lines) + training_table(settings))


def divide(dataset: Dataset) -> gpd.GeoDataFrame:
    """The ground of a dataset in blocks of BLOCK_M, one in TEST_EVERY for the test, with a gap around it."""
    footprints = []
    for name in dataset.images:
        with rasterio.open(name) as image:
            footprints.append(gpd.GeoSeries([shapely.box(*image.bounds)], crs=image.crs))
    crs = footprints[0].estimate_utm_crs()
    ground = shapely.union_all([item.to_crs(crs).union_all() for item in footprints])
    lows, highs = np.floor(np.divide(ground.bounds[:2], BLOCK_M)), np.ceil(np.divide(ground.bounds[2:], BLOCK_M))
    corners = np.stack(np.meshgrid(*map(np.arange, lows, highs)), -1).reshape(-1, 2) * BLOCK_M
    blocks = shapely.box(*corners.T, *(corners.T + BLOCK_M))
    test = np.random.default_rng(0).permutation(len(blocks)) % TEST_EVERY == 0
    inner = shapely.buffer(blocks[test], -GAP_M, join_style="mitre")
    shapes = [ground.difference(shapely.union_all(blocks[test])), ground.intersection(shapely.union_all(inner))]
    return gpd.GeoDataFrame({"use": ["train", "test"]}, geometry=shapes, crs=crs)


def synthetic_sites(work: Path) -> Datasets:
    """Two scenes without what is special in the town."""
    made = []
    for seed, style in ((1, "village"), (2, "town")):
        paths = write_scene(
            make_scene(seed, (LEARNED_PX, LEARNED_PX), style=style, border=False), work, f"learned_{style}"
        )
        made.append(Dataset(style, 0.25, [paths.image], [paths.labels], legend=LEGEND))
    return Datasets(tuple(made))


def run(work: Path, command: str) -> str:
    """Run a command of gimseg in the folder of the project and show what it says."""
    print(f"\n$ {command}", flush=True)
    words = [sys.executable, "-m", *shlex.split(command)]
    said = subprocess.run(words, cwd=work, stdout=subprocess.PIPE, text=True, check=True).stdout
    print(said, end="", flush=True)
    return said


def draw_objects(work: Path, id: str) -> int:
    """What a person would leave in the areas: the known outlines. Their number."""
    path = work / "corrections" / id / "correction.gpkg"
    areas = gpd.read_file(path, layer="aoi")
    inside = gpd.read_file(work / TRUTH).to_crs(areas.crs).clip(areas.union_all()).explode()
    inside = inside[inside.geom_type == "Polygon"]
    inside.assign(**{"class": LEGEND.names[0]})[["class", "geometry"]].to_file(
        path, layer="objects", promote_to_multi=True, engine="pyogrio"
    )
    return len(inside)


@dataclass(frozen=True)
class Town:
    """The image with all that is known of it, on the grid of the masks.

    Attributes:
        image: uint8 (rows, cols, 3).
        truth: uint8 (rows, cols).
        drawn: bool (rows, cols), what lies in the areas that were drawn.
        masks: before and after, uint8 (rows, cols).
        extent: left, right, bottom, top.
    """

    image: np.ndarray
    truth: np.ndarray
    drawn: np.ndarray
    masks: dict[str, np.ndarray]
    extent: tuple[float, float, float, float]
    crs: Any
    pixel: float

    @classmethod
    def read(cls, work: Path, id: str) -> Town:
        masks = {}
        for when in ("before", "after"):
            with rasterio.open(work / "corrections" / id / f"{when}.tif") as file:
                masks[when], place, crs = file.read(1), file.transform, file.crs
        shape = masks["after"].shape
        with rasterio.open(work / IMAGE) as file:
            image = np.moveaxis(file.read((1, 2, 3), out_shape=(3, *shape)), 0, -1)
        layers = [gpd.read_file(work / TRUTH), gpd.read_file(work / AREAS, layer="suggestions")]
        truth, drawn = (
            rasterize(layer.to_crs(crs).geometry, shape, transform=place, dtype="uint8") for layer in layers
        )
        return cls(image, truth, drawn.astype(bool), masks, plotting_extent(truth, place), crs, place.a)

    def place(self, row: int, col: int, side: int) -> tuple[float, float, float, float]:
        """Extent of a square, px."""
        left, top = self.extent[0] + col * self.pixel, self.extent[3] - row * self.pixel
        return left, left + side * self.pixel, top - side * self.pixel, top


def figure(panels: int, size: tuple[float, float]) -> tuple[Any, Any]:
    made, axes = plt.subplots(1, panels, figsize=size, dpi=100, squeeze=False)
    made.subplots_adjust(0.003, 0.003, 0.997, 0.9, wspace=0.015)
    return made, axes[0]


def show(axes: Any, town: Town, title: str, overlay: np.ndarray | None = None, frame: Any = None) -> None:
    axes.imshow(blend(town.image, overlay), extent=town.extent, interpolation="bilinear")
    left, right, bottom, top = frame or town.extent
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    axes.set_title(title, fontsize=9)
    axes.axis("off")


def outline(axes: Any, town: Town, layer: gpd.GeoDataFrame, colour: str, width: float = 1.0, style: str = "-") -> None:
    frame = axes.get_xlim(), axes.get_ylim()
    layer.to_crs(town.crs).boundary.plot(ax=axes, color=colour, linewidth=width, linestyle=style)
    axes.set(xlim=frame[0], ylim=frame[1], aspect="equal")


def save(made: Any, path: Path) -> None:
    """Few colours, as few as it takes: the picture is for a page, not for measuring."""
    path.parent.mkdir(exist_ok=True)
    made.savefig(path)
    plt.close(made)
    shrink(path)


def shrink(path: Path) -> None:
    full = Image.open(path).convert("RGB")
    for colours in (256, 128, 64, 32):
        full.quantize(colours).save(path, optimize=True)
        if path.stat().st_size < MOST_BYTES:
            return


def draw_pictures(work: Path, id: str) -> None:
    """The prediction, the areas, the drawing, and before and after where nothing was drawn."""
    town, folder = Town.read(work, id), work / "pictures"
    before = gpd.read_file(work / "corrections" / id / "correction.gpkg", layer="prediction")
    objects = gpd.read_file(work / "corrections" / id / "correction.gpkg", layer="objects")
    areas = gpd.read_file(work / AREAS, layer="suggestions").to_crs(town.crs)
    bounds = areas.iloc[0].geometry.bounds
    block = (bounds[0], bounds[2], bounds[1], bounds[3])

    made, panels = figure(2, (8.4, 5.8))
    show(panels[0], town, "town.tif with the areas that are suggested")
    outline(panels[0], town, areas, AREA, 1.8)
    for item in areas.itertuples():
        panels[0].text(item.geometry.bounds[0], item.geometry.bounds[3], f" {item.rank} {item.kind}", color="white",
                       fontsize=7, va="bottom", bbox={"facecolor": AREA, "edgecolor": "none", "pad": 1.5})  # fmt: skip
    show(panels[1], town, "what the model finds in area 1", frame=block)
    outline(panels[1], town, before, FOUND, 1.4)
    save(made, folder / "correcting_areas.png")

    made, panels = figure(2, (8.4, 4.5))
    show(panels[0], town, "the layer objects as the model sees it", frame=block)
    outline(panels[0], town, before, FOUND, 1.4)
    show(panels[1], town, "and after drawing", frame=block)
    outline(panels[1], town, objects, DRAWN, 1.4)
    save(made, folder / "correcting_drawing.png")

    side = round(SIDE_M / ground_size(work))
    row, col = most_changed(town, side)
    frame = town.place(row, col, side)
    made, panels = figure(3, (9.6, 3.6))
    show(panels[0], town, "the image, where nothing was drawn", frame=frame)
    outline(panels[0], town, gpd.read_file(work / TRUTH), DRAWN, 1.2)
    for axes, when in zip(panels[1:], town.masks, strict=True):
        show(axes, town, f"{when}: hits, misses (blue), false alarms (red)",
             outcome_overlay(town.truth, town.masks[when]), frame)  # fmt: skip
    save(made, folder / "correcting_after.png")


def photograph(page: Path, picture: Path) -> None:
    """The upper part of a page, where Chromium is installed."""
    browser = shutil.which("chromium")
    if browser is None:
        print("no Chromium: no picture of the report")
        return
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1000,1300"]
    picture = picture.absolute()
    subprocess.run([browser, *options, f"--screenshot={picture}", page.absolute().as_uri()], check=True, timeout=300,
                   capture_output=True)  # fmt: skip
    shrink(picture)


def most_changed(town: Town, side: int) -> tuple[int, int]:
    """Upper left corner of the square, clear of all that was drawn, where the masks differ most: row, col."""
    changed = uniform_filter((town.masks["before"] != town.masks["after"]).astype(np.float32), side)
    changed[uniform_filter(town.drawn.astype(np.float32), side) > 1e-4] = -1
    half = side // 2
    inner = changed[half:-half, half:-half]
    row, col = np.unravel_index(np.argmax(inner), inner.shape)
    return int(row), int(col)


def ground_size(work: Path) -> float:
    """Side of a pixel of the suggested areas' grid, in metres on the ground."""
    areas = gpd.read_file(work / AREAS, layer="suggestions")
    true = float(np.sqrt(areas.to_crs(areas.estimate_utm_crs()).area.iloc[0]))
    drawn = float(np.sqrt(areas.area.iloc[0]))
    with rasterio.open(work / IMAGE) as image:
        areas_crs_to_ground = true / drawn if areas.crs == image.crs else 1.0
    with rasterio.open(next(work.glob("corrections/*/after.tif"))) as mask:
        return float(mask.transform.a * areas_crs_to_ground)


def score_rest(work: Path, id: str) -> None:
    """IoU before and after where nothing was drawn, which neither training nor gate has seen."""
    rest = Dataset("rest of the town", 0.25, [work / IMAGE], [work / TRUTH], legend=LEGEND, ignore_paths=[work / AREAS])
    for when, chain in (("before", ""), ("after", ""), ("after", PARTED)):
        scores = evaluate(work / "corrections" / id / f"{when}.tif", rest, refine=chain)
        refined = f", refined by {chain}" if chain else ""
        print(f"\n{when}, where nothing was drawn{refined}:\n{scores.table()}", flush=True)


@click.command()
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--imagery", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--model", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Left by an earlier run.")
def main(work: Path, imagery: Path | None, model: Path | None) -> None:
    """Train a model on some places, correct it on another one in WORK, and leave pictures of each step there."""
    work.mkdir(parents=True)
    if imagery:
        cut_town(imagery / "banepa_big", work)
        places, recipe = sites(imagery / "buildings", LEARNED, work=work), replace(FIRST, encoder_weights=pretrained())
    else:
        make_town(work)
        places, recipe = synthetic_sites(work), SHORT
    write_learned(places, work / "learned.toml", recipe)
    if model:
        shutil.copytree(model, work / MODEL)
    else:
        run(work, f"gimseg train learned.toml -o {MODEL}")
    run(work, f"gimseg predict {IMAGE} -m {MODEL}")
    run(work, f"gimseg correct suggest {IMAGE} -m {MODEL} -n {COUNT} --side {SIDE_M} -o {AREAS}")
    run(work, f"gimseg correct start blocks -r {IMAGE} -m {MODEL} --aoi {AREAS}")
    print(f"\n({draw_objects(work, 'blocks')} outlines are drawn)", flush=True)
    run(work, "gimseg correct check blocks")
    run(work, "gimseg correct train blocks --replay learned.toml")
    verdict = run(work, "gimseg correct report blocks --test learned.toml")
    for share in MORE_OF_THE_OLD:
        if not verdict.startswith(HELD_BACK):
            break
        run(work, f"gimseg correct train blocks --replay learned.toml --old-share {share}")
        verdict = run(work, "gimseg correct report blocks --test learned.toml")
    draw_pictures(work, "blocks")
    photograph(work / "corrections" / "blocks" / "report.html", work / "pictures" / "correcting_report.png")
    score_rest(work, "blocks")
    if not verdict.startswith(HELD_BACK):
        run(work, "gimseg correct accept blocks --everywhere")
    run(work, "gimseg correct list")


if __name__ == "__main__":
    main()
