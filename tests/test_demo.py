"""The demo: what a newcomer runs first must learn, and leave what it promises."""

from __future__ import annotations

from pathlib import Path

import geopandas
import pytest
import rasterio

from gimseg.demo import run_demo
from gimseg.errors import OutputError


def test_a_small_demo_leaves_what_it_promises(tmp_path: Path) -> None:
    demo = run_demo(tmp_path / "d", size=320, epochs=1)
    for name in ("overview.png", "outcome.png", "model/curves.png", "scores.json", "README.txt", "data.toml"):
        assert (demo.folder / name).stat().st_size > 100
    polygons = geopandas.read_file(demo.folder / "unseen_segments.shp")
    truth = geopandas.read_file(demo.folder / "unseen_labels.geojson")
    with rasterio.open(demo.folder / "unseen.tif") as image:
        assert polygons.crs == image.crs != truth.crs and image.nodata is None
    with pytest.raises(OutputError, match="exists"):
        run_demo(tmp_path / "d")
    (tmp_path / "mine").mkdir()
    with pytest.raises(OutputError, match="no folder of an earlier demo"):
        run_demo(tmp_path / "mine", overwrite=True)


@pytest.mark.slow
def test_the_demo_learns(tmp_path: Path) -> None:
    assert run_demo(tmp_path / "d").iou >= 0.8
