"""Laws of acceptance: all that was delivered changes together or not at all, and comes back as it was."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from projects_for_tests import POLYGONS, SEGMENTS, SHAPE, add_correction, box, draw, make_project
from worlds import UTM, write_raster

from gimseg.correction.accepting import accept, rollback
from gimseg.correction.gate import Verdict
from gimseg.correction.grounds import open_ground
from gimseg.correction.journal import JOURNAL, settle
from gimseg.correction.listing import listed
from gimseg.correction.proof import Models, proof_key, prove, read_proof, write_metrics
from gimseg.correction.rounds import Project
from gimseg.delivery import deliver
from gimseg.errors import CorrectionError, VectorError
from gimseg.models import Model
from gimseg.products import Products

GIVEN = {"window": 64, **POLYGONS}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once; each test works on a copy."""
    folder = tmp_path_factory.mktemp("template") / "project"
    make_project(folder)
    return folder


@pytest.fixture
def project(template: Path, tmp_path: Path) -> Project:
    folder = tmp_path / "project"
    shutil.copytree(template, folder)
    for path in folder.rglob("correction.toml"):
        path.write_text(path.read_text().replace(str(template), str(folder)))
    for path in folder.glob("corrections/*/model/gimseg.json"):
        path.write_text(path.read_text().replace(str(template), str(folder)))
    return Project(folder)


def delivered(project: Project) -> dict[str, str]:
    """Digest of each file that was delivered, and which model the project has."""
    files = {path.name: path for path in project.folder.glob("big_segments*")}
    state = {name: _digest(path) for name, path in sorted(files.items())}
    return {**state, "model": str(project.deployed())}


def _digest(path: Path) -> str:
    # A GeoPackage holds the time at which it was made.
    text = gpd.read_file(path, layer="polygons").to_csv() if path.suffix == ".gpkg" else path.read_bytes().hex()
    return hashlib.sha256(text.encode()).hexdigest()


def hidden(project: Project) -> set[str]:
    return {path.name for path in project.folder.rglob(".*")} - {".journal.lock"}


def mask(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read(1)


def test_what_is_delivered_is_a_full_prediction_where_something_was_drawn(project: Project, tmp_path: Path) -> None:
    before = mask(project.folder / "big_segments.tif")
    old = gpd.read_file(project.folder / "big_segments.gpkg", layer="polygons").set_index("id")
    done = accept("bad", project=project.folder, force=True, **GIVEN)
    assert project.deployed() == str(project.folder / "corrections" / "bad" / "model")
    assert Model.load(project.folder).fingerprint() == Model.load(project.correction("bad").model).fingerprint()
    full = tmp_path / "full"
    full.mkdir()
    deliver(project.folder / "big.tif", project.correction("bad").model, [full / name for name in SEGMENTS], **GIVEN)
    new, after = mask(full / "big_segments.tif"), mask(project.folder / "big_segments.tif")
    rows, cols = np.nonzero(after != before)
    # Windows of 64 px keep 32, and 48 at the raster's border: whole cells around what was drawn, and no others.
    assert rows.max() < 112 and cols.min() >= 48 and cols.max() < 144
    assert np.array_equal(after[:112, 48:144], new[:112, 48:144])
    whole = gpd.read_file(full / "big_segments.gpkg", layer="polygons").set_index("id")
    both = gpd.read_file(project.folder / "big_segments.gpkg", layer="polygons").set_index("id")
    assert both.index.is_unique and both.area.sum() < (after == 1).sum()
    inside, outside = box(0, 48, 112, 144), box(-10, 40, 120, 150)
    fresh, stayed = both[both.within(inside.buffer(-0.5))], both[~both.intersects(outside)]
    assert len(fresh) and len(stayed) > 10
    assert (fresh == whole.loc[fresh.index]).all(axis=None) and (stayed == old.loc[stayed.index]).all(axis=None)
    shown = gpd.read_file(project.folder / "big_segments.shp")
    assert set(shown["id"]) == set(both.index)
    assert not hidden(project) and "big_segments.shp" in {path.name for path in done.files}


def test_the_item_beside_the_mask_tells_of_the_new_model(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", stac=True)
    path = project.folder / "big_segments.json"
    old = path.read_bytes()
    accept("bad", project=project.folder, force=True, **GIVEN)
    item, before = json.loads(path.read_text()), json.loads(old)
    assert item["assets"].keys() == before["assets"].keys() and item["bbox"] == before["bbox"]
    places = {name: (path.parent / asset["href"]).resolve() for name, asset in item["assets"].items()}
    assert all(place.exists() for place in places.values()), places
    model = places.pop("model")
    assert model.parent == project.correction("bad").model.resolve()
    assert {place.parent for place in places.values()} == {project.folder.resolve()}
    rollback(project=project.folder)
    assert path.read_bytes() == old


def test_everywhere_is_a_new_prediction_to_the_last_byte(project: Project, tmp_path: Path) -> None:
    accept("bad", project=project.folder, force=True, everywhere=True, **GIVEN)
    full = tmp_path / "full"
    full.mkdir()
    deliver(project.folder / "big.tif", project.correction("bad").model, [full / name for name in SEGMENTS], **GIVEN)
    for name in ("big_segments.tif", "big_segments.shp", "big_segments.dbf"):
        assert (project.folder / name).read_bytes()[4:] == (full / name).read_bytes()[4:]


def test_rollback_brings_everything_back_to_the_last_byte(project: Project) -> None:
    before = delivered(project)
    accept("bad", project=project.folder, force=True, **GIVEN)
    one = delivered(project)
    assert one != before
    add_correction(project.folder, "worse", project.folder / "corrections" / "bad" / "model", 2)
    accept("worse", project=project.folder, force=True, **GIVEN)
    two = delivered(project)
    assert two != one and project.deployment().ids == ("bad", "worse")
    with pytest.raises(CorrectionError, match="undo worse first"):
        rollback("bad", project=project.folder)
    assert rollback("worse", project=project.folder).id == "worse"
    assert delivered(project) == one
    assert rollback(project=project.folder).id == "bad"
    assert delivered(project) == before and project.deployment() is None and not hidden(project)
    with pytest.raises(CorrectionError, match="nothing was accepted"):
        rollback(project=project.folder)
    accept("bad", project=project.folder, force=True, **GIVEN)
    assert delivered(project)["big_segments.tif"] == one["big_segments.tif"]


def test_the_gate_holds_a_model_back_unless_it_is_forced(project: Project) -> None:
    before, correction = delivered(project), project.correction("bad")
    with pytest.raises(CorrectionError, match=r"the old model stays.*--force"):
        accept("bad", project=project.folder, **GIVEN)
    assert delivered(project) == before
    told = json.loads(correction.metrics.read_text())
    assert told["verdict"]["passed"] is False and told["held_out"]["pieces"] > 1
    # What the gate said of other models is not believed.
    passed = Verdict(True, ("better",)).to_dict()
    write_metrics(correction, {**told, "verdict": passed, "drawing": {"bad": "0"}})
    with pytest.raises(CorrectionError, match="the old model stays"):
        accept("bad", project=project.folder, **GIVEN)
    write_metrics(correction, {**proof_key(correction, Models.of(correction)), "verdict": passed})
    assert "may take the place" in accept("bad", project=project.folder, **GIVEN).text()
    assert delivered(project) != before


def test_the_gate_is_asked_on_the_test_set_of_the_report(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    correction, home = project.correction("bad"), project.folder
    labels = home / "labels.geojson"
    gpd.GeoDataFrame(geometry=[box(0, 0, 60, 60)], crs=UTM).to_crs("EPSG:4326").to_file(labels)
    (home / "old.toml").write_text(
        '[legend]\nclasses = [{ name = "bright" }]\n[[dataset]]\ntag = "old"\nspatial_resolution = 1.0\n'
        'image_paths = ["big.tif"]\nmask_paths = ["labels.geojson"]\nsplit = "test"\n'
    )
    with pytest.raises(CorrectionError, match="on the old test set"):
        accept("bad", project=home, test=home / "old.toml", **GIVEN)
    told = json.loads(correction.metrics.read_text())
    assert told["old_test_set"]["pixels"] == SHAPE[0] * SHAPE[1] and told["test"] == str(home / "old.toml")
    passed = {**told, "verdict": Verdict(True, ("better",)).to_dict()}
    # Asked anew, whatever was said before, where the drawing or the test set was edited; on the same test set.
    for edit in (
        lambda: gpd.GeoDataFrame(geometry=[box(0, 0, 60, 61)], crs=UTM).to_crs("EPSG:4326").to_file(labels),
        lambda: draw(correction.gpkg, [box(40, 60, 100, 140)], [box(50, 70, 60, 91)]),
    ):
        edit()
        write_metrics(correction, passed)
        with pytest.raises(CorrectionError, match="on the old test set"):
            accept("bad", project=home, **GIVEN)
        now = json.loads(correction.metrics.read_text())
        assert now["test"] == told["test"] and now["old_test_set"] is not None
        passed = {**now, "verdict": passed["verdict"]}
    # Where a folder is, or how it is called, changes no verdict.
    write_metrics(correction, passed)
    monkeypatch.chdir(home)
    assert accept("bad", project=".", **GIVEN).id == "bad"


def test_the_gate_looks_at_what_earlier_corrections_hold_out(project: Project) -> None:
    home = project.folder
    bad, other = project.correction("bad"), add_correction(home, "other", project.correction("bad").model, 2)
    assert prove(other, Models.of(other)).earlier is None
    model = Model.load(other.model)
    told = {**model.provenance, "corrections": ["gone", "bad", "other"]}
    Model(model.network, model.recipe, model.architecture, told).save(model.folder, overwrite=True)
    models = Models.of(other)
    proof = prove(other, models)
    held = [scene.read((slice(0, scene.shape[0]), slice(0, scene.shape[1])), "val")[1]
            for scene in open_ground(bad, models.after.model)]  # fmt: skip
    assert proof.earlier is not None and proof.earlier.pixels == sum(int((plane != 255).sum()) for plane in held) > 0
    assert any("earlier corrections" in reason for reason in proof.verdict.reasons)
    # What was drawn there counts too: the verdict is not that of another drawing.
    write_metrics(other, proof.to_dict(models.after.model))
    assert read_proof(other, models) is not None
    draw(bad.gpkg, [box(40, 60, 100, 140)], [box(50, 70, 60, 91)])
    assert read_proof(other, models) is None


def learned_together(project: Project, *ids: str) -> None:
    """The model of the first is said to have learned all of them."""
    model = Model.load(project.correction(ids[0]).model)
    told = {**model.provenance, "learned": list(ids), "corrections": list(ids)}
    Model(model.network, model.recipe, model.architecture, told).save(model.folder, overwrite=True)


def test_corrections_that_were_learned_together_are_accepted_together(project: Project, tmp_path: Path) -> None:
    home = project.folder
    other = add_correction(home, "other", home / "parent", 2)
    shutil.rmtree(other.model)
    learned_together(project, "bad", "other")
    states = {one.id: one.state for one in listed(home).rounds}
    assert states == {"bad": "trained", "other": "trained with bad"}
    with pytest.raises(CorrectionError, match="learned together with 'bad'"):
        accept("other", project=home, **GIVEN)
    before, old = delivered(project), mask(home / "big_segments.tif")
    accept("bad", project=home, force=True, **GIVEN)
    assert {one.id: one.state for one in listed(home).rounds} == {"bad": "accepted", "other": "accepted with bad"}
    full = tmp_path / "full"
    full.mkdir()
    deliver(home / "big.tif", project.correction("bad").model, [full / name for name in SEGMENTS], **GIVEN)
    new, after = mask(full / "big_segments.tif"), mask(home / "big_segments.tif")
    # What was drawn in either is as the new model sees it; elsewhere nothing changed.
    for top in (40, 130):
        assert np.array_equal(after[top : top + 60, 60:140], new[top : top + 60, 60:140])
    assert (new != old)[40:100, 60:140].any() and (new != old)[130:190, 60:140].any()
    assert np.array_equal(after[:, :40], old[:, :40]) and np.array_equal(after[:, 160:], old[:, 160:])
    with pytest.raises(CorrectionError, match="accepted already"):
        accept("bad", project=home, force=True, **GIVEN)
    assert rollback("other", project=home).id == "bad"
    assert delivered(project) == before


def test_several_rasters_are_brought_up_together(project: Project) -> None:
    home, correction = project.folder, project.correction("bad")
    with rasterio.open(home / "big.tif") as file:
        place = file.transform @ file.transform.translation(0, 500)
        write_raster(home / "south.tif", file.read(), transform=place)
    both, names = [home / "big.tif", home / "south.tif"], ("south_segments.tif", "south_segments.shp")
    deliver(both[1], home / "parent", [home / name for name in names], **GIVEN)
    segments = (*correction.segments, *(home / name for name in names))
    replace(correction, rasters=tuple(map(str, both)), segments=tuple(map(str, segments))).write()
    old = [mask(home / name) for name in ("big_segments.tif", names[0])]
    # On the second nothing is drawn, so nothing of it is predicted again.
    done = accept("bad", project=home, force=True, **GIVEN)
    assert len(done.deliveries) == 1 and np.array_equal(mask(home / names[0]), old[1])
    rollback(project=home)
    draw(correction.gpkg, [box(40, 60, 100, 140), box(540, 60, 600, 140)], [])
    done = accept("bad", project=home, force=True, **GIVEN)
    assert len(done.deliveries) == 2
    now = [mask(home / name) for name in ("big_segments.tif", names[0])]
    # Both show the same, so they change alike.
    assert np.array_equal(*old) and np.array_equal(*now) and (now[1] != old[1]).any()
    rollback(project=home)
    assert np.array_equal(mask(home / names[0]), old[1])
    with pytest.raises(CorrectionError, match=r"else\.tif.*is not known"):
        accept("bad", project=home, force=True, segments=[home / "else.tif"], **GIVEN)
    accept("bad", project=home, force=True, raster=both[0], **GIVEN)
    assert np.array_equal(mask(home / names[0]), old[1]) and (mask(home / "big_segments.tif") != old[0]).any()


def test_what_was_accepted_in_between_is_not_lost_by_chance(project: Project) -> None:
    add_correction(project.folder, "other", project.folder / "parent", 2)
    accept("bad", project=project.folder, force=True, **GIVEN)
    with pytest.raises(CorrectionError, match="accepted already"):
        accept("bad", project=project.folder, force=True, **GIVEN)
    one = delivered(project)
    with pytest.raises(CorrectionError, match="works with"):
        accept("other", project=project.folder, **GIVEN)
    assert delivered(project) == one


def test_what_somebody_changed_since_is_not_thrown_away_unasked(project: Project) -> None:
    path = project.folder / "big_segments.gpkg"
    frame = gpd.read_file(path, layer="polygons")
    accept("bad", project=project.folder, force=True, **GIVEN)
    gpd.read_file(path, layer="polygons").iloc[1:].to_file(path, layer="polygons")
    with pytest.raises(CorrectionError, match=r"big_segments.gpkg in .* changed since"):
        rollback(project=project.folder)
    rollback(project=project.folder, force=True)
    assert len(gpd.read_file(path, layer="polygons")) == len(frame)
    shapes = gpd.read_file(project.folder / "big_segments.shp")
    edited = shapes[shapes.distance(box(40, 60, 100, 140)) < 100].drop(columns="date")
    edited.to_file(project.folder / "big_segments.shp")
    before = delivered(project)
    with pytest.raises(VectorError, match="edited by hand"):
        accept("bad", project=project.folder, force=True, **GIVEN)
    assert delivered(project) == before
    accept("bad", project=project.folder, force=True, overwrite=True, **GIVEN)


def test_a_project_that_was_copied_or_moved_is_rolled_back_where_it_is_now(project: Project, tmp_path: Path) -> None:
    before = delivered(project)
    accept("bad", project=project.folder, force=True, **GIVEN)
    there = delivered(project)
    copied = Project(tmp_path / "copied")
    shutil.copytree(project.folder, copied.folder)
    rollback(project=copied.folder)
    assert delivered(project) == there and delivered(copied) == before
    moved = Project(tmp_path / "moved")
    shutil.move(project.folder, moved.folder)
    rollback(project=moved.folder)
    assert delivered(moved) == before


def test_a_journal_is_carried_out_where_the_project_is_now(project: Project, tmp_path: Path) -> None:
    rounds = project.rounds
    for name in ("new.txt", "old.txt"):
        (project.folder / name).write_text(name)
    told = {"moves": [["../old.txt", "../new.txt"]], "sweep": []}
    (rounds / JOURNAL).write_text(json.dumps(told))
    moved = tmp_path / "moved"
    shutil.move(project.folder, moved)
    assert len(Project(moved).corrections()) == 1
    assert (moved / "old.txt").read_text() == "new.txt" and not (moved / "corrections" / JOURNAL).exists()
    for text in ("{}", "[]", "null", '{"moves": [1], "sweep": []}'):
        (moved / "corrections" / JOURNAL).write_text(text)
        with pytest.raises(CorrectionError, match="was it edited"):
            listed(moved)


def test_nothing_but_a_prediction_is_replaced(project: Project) -> None:
    image = (project.folder / "big.tif").read_bytes()
    foreign = write_raster(project.folder / "mine.tif", np.zeros(SHAPE, np.uint8))
    drawn = project.folder / "mine.gpkg"
    gpd.GeoDataFrame({"name": ["a"]}, geometry=[box(0, 0, 10, 10)], crs=UTM).to_file(drawn)
    given = {"project": project.folder, "force": True, "everywhere": True, **GIVEN}
    for segments, told in (
        ([project.folder / "big.tif"], "the image itself"),
        ([foreign], "not made by gimseg predict"),
        ([project.folder / "big_segments.tif", drawn], "has no attribute class_id"),
    ):
        with pytest.raises(CorrectionError, match=told):
            accept("bad", segments=segments, **given)
    assert (project.folder / "big.tif").read_bytes() == image and len(gpd.read_file(drawn)) == 1
    done = accept("bad", overwrite=True, segments=[foreign], **given)
    assert [path.name for path in done.files if path.suffix == ".tif"] == ["mine.tif"]


def test_what_was_kept_to_go_back_to_and_is_gone_is_told(project: Project) -> None:
    accept("bad", project=project.folder, force=True, **GIVEN)
    there = delivered(project)
    next((project.correction("bad").folder / "replaced").glob("*.shp")).unlink()
    with pytest.raises(CorrectionError, match=r"big_segments\.shp in .* is gone"):
        rollback(project=project.folder)
    assert delivered(project) == there and not hidden(project)


def test_a_style_of_ones_own_stays(project: Project) -> None:
    style = project.folder / "big_segments.qml"
    style.write_text("mine")
    accept("bad", project=project.folder, force=True, **GIVEN)
    assert style.read_text() == "mine"


def test_what_cannot_be_updated_is_told_before_anything_changes(project: Project, tmp_path: Path) -> None:
    before = delivered(project)
    for segments, told in (
        ([project.folder / "big_segments.shp"], "one mask"),
        ([project.folder / "no.tif"], "does not exist"),
        ([project.folder / "big.tif"], "the image itself"),
    ):
        with pytest.raises(CorrectionError, match=told):
            accept("bad", project=project.folder, force=True, segments=segments, **GIVEN)
    with pytest.raises(CorrectionError, match="no correction 'none'"):
        accept("none", project=project.folder)
    draw(project.correction("bad").gpkg, [box(900, 900, 910, 910)], [])
    shutil.rmtree(project.correction("bad").model)
    with pytest.raises(CorrectionError, match="gimseg correct train bad"):
        accept("bad", project=project.folder)
    assert delivered(project) == before and not hidden(project) - {".accepting"}


RUN = """
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    from gimseg.correction.accepting import accept, rollback
    replace, moves = os.replace, 0
    def counted(*given):
        global moves
        moves += 1
        if (moves, "before") == {moment!r}:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*given)
        if (moves, "after") == {moment!r}:
            os.kill(os.getpid(), signal.SIGKILL)
    os.replace = counted
    if {verb!r} == "accept":
        accept("bad", project={folder!r}, force=True, window=64, min_area_m2=4.0, segments={segments!r})
    else:
        rollback(project={folder!r})
    print(moves)
"""
"""Everything that changes a file in its place is one of these moves: a kill between two is as good as beside one."""


def kept(project: Project) -> list[str]:
    return [str(project.folder / f"big_segments.{ending}") for ending in ("tif", "shp")]


def run(project: Project, verb: str, moment: tuple[int, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Accept or roll back in a process of its own, killed before or after its nth move."""
    given = {
        "verb": verb,
        "folder": str(project.folder),
        "segments": kept(project),
        "tests": str(Path(__file__).parent),
        "moment": moment,
    }
    script = textwrap.dedent(RUN).format(**given)
    return subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, timeout=300, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["accept", "rollback"])
def test_a_kill_at_any_moment_leaves_old_or_new(verb: str, project: Project) -> None:
    given = {**GIVEN, "segments": kept(project), "force": True, "project": project.folder}
    there = {"accept": lambda: accept("bad", **given), "rollback": lambda: rollback(project=project.folder)}
    other = "rollback" if verb == "accept" else "accept"
    before = delivered(project)
    there["accept"]()
    states = {"rollback": before, "accept": delivered(project)}
    if verb == "accept":
        there["rollback"]()
    assert delivered(project) == states[other]
    done = run(project, verb)
    assert done.returncode == 0 and delivered(project) == states[verb]
    total, seen = int(done.stdout), set()
    # Some moves of the work, and those of the change itself, which come last.
    numbers = sorted({1, total - 8, *range(total - 4, total + 1)} & {*range(1, total + 1)})
    for moment in [*((number, "before") for number in numbers), (total, "after")]:
        if delivered(project) != states[other]:
            there[other]()
        # What was predicted before the last kill would be taken up again, in fewer moves.
        shutil.rmtree(project.correction("bad").folder / ".accepting", ignore_errors=True)
        assert run(project, verb, moment).returncode == -signal.SIGKILL
        decided = (project.rounds / JOURNAL).exists()
        if decided:
            assert settle(project.rounds)
        assert delivered(project) == (states[verb] if decided else states[other])
        seen.add(decided)
    assert seen == {True, False}


def test_probabilities_and_uncertainty_beside_the_mask_are_brought_up_too(tmp_path: Path) -> None:
    products = Products(probabilities=True, uncertainty="entropy")
    names = ("m.tif", "m.fgb")
    project = make_project(tmp_path / "project", segments=names, products=products)
    beside = [project.folder / f"m_{name}.tif" for name in ("probabilities", "uncertainty")]
    before = [mask(path) for path in beside]
    accept("bad", project=project.folder, force=True, **GIVEN)
    full = tmp_path / "full"
    full.mkdir()
    model = project.correction("bad").model
    deliver(project.folder / "big.tif", model, [full / name for name in names], products=products, **GIVEN)
    for path, old in zip(beside, before, strict=True):
        new, after = mask(full / path.name), mask(path)
        assert np.array_equal(after[:112, 48:144], new[:112, 48:144])
        after[:112, 48:144] = old[:112, 48:144]
        assert np.array_equal(after, old)
    # With the old probabilities at hand a polygon on the border has its confidence from all of it.
    assert gpd.read_file(project.folder / "m.fgb")["confidence"].notna().all()
