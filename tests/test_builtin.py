"""The built-in model: small, attributed, and as good as its card says."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from worlds import noise, write_raster

from gimseg import Dataset, Model, evaluate
from gimseg.delivery import deliver

FOLDER = Path(str(files("gimseg") / "builtin" / "buildings"))


def test_it_is_small_and_attributed() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 8e6
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name in ("OpenAerialMap", "CC BY 4.0", "OpenStreetMap", "ODbL", "EfficientNet-Lite0", "Apache-2.0"):
        assert name in card
    weights = json.loads((FOLDER / "gimseg.json").read_text(encoding="utf-8"))["provenance"]["settings"]
    assert "/" not in weights["encoder_weights"]
    recipe = Model.load("builtin").recipe
    assert recipe.bands == (1, 2, 3) and recipe.dtype == "uint8" and recipe.legend.names == ("building",)


def test_it_predicts_an_image_that_it_was_not_made_for(tmp_path: Path) -> None:
    image = write_raster(tmp_path / "small.tif", noise((3, 40, 70)))
    made = deliver(image, outputs=[tmp_path / "m.tif", tmp_path / "p.shp"])
    assert sum(made.prediction.counts.values()) == np.prod(made.prediction.shape)


@pytest.mark.real_data
def test_it_scores_what_its_card_says(real_data: Path) -> None:
    folder = real_data / "buildings"
    model = Model.load("builtin")
    truth = Dataset(
        "banepa", model.recipe.resolution, [folder / "banepa_np_*.tif"], [folder / "banepa_np_labels.geojson"]
    )
    scores = evaluate(model, truth)
    found = scores.of_split().iou[1]
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    told = re.search(r"\*\*Banepa, never seen\*\* \| ([0-9.]+)", card)
    assert told and found == pytest.approx(float(told[1]), abs=0.005)
    # What a plain script reaches: U-Net, ResNet-18 from random weights, flips and brightness, 18 minutes on two cores.
    assert all(row.confusion.iou[1] > least for row, least in zip(scores.rows, (0.49, 0.61), strict=True))
