"""Laws of options in files: they say what the command line says, and the command line wins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import geopandas
import numpy as np
import pytest
from click.testing import CliRunner
from shapely.geometry import box
from worlds import TOP_LEFT, UTM, noise, write_raster

from gimseg.cli import cli, main
from gimseg.option_files import read_options
from gimseg.settings_files import COMMANDS


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def params(*arguments: str) -> dict[str, Any]:
    """What the callback of a command would be given."""
    ctx = cli.make_context("gimseg", list(arguments))
    while isinstance(ctx.command, click.Group):
        name, command, rest = ctx.command.resolve_command(ctx, [*ctx._protected_args, *ctx.args])
        assert command is not None
        ctx = command.make_context(name, rest, parent=ctx)
    return ctx.params


CASES = (
    ("[predict]\nrefine = 'tv(1)'\nwindow = 512", ["predict", "a.tif"], ["--refine", "tv(1)", "--window", "512"]),
    ("[predict]\nbands = [1, 2, 3]\nthreshold = 0.4", ["predict", "a.tif"], ["--bands", "1,2,3", "--threshold", "0.4"]),
    ("[predict]\nbands = '3,2,1'\nblend = false", ["predict", "a.tif"], ["--bands", "3,2,1", "--no-blend"]),
    ("[predict]\nmodel = ['a', 'b']\ntta = 'flips'", ["predict", "a.tif"], ["-m", "a", "-m", "b", "--tta", "flips"]),
    ("[predict]\nnodata = 0\nright-angles = true", ["predict", "a.tif"], ["--nodata", "0", "--right-angles"]),
    ("[vectorize]\nmin_area_m2 = 20", ["vectorize", "MASK"], ["--min-area", "20"]),
    ("[vectorize]\nmin-area = 20.0", ["vectorize", "MASK"], ["--min-area", "20"]),
    ("[train]\nresolutions = [0.3, 1]\noutput = 'm'", ["train", "DATA"], ["--resolutions", "0.3,1", "-o", "HERE/m"]),
    ("[evaluate]\nboundary = 1\nsplit = 'test'", ["evaluate", "DATA"], ["--boundary", "1", "--split", "test"]),
    ("[correct.train]\nold_share = 0.4", ["correct", "train", "x"], ["--old-share", "0.4"]),
    ("[training]\nloss = 'dice'", ["train", "DATA", "-o", "m"], ["--settings", "HERE/options.toml"]),
)


@pytest.mark.parametrize(("text", "command", "options"), CASES)
def test_a_file_says_what_the_command_line_says(
    tmp_path: Path, text: str, command: list[str], options: list[str]
) -> None:
    path = write(tmp_path / "options.toml", text)
    places = {"MASK": write(tmp_path / "mask.tif", ""), "DATA": write(tmp_path / "data.toml", ""), "HERE": tmp_path}

    def whole(words: list[str]) -> list[str]:
        for name, place in places.items():
            words = [word.replace(name, str(place)) for word in words]
        return words

    typed = params(*whole([*command, *options]))
    assert params("--config", str(path), *whole(command)) == typed
    assert typed != params(*whole([*command, *(["-o", "x"] if command == ["train", "DATA"] else [])]))


def test_the_command_line_wins_and_config_wins_over_the_dataset_file(tmp_path: Path) -> None:
    data = write(tmp_path / "data.toml", "[evaluate]\nboundary = 1\nrefine = 'open(1 m)'\nsplit = 'val'")
    config = write(tmp_path / "my.toml", "[evaluate]\nboundary = 2\nrefine = 'open(2 m)'")
    found = params("--config", str(config), "evaluate", str(data), "--boundary", "3")
    assert (found["boundary_m"], found["refine"], found["split"]) == (3, "open(2 m)", "val")
    assert params("evaluate", "--boundary", "3", str(data))["refine"] == "open(1 m)"


def test_paths_are_relative_to_the_file_and_the_built_in_model_is_a_name(tmp_path: Path) -> None:
    (tmp_path / "sub" / "mine").mkdir(parents=True)
    path = write(tmp_path / "sub" / "my.toml", "[predict]\nmodel = ['builtin', 'mine']\noutput = 'a.gpkg'")
    found = read_options(path, cli)["predict"]
    assert found == {"model": ["builtin", str(path.parent / "mine")], "output": [str(path.parent / "a.gpkg")]}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[evalute]\nboundary = 1", "no command [evalute]: did you mean 'evaluate'"),
        ("[correct.trian]\nseed = 1", "no command [correct.trian]: did you mean 'train'"),
        ("[evaluate]\nrefien = 'open(1 m)'", "'refien', which is no option of it: did you mean 'refine'"),
        ("[evaluate]\nboundary = 'far'", "[evaluate] boundary is 'far'"),
        ("[evaluate]\nsplit = 'dev'", "[evaluate] split is 'dev'"),
        ("[evaluate]\nrefine = {open = 1}", "give a number, a text"),
        ("evaluate = 3", "write a table [evaluate]"),
        ("[evaluate\n", "cannot be read as TOML"),
        ("[predict]\nhelp = true", "no option"),
    ],
)
def test_what_does_not_exist_is_refused_with_the_nearest_name(tmp_path: Path, text: str, told: str) -> None:
    path = write(tmp_path / "my.toml", text)
    ended = CliRunner().invoke(cli, ["--config", str(path), "predict", "a.tif"])
    assert ended.exit_code == 2
    said = " ".join(ended.output.split())
    assert told in said and "my.toml" in said


def test_tables_of_commands_are_those_of_all_commands() -> None:
    assert set(COMMANDS) == set(cli.commands)


def test_a_dataset_file_brings_the_refinement_of_its_evaluation(tmp_path: Path) -> None:
    """The mask has a speck, which one step takes away."""
    values = np.zeros((100, 100), np.uint8)
    values[10:50, 10:50], values[80:82, 80:82] = 1, 1
    mask = write_raster(tmp_path / "mask.tif", values)
    image = write_raster(tmp_path / "image.tif", noise((3, 100, 100)))
    left, top = TOP_LEFT
    square = box(left + 10, top - 50, left + 50, top - 10)
    geopandas.GeoDataFrame(geometry=[square], crs=UTM).to_file(tmp_path / "truth.gpkg")
    data = write(
        tmp_path / "data.toml",
        f"[[dataset]]\ntag = 'w'\nspatial_resolution = 1.0\nimage_paths = ['{image.name}']\n"
        "mask_paths = ['truth.gpkg']\n[evaluate]\nrefine = 'drop(9 m2)'\noutput = 'refined.json'\n",
    )
    assert main(["evaluate", str(data), "--mask", str(mask)]) == 0
    assert main(["evaluate", str(data), "--mask", str(mask), "--refine", "", "-o", str(tmp_path / "plain.json")]) == 0
    refined, plain = (json.loads((tmp_path / f"{name}.json").read_text())["rasters"] for name in ("refined", "plain"))
    assert refined[0]["confusion"] == [[8400, 0], [0, 1600]], "speck and all"
    assert plain[0]["confusion"] == [[8396, 4], [0, 1600]]
