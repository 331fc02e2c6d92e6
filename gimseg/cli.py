"""The commands, in pipeline order. Each imports its verb when it is called."""

from __future__ import annotations

import functools
import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import click

from gimseg import __version__
from gimseg.command_options import (
    LayerPath,
    PipelineOrder,
    device_option,
    model_option,
    models_option,
    opening_options,
    overwrite_option,
    progress_of,
    quiet_option,
)
from gimseg.correct_commands import correct
from gimseg.errors import GimsegError
from gimseg.option_files import config_option, options_from
from gimseg.prediction_options import polygon_options, product_options, refine_option
from gimseg.training_options import settings_options

_RESUMABLE = ("train", "sweep", "predict", "correct")
_GRACE_S = 1.2


@click.group(cls=PipelineOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="gimseg")
def cli() -> None:
    """Polygons of buildings, fields, trees or solar panels from large georeferenced images.

    Options of every command can stand in a TOML file: gimseg --config FILE.toml COMMAND.
    """


@cli.command()
@click.argument("folder", default="gimseg_demo", type=click.Path())
@click.option("--seed", default=1, show_default=True, help="Seed of the scenes.")
@device_option
@overwrite_option
@quiet_option
def demo(folder: str, seed: int, device: str, overwrite: bool, quiet: bool) -> None:
    """Learn one synthetic scene, predict another, correct a third; leave it all in FOLDER."""
    from gimseg.demo import run_demo

    click.echo(run_demo(folder, seed=seed, device=device, overwrite=overwrite, progress=progress_of(quiet)).text())


@cli.command()
@click.argument("path", type=click.Path(exists=True))
@click.option("--plot", type=click.Path(), help="Write a contact sheet (PNG) of windows with their labels.")
@overwrite_option
@quiet_option
def info(path: str, plot: str | None, overwrite: bool, quiet: bool) -> None:
    """Tell what a dataset file, a raster or a model holds."""
    from gimseg.info import describe

    click.echo(describe(path, plot=plot, overwrite=overwrite, progress=progress_of(quiet)))


@cli.command()
@options_from("dataset_file")
@click.option("-o", "--output", required=True, type=click.Path(), help="Model folder to write.")
@click.option("--settings", type=click.Path(exists=True, dir_okay=False), help="TOML file with a table [training].")
@settings_options
@device_option
@click.option("--find-rate", is_flag=True, help="Do not train: write OUTPUT.rates.png and .csv, suggest a rate.")
@click.option("--restart", is_flag=True, help="Throw away the state of a training that did not end.")
@overwrite_option
@quiet_option
def train(
    dataset_file: str, output: str, settings: str | None, find_rate: bool, restart: bool, quiet: bool, **given: Any
) -> None:
    """Train a network on DATASET_FILE (.toml).

    A training that was stopped goes on when it is started again in the same way. Settings are those of the
    table [training] of DATASET_FILE, over them those of --settings, over them the options; a table [train] of
    DATASET_FILE holds options, as device = "cpu".
    """
    from gimseg.datasets import read_datasets
    from gimseg.settings_files import gather_settings
    from gimseg.training import train as run

    common = {name: given.pop(name) for name in ("device", "overwrite")} | {"progress": progress_of(quiet)}
    common["settings"] = gather_settings(dataset_file, settings, given=given)
    if find_rate:
        from gimseg.rate_finder import find_rate as scan

        plot, table = f"{output}.rates.png", f"{output}.rates.csv"
        found = scan(read_datasets(dataset_file), plot=plot, table=table, **common)
        click.echo(f"{plot}: the loss falls fastest at --learning-rate {found.suggestion:.2g}")
        return
    model = run(read_datasets(dataset_file), output, restart=restart, **common)
    if not quiet:
        iou = model.scores.get("val", {}).get("iou")
        reached = f"IoU {iou:.3f} on the ground held out" if iou is not None else "nothing was held out to score it"
        click.echo(f"{output}: {model.name}, {reached}, halo {model.recipe.halo} px")


@cli.command()
@click.argument("sweep_file", type=click.Path(exists=True, dir_okay=False))
@click.option("-o", "--output", required=True, type=click.Path(), help="Folder of the runs.")
@device_option
@quiet_option
def sweep(sweep_file: str, output: str, device: str, quiet: bool) -> None:
    """Train every run of SWEEP_FILE (.toml), one after the other, and rank them.

    A sweep that was stopped goes on when it is started again in the same way.
    """
    from gimseg.sweeps import read_sweep, run_sweep

    def tell(text: str) -> None:
        click.echo(text, err=True)

    done = run_sweep(
        read_sweep(sweep_file), output, device=device, tell=None if quiet else tell, progress=progress_of(quiet)
    )
    click.echo(done.text())


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path())
@click.option("--data", type=click.Path(exists=True, dir_okay=False), help="Score the runs on this dataset file.")
@click.option("-o", "--output", type=click.Path(), help="Write the table: Markdown, or CSV by its ending.")
@click.option("--plot", type=click.Path(), help="Write the curves of all runs (PNG).")
@device_option
@overwrite_option
@quiet_option
def compare(runs: tuple[str, ...], data: str | None, quiet: bool, **given: Any) -> None:
    """Put trainings side by side: settings that differ, scores, curves.

    RUNS are model folders, or names of models that are still being trained.
    """
    from gimseg.comparison import compare as run
    from gimseg.datasets import read_datasets

    datasets = read_datasets(data) if data else None
    click.echo(run(runs, datasets=datasets, progress=progress_of(quiet), **given).text())


@cli.command()
@options_from("dataset_file")
@model_option
@click.option("--mask", type=click.Path(exists=True), multiple=True, help="Score this ready mask instead of a model.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="Only this split; else each.")
@click.option("-o", "--output", type=click.Path(), help="Write the scores (JSON).")
@click.option("--report", type=click.Path(), help="Write a report (HTML): scores, curves, worst samples, maps.")
@click.option(
    "--samples",
    type=click.Path(file_okay=False),
    help="Write windows and rasters, worst first, to this folder: CSV, GeoPackage, contact sheet.",
)
@click.option("--plot", type=click.Path(), help="Write a picture (PNG) of hits, misses and false alarms.")
@click.option(
    "--boundary", "boundary_m", type=float, help="Outlines are hit within so many metres. [default: three pixels]"
)
@refine_option
@click.option("--keep-threshold", is_flag=True, help="Write the threshold with the highest IoU into the model.")
@device_option
@overwrite_option
@quiet_option
@click.pass_context
def evaluate(
    ctx: click.Context, dataset_file: str, model: str, mask: tuple[str, ...], quiet: bool, **given: Any
) -> None:
    """Score a model or masks against DATASET_FILE (.toml).

    A table [evaluate] of DATASET_FILE holds options, as refine = "open(1 m)"; those given here win.
    """
    from gimseg.datasets import read_datasets
    from gimseg.evaluation import evaluate as run

    source = click.core.ParameterSource
    if (
        ctx.get_parameter_source("model") == source.COMMANDLINE
        and ctx.get_parameter_source("mask") != source.COMMANDLINE
    ):
        # Masks of a file are not what was asked for.
        mask = ()
    scores = run(mask or model, read_datasets(dataset_file), progress=progress_of(quiet), **given)
    click.echo(scores.table())


@cli.command()
@click.argument("rasters", nargs=-1, required=True, type=click.Path())
@models_option("probabilities are averaged")
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    multiple=True,
    help="What to write, by its ending: .tif the mask; .shp .gpkg .fgb .geojson .geojsonl .parquet the polygons; .qgz "
    "a QGIS project. Several times for several. For several rasters a folder, or names with {stem}. [default: "
    "RASTER_segments.tif and .shp in the current folder]",
)
@click.option("--aoi", type=LayerPath(), help="Only inside these polygons.")
@opening_options("an AoI layer")
@click.option("--resolution", type=float, help="Metres per pixel. [default: the model's]")
@product_options
@polygon_options
@click.option("--window", type=int, help="Largest side of a window, px. [default: from reach, memory and raster]")
@click.option(
    "--blend/--no-blend", default=None, help="Average windows where they overlap. [default: as the model needs]"
)
@device_option
@click.option("--backend", default="auto", show_default=True, help="What computes: auto, torch or openvino.")
@click.option(
    "--precision", default="auto", show_default=True, help="auto, float32, bfloat16, float16 (GPU) or int8 (OpenVINO)."
)
@click.option(
    "--on-error",
    type=click.Choice(["fail", "nodata"]),
    default="fail",
    show_default=True,
    help="Where the raster cannot be read: fail when all else is done, or write 255 there and list it.",
)
@click.option("--dry-run", is_flag=True, help="Check and tell what would happen, and stop.")
@click.option("--restart", is_flag=True, help="Throw away finished blocks of an earlier run.")
@overwrite_option
@quiet_option
def predict(rasters: tuple[str, ...], model: tuple[str, ...], output: tuple[str, ...], **given: Any) -> None:
    """Segment RASTERS: a mask and its polygons each, or of all together.

    A run that was stopped goes on when it is started again in the same way.
    """
    from gimseg.delivery import deliver_each, rehearse

    quiet = given.pop("quiet")
    given["products"] = _products(given)

    if given.pop("dry_run"):
        click.echo(rehearse(rasters, model, output, **given))
        return

    def tell(text: str) -> None:
        click.echo(text, err=True)

    for done in deliver_each(
        rasters, model, output, progress=progress_of(quiet), tell=None if quiet else tell, **given
    ):
        if not quiet:
            click.echo(done.text())


@cli.command()
@click.argument("mask", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    multiple=True,
    help="What to write, by its ending: .shp .gpkg .fgb .geojson .geojsonl .parquet. Several times for several. "
    "[default: MASK.shp in the current folder]",
)
@click.option("--legend", type=click.Path(exists=True), help="Names and colours of classes: .toml, .json or .qml.")
@click.option("--values", help="Numbers of MASK that are classes, as 1,5-7. [default: all but 0 and 255]")
@click.option("--threshold", type=float, help="MASK holds probabilities: polygons where they reach this.")
@click.option("--band", help="Number or name of the band, where MASK has several.")
@click.option("--probabilities", type=click.Path(exists=True), help="Raster for the attribute confidence.")
@refine_option
@polygon_options
@overwrite_option
@quiet_option
def vectorize(mask: str, output: tuple[str, ...], quiet: bool, **given: Any) -> None:
    """Polygons of the classes of MASK (GeoTIFF)."""
    from pathlib import Path

    from gimseg.masks import parse_values
    from gimseg.vectorization import vectorize as run

    given["values"] = parse_values(given["values"])
    done = run(mask, list(output) or f"{Path(mask).stem}.shp", progress=progress_of(quiet), **given)
    if not quiet:
        click.echo("\n".join([f"{done.count} polygons in {', '.join(map(str, done.paths))}", *done.notes]))


cli.add_command(correct)
config_option(cli)


def _products(given: dict[str, Any]) -> Any:
    """Takes the options that make a `Products` out of all that was given."""
    from gimseg.products import Products, parse_thresholds

    threshold = parse_thresholds(given.pop("threshold"))
    return Products(given.pop("probabilities"), given.pop("uncertainty"), threshold)


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Returns:
        0: done; 1: a :class:`GimsegError`, told in one line, or a command that ends so; 2: wrong usage; 130:
        interrupted. Any other error keeps its traceback.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if arguments is None:
        _end_soon_after_interrupt(given)
    try:
        # Not standalone, click returns the code of an Exit instead of raising it.
        ended = cli.main(args=list(given), prog_name="gimseg", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        _tell_interrupted(tuple(given))
        return 130
    except GimsegError as error:
        print(f"Error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return ended if isinstance(ended, int) else 0


@functools.cache
def _tell_interrupted(given: tuple[str, ...]) -> None:
    """Once, by whoever comes first."""
    print("\nInterrupted.", file=sys.stderr)
    if any(name in _RESUMABLE for name in given):
        print(f"Finished parts are kept. Go on with: gimseg {shlex.join(given)}", file=sys.stderr, flush=True)


def _end_soon_after_interrupt(given: Sequence[str]) -> None:
    """Let no network that computes, nor a thread that is waited for, hold up an interrupt.

    Python answers a signal between two of its own steps. A window takes seconds in one
    step; a thread beside is told of the signal at once, and ends the process if need be.
    """
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)

    def wait() -> None:
        with theirs:
            while (received := ours.recv(1)) and received[0] != signal.SIGINT:
                pass
            if received:
                time.sleep(_GRACE_S)
                _tell_interrupted(tuple(given))
                os._exit(130)

    threading.Thread(target=wait, name="gimseg-interrupt", daemon=True).start()
