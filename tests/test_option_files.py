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
from gimseg.errors import GimsegError, TrainingError
from gimseg.option_files import read_options
from gimseg.settings_files import COMMANDS, read_table


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
    ("[train]\ndevice = 'cpu'\noutput = 'm'", ["train", "DATA"], ["--device", "cpu", "-o", "HERE/m"]),
    ("[correct.start]\nmodel = 'builtin'", ["correct", "start", "x", "-r", "DATA", "--aoi", "DATA"], ["-m", "builtin"]),
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
        ("x = " + "[" * 3000, "cannot be read as TOML"),
        ("[predict]\ncog = 1", "[predict] cog is 1: give true or false"),
        ("[predict]\ncog = []", "give true or false"),
        ("[predict]\noutput = true", "[predict] output is True: give a number, a text"),
        ("[predict]\noutput = 3\nwindow = 512.7", "[predict] window is 512.7"),
        ("[predict]\nwindow = true", "[predict] window is True"),
        ("[predict]\nwindow = 2020-01-01", "give a number, a text"),
        ("[predict]\nmodel = []", "[predict] model is []"),
        ('[predict]\noutput = "a\\u0000b.tif"', "give a number, a text"),
        ("[predict]\nbands = [1.0, 2]", "[predict] bands is [1.0, 2]"),
        ("[vectorize]\nmin_area = 1\nmin-area = 2", "twice, in two spellings"),
        ("[correct]\nseed = 1", "correct.seed is no table"),
        ("[train]\nepochs = 3", "[train] has 'epochs', a setting of the training: write it in [training]"),
        ("[predict]\nhelp = true", "no option"),
    ],
)
def test_what_does_not_exist_is_refused_with_the_nearest_name(tmp_path: Path, text: str, told: str) -> None:
    path = write(tmp_path / "my.toml", text)
    ended = CliRunner().invoke(cli, ["--config", str(path), "predict", "a.tif"])
    assert ended.exit_code == 2
    said = " ".join(ended.output.split())
    assert told in said and "my.toml" in said


def test_a_dataset_file_with_a_table_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    data = write(tmp_path / "data.toml", "[evalute]\nboundary = 1")
    ended = CliRunner().invoke(cli, ["evaluate", str(data)])
    assert ended.exit_code == 2 and "'evalute': did you mean 'evaluate'" in " ".join(ended.output.split())
    data = write(tmp_path / "other.toml", "[train]\nepochs = 1")
    with pytest.raises(TrainingError, match="write it in \\[training\\]"):
        read_table(data)


def test_a_model_that_is_typed_wins_over_masks_of_a_file(tmp_path: Path) -> None:
    write_raster(tmp_path / "mask.tif", np.zeros((9, 9), np.uint8))
    data = write(tmp_path / "data.toml", "[evaluate]\nmask = 'mask.tif'")
    ended = CliRunner().invoke(cli, ["evaluate", str(data), "-m", str(tmp_path / "none")])
    assert isinstance(ended.exception, GimsegError) and "[[dataset]]" in str(ended.exception)


def test_a_mark_of_the_encoding_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_bytes("\ufeff[predict]\r\nrefine = 'open(1 m)'\r\n".encode())
    assert read_options(path, cli) == {"predict": {"refine": "open(1 m)"}}


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
