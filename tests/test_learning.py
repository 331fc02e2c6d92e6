"""Laws of learning a correction: it learns, forgets nothing that it shouldn't, touches nothing that is deployed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import torch
from click.testing import CliRunner
from test_training import QUICK, squares_world
from worlds import TOP_LEFT, UTM, write_raster

from gimseg import Dataset, Model, correct, evaluate, train
from gimseg.augmentation import Augmentation
from gimseg.cli import cli, main
from gimseg.correction.grounds import open_ground
from gimseg.correction.learning import LEARNING, SHARE, SHARE_OF_FEW, CorrectedWindows, learn
from gimseg.correction.replay import corrected_ground, open_replay
from gimseg.correction.rounds import Correction, Project
from gimseg.datasets import Datasets
from gimseg.deployments import Accepted, Deployment
from gimseg.errors import CorrectionError, ResumeError, TrainingError
from gimseg.models import find_model

LEFT, TOP = TOP_LEFT
SHORT = replace(LEARNING, epochs=2, windows_per_epoch=16, precision="float32", exemplars=2)
"""Two epochs of two steps."""
LONGER = replace(SHORT, epochs=6, windows_per_epoch=160, learning_rate=2e-3)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows bright squares, and keeps windows of them."""
    folder = tmp_path_factory.mktemp("parent")
    train(squares_world(folder), folder / "model", settings=replace(QUICK, exemplars=4))
    return folder / "model"


@pytest.fixture(scope="module")
def forgetful(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model without its windows."""
    folder = tmp_path_factory.mktemp("forgetful") / "model"
    shutil.copytree(parent, folder, ignore=shutil.ignore_patterns("exemplars"))
    return folder


def dark_world(folder: Path, seed: int = 7) -> Dataset:
    """Dark squares on grey ground: what the parent has never seen."""
    rng = np.random.default_rng(seed)
    image = rng.normal(110, 10, (3, 384, 384))
    geometries = []
    for row in range(12, 360, 40):
        for col in range(12, 360, 40):
            side = int(rng.integers(10, 24))
            image[:, row : row + side, col : col + side] -= rng.uniform(50, 80, 3)[:, None, None]
            geometries.append(shapely.box(LEFT + col, TOP - row - side, LEFT + col + side, TOP - row))
    path = write_raster(folder / f"dark{seed}.tif", np.clip(image, 1, 255).astype(np.uint8))
    truth = folder / f"dark{seed}.gpkg"
    geopandas.GeoDataFrame(geometry=geometries, crs=UTM).to_file(truth)
    return Dataset(f"dark{seed}", 1.0, [path], [truth])


def drawn(project: Path, id: str = "bad", side: int = 192, parent: Path | str = "builtin") -> Correction:
    """The truth of the upper left of a dark world, drawn."""
    folder = project / "corrections" / id
    folder.mkdir(parents=True)
    world = dark_world(project)
    area = shapely.box(LEFT, TOP - side, LEFT + side, TOP)
    truth = geopandas.read_file(world.masks[0]).clip(area).explode()
    geopandas.GeoDataFrame(geometry=[area], crs=UTM).to_file(folder / "correction.gpkg", layer="aoi")
    truth.assign(**{"class": "object"}).to_file(folder / "correction.gpkg", layer="objects")
    made = Correction(folder, str(parent), world.images, started=f"2026-11-21T15:00:0{len(id) % 10}+00:00")
    made.write()
    return made


def iou(model: Model | Path, world: Dataset) -> float:
    return float(evaluate(model, world).of_split().iou[1])


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_it_learns_what_was_drawn_and_keeps_what_it_knew(parent: Path, tmp_path: Path) -> None:
    old, new = squares_world(tmp_path, seed=5), dark_world(tmp_path, seed=9)
    before = content(parent)
    done = learn([drawn(tmp_path, parent=parent)], settings=LONGER)
    assert iou(done.model, new) > iou(parent, new) + 0.3
    assert iou(done.model, old) > iou(parent, old) - 0.1
    assert content(parent) == before
    assert Project(tmp_path).deployed() is None


def clicked(project: Path, parent: Path, count: int = 80) -> Correction:
    """Points in the upper left of a dark world, half of them on squares."""
    made = drawn(project, parent=parent)
    truth = geopandas.read_file(made.gpkg, layer="objects")
    rng, found = np.random.default_rng(3), {"object": [], "background": []}
    while min(len(points) for points in found.values()) < count // 2:
        point = shapely.Point(LEFT + rng.uniform(0, 192), TOP - rng.uniform(0, 192))
        found["object" if truth.contains(point).any() else "background"].append(point)
    points = [point for some in found.values() for point in some[: count // 2]]
    classes = [name for name in found for _ in range(count // 2)]
    made.gpkg.unlink()
    geopandas.GeoDataFrame({"class": classes}, geometry=points, crs=UTM).to_file(made.gpkg, layer="points")
    return made


@pytest.mark.slow
def test_clicks_alone_teach_beside_replayed_windows_that_are_labelled_whole(parent: Path, tmp_path: Path) -> None:
    old, new = squares_world(tmp_path, seed=5), dark_world(tmp_path, seed=9)
    done = learn([clicked(tmp_path, parent)], settings=replace(LONGER, old_share=0.2))
    assert iou(done.model, new) > iou(parent, new) + 0.3
    assert iou(done.model, old) > iou(parent, old) - 0.1


def test_the_folder_of_the_model_is_whole_and_says_where_it_comes_from(parent: Path, tmp_path: Path) -> None:
    made = drawn(tmp_path, parent=parent)
    done = learn([made], settings=SHORT)
    said = Model.load(made.model).provenance
    assert said["parent"] == {"folder": str(parent), "fingerprint": Model.load(parent).fingerprint()}
    assert said["learned"] == said["corrections"] == ["bad"]
    assert said["settings"]["window"] == QUICK.window
    assert "4 windows that the model keeps" in said["replay"]
    assert done.notes == () and said["unguarded"] == []
    assert content(made.model / "exemplars") == content(parent / "exemplars")
    assert sorted(path.name for path in made.folder.iterdir()) == [
        "correction.gpkg", "correction.toml", "labels.tif", "model"
    ]  # fmt: skip


def test_statistics_of_normalisation_are_the_parents(parent: Path, tmp_path: Path) -> None:
    new = learn([drawn(tmp_path, parent=parent)], settings=SHORT).model.network.state_dict()
    old = Model.load(parent).network.state_dict()
    statistics = [name for name in old if "running_" in name]
    assert statistics and all(torch.equal(old[name], new[name]) for name in statistics)
    assert not torch.equal(old["segmentation_head.0.weight"], new["segmentation_head.0.weight"])


def test_the_new_weights_lie_between_the_old_and_what_was_learned(parent: Path, tmp_path: Path) -> None:
    old = Model.load(parent).network.state_dict()
    shares = (0.0, 0.25)
    learned, mixed = (
        learn([drawn(tmp_path / f"{share}", parent=parent)], settings=replace(SHORT, old_share=share)).model.network
        for share in shares
    )
    whole, moved = learned.state_dict(), 0.0
    for name, weight in mixed.state_dict().items():
        assert torch.allclose(weight.double(), 0.25 * old[name].double() + 0.75 * whole[name].double(), atol=1e-6), name
        moved += float((whole[name] - old[name]).abs().sum())
    assert moved > 0.1


def test_where_few_pixels_are_labelled_more_of_the_old_weights_is_kept(parent: Path, tmp_path: Path) -> None:
    clicks, area = clicked(tmp_path / "clicks", parent), drawn(tmp_path / "area", parent=parent)
    for made, share in ((clicks, SHARE_OF_FEW), (area, SHARE)):
        usual = learn([made], settings=SHORT).model
        assert usual.provenance["settings"]["old_share"] == share
        given = learn([made], settings=replace(SHORT, old_share=share), restart=True).model
        assert given.fingerprint() == usual.fingerprint()
    assert SHARE < SHARE_OF_FEW


def test_another_share_of_the_old_weights_is_what_training_with_it_leaves(parent: Path, tmp_path: Path) -> None:
    """And it is found without learning again, until something else is another one, too."""
    made, steps = drawn(tmp_path / "one", parent=parent), []

    def count(task: str, done: float, total: float, unit: str, note: str = "") -> None:
        steps.extend([done] if task == "train" else [])

    learn([made], settings=replace(SHORT, old_share=0.2))
    made.metrics.write_text("of the model before")
    for share in (0.5, 0.1):
        found = learn([made], settings=replace(SHORT, old_share=share), progress=count)
        trained = learn([drawn(tmp_path / f"{share}", parent=parent)], settings=replace(SHORT, old_share=share))
        weights = trained.model.network.state_dict()
        for name, weight in found.model.network.state_dict().items():
            assert torch.allclose(weight.double(), weights[name].double(), atol=1e-6), name
        assert content(found.correction.model / "exemplars") == content(trained.correction.model / "exemplars")
        assert found.model.provenance["settings"] == trained.model.provenance["settings"]
        assert f"{share:g} of the old weights, learned bad before, in" in found.text() and not trained.before
    assert not steps and not made.metrics.exists()
    learn([made], settings=replace(SHORT, old_share=0.1), restart=True, progress=count)
    assert steps and steps[0] == 1
    steps.clear()
    learn([made], settings=replace(SHORT, old_share=0.1, seed=5), progress=count)
    assert steps and steps[0] == 1
    steps.clear()
    geopandas.read_file(made.gpkg, layer="objects").iloc[1:].to_file(made.gpkg, layer="objects")
    learn([made], settings=replace(SHORT, old_share=0.1, seed=5), progress=count)
    assert steps and steps[0] == 1


def test_a_training_from_the_beginning_has_no_old_share(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="old_share is for corrections"):
        train(squares_world(tmp_path), tmp_path / "model", settings=replace(QUICK, old_share=0.2))


def test_held_out_ground_is_never_learned(parent: Path, tmp_path: Path) -> None:
    """What is drawn there changes no weight."""
    made = drawn(tmp_path / "one", parent=parent)
    other = drawn(tmp_path / "two", parent=parent)
    held = [scene for scene in open_ground(other, Model.load(parent)) if scene.holdout is not None]
    frame = geopandas.read_file(other.gpkg, layer="objects")
    x, y = held[0].holdout.numbers(held[0].geobox)  # type: ignore[union-attr]
    side = held[0].holdout.side  # type: ignore[union-attr]
    blocks = {(a, b) for a in set(x.tolist()) for b in set(y.tolist()) if (a, b) in held[0].holdout.held}  # type: ignore[union-attr]
    secret = shapely.union_all([shapely.box(a * side, b * side, (a + 1) * side, (b + 1) * side) for a, b in blocks])
    frame["geometry"] = frame.geometry.difference(secret)
    frame[~frame.geometry.is_empty].explode().to_file(other.gpkg, layer="objects")
    prints = {learn([each], settings=SHORT).model.fingerprint() for each in (made, other)}
    assert len(prints) == 1


def test_original_datasets_are_replayed_and_kept_for_the_next_time(forgetful: Path, tmp_path: Path) -> None:
    old = squares_world(tmp_path)
    done = learn([drawn(tmp_path, parent=forgetful)], replay=old + squares_world(tmp_path, 3), settings=SHORT)
    said = done.model.provenance
    assert "w0, w3" in said["replay"] and done.notes == ()
    assert len(list((done.correction.model / "exemplars").glob("*_image.tif"))) == 2
    assert list((done.correction.model / "exemplars" / "test").glob("*_labels.tif"))
    assert said["divided"] == {"seed": QUICK.seed, "val_share": QUICK.val_share}


def test_replayed_windows_are_varied_as_they_were_first(parent: Path, tmp_path: Path) -> None:
    """And corrected ones as is said now."""
    own = Augmentation(levelled=0.5, scale=(0.7, 1.5))
    taught = Model.load(parent)
    settings = {**taught.provenance["settings"], "augmentation": {**asdict(own), "unheard_of": 1}}
    elder = replace(taught, provenance={**taught.provenance, "settings": settings})
    made = [drawn(tmp_path, parent=parent)]
    for datasets in (None, Datasets((squares_world(tmp_path),))):
        shown = open_replay(elder, made, (), datasets, replace(SHORT, window=QUICK.window))
        assert shown.augmentation == own
    windows = CorrectedWindows(elder.recipe, corrected_ground(made, elder), shown, replace(SHORT, window=QUICK.window))
    assert windows.augmentations == (SHORT.augmentation, own)


def test_without_old_data_the_old_answers_are_kept_and_it_says_so(forgetful: Path, tmp_path: Path) -> None:
    done = learn([drawn(tmp_path, side=96, parent=forgetful)], settings=SHORT)
    assert "old answers kept" in done.model.provenance["replay"]
    (note,) = done.notes
    assert "not guarded" in note and "--replay" in note and done.model.provenance["unguarded"] == [note]


def test_where_all_is_labelled_and_nothing_old_is_there_it_warns(forgetful: Path, tmp_path: Path) -> None:
    done = correct.train(dark_world(tmp_path), project=tmp_path, model=forgetful, settings=SHORT)
    assert "nothing guards against forgetting" in done.notes[0]


@pytest.mark.slow
def test_what_was_accepted_before_is_learned_again(parent: Path, tmp_path: Path) -> None:
    first, second = drawn(tmp_path, "one", parent=parent), drawn(tmp_path, "second")
    learn([first], settings=SHORT)
    history = (Accepted("one", "one/model", "2026-11-21T16:00:00+00:00"),)
    Deployment("one/model", history).write(first.project.rounds)
    done = learn([second], settings=replace(SHORT, augmentation=Augmentation.none()))
    said = done.model.provenance
    assert (
        said["varied"] == Model.load(parent).provenance["settings"]["augmentation"] != said["settings"]["augmentation"]
    )
    assert said["parent"]["folder"] == "corrections/one/model"
    assert (said["learned"], said["corrections"]) == (["second"], ["one", "second"])
    assert "1 earlier correction" in said["replay"]
    with pytest.raises(CorrectionError, match="was accepted"):
        learn([first], settings=SHORT)


@pytest.mark.slow
def test_a_correction_that_is_gone_is_told(parent: Path, tmp_path: Path) -> None:
    first, second = drawn(tmp_path, "one", parent=parent), drawn(tmp_path, "second")
    learn([first], settings=SHORT)
    shutil.copytree(first.model, tmp_path / "kept")
    shutil.rmtree(first.folder)
    done = learn([second], model=tmp_path / "kept", settings=SHORT)
    assert any("'one', which is gone" in note for note in done.notes)


def test_several_are_learned_together(parent: Path, tmp_path: Path) -> None:
    drawn(tmp_path, "one", parent=parent), drawn(tmp_path, "second")
    done = correct.train("one", "second", project=tmp_path, settings=SHORT)
    assert done.correction.id == "one" and done.model.provenance["learned"] == ["one", "second"]
    assert Project(tmp_path).correction("second").labels.exists()
    with pytest.raises(CorrectionError, match="named twice"):
        correct.train("one", "one", project=tmp_path)


def test_a_drawing_that_misleads_is_refused(parent: Path, tmp_path: Path) -> None:
    made = drawn(tmp_path, parent=parent)
    frame = geopandas.read_file(made.gpkg, layer="objects")
    frame.loc[0, "class"] = "objekt"
    frame.to_file(made.gpkg, layer="objects")
    with pytest.raises(CorrectionError, match=r"'objekt' is not in the legend.*gimseg correct check bad"):
        learn([made], settings=SHORT)
    assert not made.model.exists()


@pytest.mark.slow
def test_a_new_model_sweeps_away_what_was_said_of_the_older(parent: Path, tmp_path: Path) -> None:
    made = drawn(tmp_path, parent=parent)
    learn([made], settings=SHORT)
    for path in (made.metrics, made.report, made.after, made.before, made.diff):
        path.write_text("old")
    older = Model.load(made.model).fingerprint()
    learn([made], settings=replace(SHORT, seed=3))
    assert Model.load(made.model).fingerprint() != older
    assert not any(path.exists() for path in (made.metrics, made.report, made.after, made.before, made.diff))


class StoppedError(Exception):
    pass


def stop_at(step: int) -> Any:
    def progress(task: str, done: float, total: float, unit: str, note: str = "") -> None:
        if task == "train" and done == step:
            raise StoppedError

    return progress


@pytest.mark.slow
def test_it_goes_on_where_it_stopped_and_begins_anew_after_an_edit(parent: Path, tmp_path: Path) -> None:
    made = drawn(tmp_path, parent=parent)
    steps: list[float] = []

    def count(task: str, done: float, total: float, unit: str, note: str = "") -> None:
        steps.extend([done] if task == "train" else [])

    with pytest.raises(StoppedError):
        learn([made], settings=SHORT, progress=stop_at(3))
    assert not made.model.exists()
    with pytest.raises(ResumeError, match="other settings"):
        learn([made], settings=replace(SHORT, learning_rate=1e-5))
    learn([made], settings=SHORT, progress=count)
    assert steps[0] == 3
    shutil.rmtree(made.model)
    with pytest.raises(StoppedError):
        learn([made], settings=SHORT, progress=stop_at(3))
    frame = geopandas.read_file(made.gpkg, layer="objects").iloc[1:]
    frame.to_file(made.gpkg, layer="objects")
    steps.clear()
    learn([made], settings=SHORT, progress=count)
    assert steps[0] == 1


def test_what_is_drawn_while_it_learns_is_learned_the_next_time(parent: Path, tmp_path: Path) -> None:
    made, other = drawn(tmp_path, parent=parent), tmp_path / "other.gpkg"
    shutil.copy(made.gpkg, other)

    def draw(task: str, done: float, total: float, unit: str, note: str = "") -> None:
        if task == "train" and done == 1:
            geopandas.GeoDataFrame(geometry=[shapely.box(LEFT, TOP - 30, LEFT + 30, TOP)], crs=UTM).to_file(
                made.gpkg, layer="aoi"
            )

    learn([made], settings=SHORT, progress=draw)
    with rasterio.open(made.labels) as written:
        assert (written.read(1) != 255).sum() == 192**2
    assert not learn([made], settings=SHORT).before
    shutil.copy(other, made.gpkg)
    assert not learn([made], settings=SHORT).before
    assert learn([made], settings=SHORT).before


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_learning import SHORT
from gimseg import correct
from dataclasses import replace
correct.train("bad", project={project!r}, settings=replace(SHORT, epochs=6))
"""


@pytest.mark.slow
def test_a_kill_at_any_time_leaves_the_deployed_model_and_it_goes_on(parent: Path, tmp_path: Path) -> None:
    made = drawn(tmp_path, parent=parent)
    shutil.copytree(parent, tmp_path / "corrections" / "base")
    Deployment("base").write(made.project.rounds)
    deployed = content(tmp_path / "corrections" / "base")
    text = SCRIPT.format(tests=str(Path(__file__).parent), project=str(tmp_path))
    rng = np.random.default_rng(int(time.time()))
    for _ in range(12):
        process = subprocess.Popen([sys.executable, "-c", text])
        try:
            process.wait(timeout=float(rng.uniform(4, 25)))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        assert find_model(tmp_path) == tmp_path / "corrections" / "base"
        assert content(tmp_path / "corrections" / "base") == deployed
        if made.model.exists():
            Model.load(made.model)
            assert process.returncode == 0 or not (made.folder / "model.training").exists()
            break
    else:
        assert subprocess.run([sys.executable, "-c", text]).returncode == 0
    assert Model.load(made.model).provenance["learned"] == ["bad"]


def test_the_simplest_case_on_the_command_line(parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A TIFF and a Shapefile of right boundaries."""
    world = dark_world(tmp_path)
    shutil.move(world.images[0], tmp_path / "bad_AoI.tif")
    geopandas.read_file(world.masks[0]).to_file(tmp_path / "bad_AoI_ground_truth.shp")
    (tmp_path / "bad.toml").write_text(
        '[[dataset]]\ntag = "bad_AoI"\nspatial_resolution = 0.2\nimage_paths = ["bad_AoI.tif"]\n'
        'mask_paths = ["bad_AoI_ground_truth.shp"]\n'
    )
    monkeypatch.chdir(tmp_path)
    given = [
        "correct",
        "train",
        "--dataset",
        "bad.toml",
        "-m",
        str(parent),
        "--epochs",
        "1",
        "--windows-per-epoch",
        "8",
    ]
    done = CliRunner().invoke(cli, given, catch_exceptions=False)
    assert done.exit_code == 0 and "corrections/bad_AoI/model: learned bad_AoI" in done.output
    assert Model.load("corrections/bad_AoI/model").provenance["learned"] == ["bad_AoI"]
    listing = CliRunner().invoke(cli, ["correct", "list"], catch_exceptions=False).output
    assert "bad_AoI" in listing and "trained" in listing and "nothing accepted yet" in listing


def test_usage_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["correct", "train"]) == 2
    assert "--dataset" in capsys.readouterr().err
    assert main(["correct", "train", "nothing"]) == 1
    assert "there are: none" in capsys.readouterr().err
    assert main(["correct", "list"]) == 0
    assert "no corrections yet" in capsys.readouterr().out


def test_the_list_shows_states_and_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = drawn(tmp_path)
    states = []
    for step in (
        lambda: None,
        lambda: shutil.copytree(find_model("builtin"), made.model),
        lambda: made.metrics.write_text(
            json.dumps(
                {
                    "verdict": {"passed": True},
                    "held_out": {"deployed_threshold": {"before": {"score": 0.4}, "after": {"score": 0.6}}},
                }
            )
        ),
        lambda: Deployment("bad/model", (Accepted("bad", "bad/model", "2026-11-21"),)).write(made.project.rounds),
    ):
        step()
        states.append(correct.listed(tmp_path).rounds[0])
    assert [one.state for one in states] == ["drawn", "trained", "reported", "accepted"]
    assert (states[-1].before, states[-1].after, states[-1].passed, states[-1].deployed) == (0.4, 0.6, True, True)
    text = correct.listed(tmp_path).text()
    assert "0.400 → 0.600" in text and "better" in text and str(made.model) in text
    monkeypatch.chdir(tmp_path)
    assert correct.listed().text().endswith(f"deployed model: {Path('corrections/bad/model')}")
