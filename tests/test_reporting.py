"""The report of a correction: what it leaves, that it says what it measured, and that a browser shows it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from in_browser import has_browser, opened
from PIL import Image
from projects_for_tests import box, draw, make_project, small_model
from worlds import UTM

from gimseg.correction.reporting import Report, report
from gimseg.correction.rounds import Project
from gimseg.inference import predict
from gimseg.models import Model


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Report]:
    project = make_project(tmp_path_factory.mktemp("report") / "project", segments=())
    random, doubted = box(30, 50, 110, 150), box(150, 200, 190, 240)
    areas = [random, box(150, 20, 190, 60)]
    draw(project.correction("bad").gpkg, areas, [box(40, 70, 50, 90)])
    kinds = ["uncertainty", "random", "random"]
    frame = gpd.GeoDataFrame({"kind": kinds}, geometry=[doubted, random, box(110, 200, 140, 240)], crs=UTM)
    frame.to_file(project.folder / "suggestions.gpkg", layer="suggestions")
    return project, report("bad", project=project.folder)


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read(1)


def test_masks_are_those_of_both_models(reported: tuple[Project, Report], tmp_path: Path) -> None:
    project = reported[0]
    correction = project.correction("bad")
    for given, kept in ((project.folder / "parent", correction.before), (correction.model, correction.after)):
        alone = predict(project.folder / "big.tif", given, output=tmp_path / kept.name).path
        assert np.array_equal(read(alone), read(kept))
    made = {path.name for path in correction.folder.iterdir()}
    assert {"before.tif", "after.tif", "diff.gpkg", "metrics.json", "report.html"} <= made
    assert not any(name.startswith(".") for name in made)


def test_numbers_are_those_of_the_masks(reported: tuple[Project, Report]) -> None:
    project, done = reported
    correction = project.correction("bad")
    before, after = read(correction.before), read(correction.after)
    drawn = np.zeros(before.shape, bool)
    drawn[30:110, 50:150] = drawn[150:190, 20:60] = True
    told = json.loads(correction.metrics.read_text())
    (raster,) = told["rasters"]
    assert raster["rest"]["share_changed"] == pytest.approx((before != after)[~drawn].mean())
    assert raster["drawn"]["seen"] == drawn.sum() and raster["rest"]["seen"] == (~drawn).sum()
    for name in ("appeared", "vanished"):
        assert len(gpd.read_file(correction.diff, layer=name)) == raster["objects"][name]
    assert told["verdict"]["passed"] is False and told["old_test_set"] is None
    assert told["held_out"]["pixels"] < drawn.sum() and told["held_out"]["pieces"] >= 2
    assert any("test set" in item for item in told["verdict"]["unguarded"])
    truth = np.zeros(before.shape, np.uint8)
    truth[40:50, 70:90] = 1
    here = (slice(30, 110), slice(50, 150))
    hits = (truth[here] & before[here]).sum()
    assert done.estimate is not None and (done.estimate.drawn, done.estimate.random) == (1, 2)
    assert told["whole_raster"]["iou"]["score"] == pytest.approx(hits / (truth[here] | before[here]).sum())
    assert "1 of 2 random areas" in done.text()


def test_what_is_there_already_is_not_predicted_again(reported: tuple[Project, Report]) -> None:
    project = reported[0]
    correction = project.correction("bad")
    times = [path.stat().st_mtime_ns for path in (correction.before, correction.after)]
    report("bad", project=project.folder)
    assert [path.stat().st_mtime_ns for path in (correction.before, correction.after)] == times


@pytest.mark.slow
def test_the_rest_can_be_left_alone_and_a_new_model_makes_a_new_report(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", segments=())
    correction = project.correction("bad")
    done = report("bad", project=project.folder, rest=False)
    assert not done.changes and not correction.diff.exists()
    assert (read(correction.after)[150:] == 255).all() and (read(correction.after)[40:100, 60:140] != 255).all()
    provenance = Model.load(correction.model).provenance
    small_model(5, **{key: value for key, value in provenance.items() if key != "name"}).save(
        correction.model, overwrite=True
    )
    one = correction.metrics.read_text()
    report("bad", project=project.folder)
    assert correction.metrics.read_text() != one and (read(correction.after) != 255).all()


@pytest.mark.skipif(not has_browser(), reason="needs chromium and chromium-driver")
def test_a_browser_shows_it_and_the_swipe_moves(reported: tuple[Project, Report]) -> None:
    with opened(reported[1].path) as page:
        assert page.run("return document.title") == "Correction bad: held back by the gate"
        assert page.run("return [...document.images].every(image => image.complete && image.naturalWidth > 0)")
        dividers = page.find(".swipe .divider")
        assert len(dividers) == 2 + 1
        shown = "return getComputedStyle(document.querySelectorAll('.swipe img')[1]).clipPath"
        place = "return +document.querySelector('.swipe .divider').getAttribute('aria-valuenow')"
        before, clipped, where = page.screenshot(), page.run(shown), page.run(place)
        page.run("document.querySelector('.swipe').scrollIntoView()")
        page.drag(dividers[0], -120)
        assert page.run(place) < where - 5 and page.run(shown) != clipped
        page.run("scrollTo(0, 0)")
        one, other = (
            np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), int) for picture in (before, page.screenshot())
        )
        assert one.shape == other.shape and 0.001 < (abs(one - other).max(axis=2) > 30).mean() < 0.3
        assert page.complaints() == []
