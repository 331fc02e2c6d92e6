"""Which rasters go to which files: told before any work, and no two for one file."""

from __future__ import annotations

from pathlib import Path

import pytest

from gimseg.errors import GimsegError, OutputError, RasterError
from gimseg.jobs import Job, expand, plan_jobs
from gimseg.products import Products


@pytest.fixture
def tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiles").mkdir()
    for name in ("b.tif", "a.tif", "c[1].tif"):
        (tmp_path / "tiles" / name).touch()
    return tmp_path / "tiles"


def told(jobs: list[Job]) -> dict[str, list[str]]:
    return {" ".join(map(str, job.rasters)): [path.as_posix() for path in job.outputs] for job in jobs}


def test_patterns_become_files_in_order(tiles: Path) -> None:
    assert expand(["tiles/*.tif"]) == ["tiles/a.tif", "tiles/b.tif", "tiles/c[1].tif"]
    assert expand(["tiles/c[1].tif", "x.tif"]) == ["tiles/c[1].tif", "x.tif"]
    with pytest.raises(RasterError, match=r"no file matches tiles/\*\.jp2"):
        expand(["tiles/*.jp2"])


def test_each_raster_has_its_own_outputs(tiles: Path) -> None:
    defaults = {name: [f"{name}_segments.tif", f"{name}_segments.shp"] for name in ("a", "b")}
    assert told(plan_jobs(["tiles/[ab].tif"])) == {f"tiles/{name}.tif": files for name, files in defaults.items()}
    for folder in ("tiles", "tiles/", "elsewhere/"):
        found = told(plan_jobs(["tiles/a.tif"], folder))
        assert found == {"tiles/a.tif": [f"{folder.rstrip('/')}/{file}" for file in defaults["a"]]}
    found = told(plan_jobs(["tiles/[ab].tif"], ["{stem}.tif", "out/{stem}_roofs.gpkg"]))
    assert found["tiles/b.tif"] == ["b.tif", "out/b_roofs.gpkg"]


def test_a_mosaic_is_one_job(tiles: Path) -> None:
    assert told(plan_jobs(["tiles/[ab].tif"], mosaic=True)) == {
        "tiles/a.tif tiles/b.tif": ["mosaic_segments.tif", "mosaic_segments.shp"]
    }
    assert told(plan_jobs(["a.tif"], mosaic=True)) == {"a.tif": ["a_segments.tif", "a_segments.shp"]}
    assert told(plan_jobs("tiles/[ab].tif", "all.gpkg", mosaic=True)) == {"tiles/a.tif tiles/b.tif": ["all.gpkg"]}


def test_what_would_overwrite_itself_is_refused(tiles: Path) -> None:
    with pytest.raises(OutputError, match=r"2 rasters and the output m\.tif.*--mosaic"):
        plan_jobs(["tiles/[ab].tif"], "m.tif")
    with pytest.raises(OutputError, match=r"tiles/a\.tif and other/a\.tif would both become a_segments\.tif"):
        plan_jobs(["tiles/a.tif", "other/a.tif"])
    with pytest.raises(OutputError, match="one mask is written"):
        plan_jobs(["a.tif"], ["m.tif", "n.tif"])
    with pytest.raises(GimsegError, match="xyz"):
        plan_jobs(["a.tif"], "m.xyz")


def test_what_lies_beside_an_output_is_checked_too(tiles: Path) -> None:
    (job,) = plan_jobs("tiles/a.tif", "m.gpkg")
    everything = {"stac": True, "overwrite": False, "inputs": []}
    job.check(Products(probabilities=True), **everything)
    for name in ("m_probabilities.tif", "m.json", "m.gpkg"):
        Path(name).touch()
        with pytest.raises(OutputError, match=f"{name} exists"):
            job.check(Products(probabilities=True), **everything)
        Path(name).unlink()
