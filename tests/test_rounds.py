"""Projects and their rounds: what is written reads back, a project can be moved, one file names its model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from worlds import noise, write_raster

from gimseg.correction.loop import record
from gimseg.correction.rounds import Correction, Opening, Project, table_of
from gimseg.datasets import Dataset
from gimseg.deployments import Accepted, Deployment
from gimseg.errors import CorrectionError, ModelError
from gimseg.legend import Legend
from gimseg.models import find_model


def started(project: Path, id: str = "bad_aoi", **given: object) -> Correction:
    (project / "corrections" / id).mkdir(parents=True)
    raster = write_raster(project / "big.tif", noise((3, 20, 20)))
    values = {"parent": "builtin", "rasters": (str(raster),), "started": "2026-11-21T15:00:00+00:00"} | given
    correction = Correction(project / "corrections" / id, **values)  # type: ignore[arg-type]
    correction.write()
    return correction


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    opening = Opening((3, 2, 1), "auto", "EPSG:32633", 'LOCAL_CS["of \\ the site"]')
    segments = (str(tmp_path / "big_segments.tif"), "/vsicurl/https://example.org/big.shp")
    correction = started(tmp_path, opening=opening, segments=segments, parent=str(tmp_path / "models" / "one"))
    assert Project(tmp_path).correction("bad_aoi") == correction
    assert correction.project == Project(tmp_path)


def test_a_dataset_is_a_correction_and_reads_back(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "big.tif", noise((3, 20, 20)))
    legend = Legend.from_dict({"field": "roof", "classes": [{"name": "tin", "values": ["tin", "tinn"]}, "tile"]})
    dataset = Dataset("bad_AoI", 0.2, [raster], legend=legend, bands=[1, 2, 3], nodata=255.0)
    correction = started(tmp_path, truth=table_of(dataset))
    read = Project(tmp_path).correction("bad_aoi")
    assert read.dataset() == correction.dataset() == dataset


def test_an_accepted_dataset_stays_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later trainings replay it: a file that would change it is refused before anything is written."""
    for name in ("one.tif", "two.tif"):
        write_raster(tmp_path / name, noise((3, 20, 20)))
    monkeypatch.chdir(tmp_path)
    one, two = (Dataset("bad_AoI", 0.2, [name]) for name in ("one.tif", "two.tif"))
    home = Project(Path())
    record(one, home)
    assert record(two, home).rasters == ("two.tif",)
    recorded = record(one, home)
    Deployment("bad_AoI/model", (Accepted("bad_AoI", "bad_AoI/model", "2026-11-21"),)).write(home.rounds)
    before = recorded.file.read_bytes()
    assert record(one, home).text() == recorded.text()
    assert record(Dataset("bad_AoI", 0.2, [tmp_path / "one.tif"]), home).text() == recorded.text()
    with pytest.raises(CorrectionError, match="another tag"):
        record(two, home)
    assert recorded.file.read_bytes() == before


def test_a_project_can_be_moved(tmp_path: Path) -> None:
    started(tmp_path / "old", parent=str(tmp_path / "old" / "models" / "one"))
    shutil.move(tmp_path / "old", tmp_path / "new")
    moved = Project(tmp_path / "new").correction("bad_aoi")
    assert moved.rasters == (str(tmp_path / "new" / "big.tif"),)
    assert moved.parent == str(tmp_path / "new" / "models" / "one")


def test_corrections_stand_by_the_time_of_their_start(tmp_path: Path) -> None:
    for id, hour in (("b", 9), ("c", 7), ("a", 8)):
        started(tmp_path, id, started=f"2026-11-21T{hour:02d}:00:00+00:00")
    assert [item.id for item in Project(tmp_path).corrections()] == ["c", "a", "b"]


@pytest.mark.parametrize("id", ["", ".", "..", "a/b", "../a", "a b", "-rf", "a" * 65])
def test_an_id_is_one_plain_name(tmp_path: Path, id: str) -> None:
    with pytest.raises(CorrectionError, match="letters, digits"):
        Project(tmp_path).correction(id)


def test_a_folder_that_is_no_correction_hides_none(tmp_path: Path) -> None:
    """A copy that a file manager made, or a start that was killed."""
    made = started(tmp_path)
    for name in ("bad_aoi (copy)", ".other.partial"):
        shutil.copytree(made.folder, made.folder.with_name(name))
    assert [item.id for item in Project(tmp_path).corrections()] == ["bad_aoi"]


def test_an_unknown_correction_is_refused_with_those_that_are_there(tmp_path: Path) -> None:
    started(tmp_path)
    with pytest.raises(CorrectionError, match="there are: bad_aoi"):
        Project(tmp_path).correction("bed_aoi")


@pytest.mark.parametrize("text", ["rasters = [", "rasters = 3", 'parent = "builtin"', "strange = 1"])
def test_a_damaged_file_is_told(tmp_path: Path, text: str) -> None:
    started(tmp_path).file.write_text(text)
    with pytest.raises(CorrectionError, match=r"correction\.toml"):
        Project(tmp_path).correction("bad_aoi")


GOOD = 'parent = "builtin"\nrasters = ["big.tif"]\nsegments = []\n'


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace('["big.tif"]', '"big.tif"'),
        f"started = 2026-11-21\n{GOOD}",
        f"dataset = 5\n{GOOD}",
        f"{GOOD}[dataset]\n",
        f'{GOOD}[dataset]\ntag = "a"\nspatial_resolution = 1\nstrange = 1\n',
    ],
)
def test_a_file_of_other_types_is_told(tmp_path: Path, text: str) -> None:
    file = started(tmp_path).file
    file.write_text(GOOD)
    assert Project(tmp_path).correction("bad_aoi").rasters == (str(tmp_path / "big.tif"),)
    file.write_text(text)
    with pytest.raises(CorrectionError, match=r"correction\.toml cannot be read"):
        Project(tmp_path).corrections()


def test_one_file_names_the_model(tmp_path: Path) -> None:
    correction = started(tmp_path)
    project = correction.project
    assert project.deployed() is None
    with pytest.raises(ModelError):
        find_model(tmp_path)
    history = (Accepted("bad_aoi", "bad_aoi/model", "2026-11-21T16:00:00+00:00"),)
    Deployment("bad_aoi/model", history).write(project.rounds)
    assert project.deployment() == Deployment("bad_aoi/model", history)
    assert project.deployed() == str(correction.model)
    Deployment("builtin").write(project.rounds)
    assert project.deployed() == "builtin"


def test_a_project_is_a_model_wherever_one_is_named(tmp_path: Path) -> None:
    correction = started(tmp_path)
    shutil.copytree(find_model("builtin"), correction.model)
    Deployment("bad_aoi/model").write(correction.project.rounds)
    assert find_model(tmp_path) == find_model(tmp_path / "corrections") == correction.model


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": "", "history": []}', '{"model": "a", "history": [1]}'])
def test_a_damaged_project_is_told_and_never_guessed(tmp_path: Path, text: str) -> None:
    started(tmp_path)
    (tmp_path / "corrections" / "project.json").write_text(text)
    with pytest.raises(CorrectionError, match=r"project\.json"):
        Project(tmp_path).deployed()
    with pytest.raises(CorrectionError, match=r"project\.json"):
        find_model(tmp_path)


def test_the_file_of_a_project_is_plain(tmp_path: Path) -> None:
    Deployment("a/model", (Accepted("a", "a/model", "2026-11-21T16:00:00+00:00"),)).write(tmp_path)
    table = json.loads((tmp_path / "project.json").read_text())
    assert table == {
        "model": "a/model",
        "history": [{"id": "a", "model": "a/model", "accepted": "2026-11-21T16:00:00+00:00"}],
    }
