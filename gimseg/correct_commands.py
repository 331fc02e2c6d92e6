"""The commands of the correction loop, in the order in which they are used. Each imports its verb when it is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from gimseg.command_options import (
    LayerPath,
    PipelineOrder,
    device_option,
    models_option,
    opening_options,
    overwrite_option,
    progress_of,
    quiet_option,
)
from gimseg.prediction_options import polygon_options

project_option = click.option(
    "--project",
    default=".",
    show_default=True,
    type=click.Path(file_okay=False),
    help="Folder that holds corrections/.",
)
corrected_option = click.option(
    "-m", "--model", type=click.Path(), help="Model to correct. [default: the project's deployed one, else builtin]"
)
dataset_option = click.option(
    "--dataset",
    "dataset_files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False),
    help="Dataset file (.toml) of rasters and their right boundaries: each dataset is a correction.",
)


@click.group(cls=PipelineOrder)
def correct() -> None:
    """Draw what came out badly, learn it, see the proof, accept it.

    Each correction has a folder, corrections/ID, in the current one.
    """


@correct.command()
@click.argument("raster", type=click.Path(exists=True, dir_okay=False))
@models_option("where they disagree")
@click.option("-o", "--output", required=True, type=click.Path(), help="GeoPackage to write.")
@click.option(
    "-n", "--count", type=click.IntRange(1), default=10, show_default=True, help="Areas; a fifth of them at random."
)
@click.option("--older", type=LayerPath(), help="An older layer: where the prediction differs from it.")
@click.option("--side", "side_m", type=float, help="Side of an area, m. [default: what is drawn in minutes]")
@click.option("--tta", type=click.Choice(["flips", "symmetries"]), help="Where views of the image disagree, too.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Draws other random areas.")
@opening_options("an older layer")
@device_option
@overwrite_option
@quiet_option
def suggest(raster: str, model: tuple[str, ...], output: str, quiet: bool, **given: Any) -> None:
    """Find areas of RASTER that are worth drawing."""
    from gimseg.correction.suggesting import suggest as run

    done = run(raster, list(model), output, progress=progress_of(quiet), **given)
    if not quiet:
        click.echo(done.text())


@correct.command()
@click.argument("id")
@click.option("-r", "--raster", "rasters", multiple=True, required=True, type=click.Path(), help="Raster; or several.")
@click.option("--aoi", required=True, type=LayerPath(), help="Polygons in which the prediction is bad.")
@corrected_option
@click.option(
    "--segments",
    multiple=True,
    type=click.Path(exists=True),
    help="Mask and polygons of the raster, to be updated when the correction is accepted. [default: those that "
    "gimseg predict names RASTER_segments, where they are]",
)
@opening_options("an AoI layer")
@project_option
@device_option
@quiet_option
def start(id: str, rasters: tuple[str, ...], aoi: str, quiet: bool, **given: Any) -> None:
    """Lay out what the model sees in the areas of interest for editing in QGIS, as correction ID."""
    from gimseg.correction.starting import start as run

    given["segments"] = given["segments"] or None
    done = run(id, rasters, aoi, progress=progress_of(quiet), **given)
    if not quiet:
        click.echo(done.text())


@correct.command()
@click.argument("ids", nargs=-1)
@dataset_option
@click.option("--fix", is_flag=True, help="Mend first what can be mended without a guess.")
@corrected_option
@project_option
def check(ids: tuple[str, ...], dataset_files: tuple[str, ...], **given: Any) -> None:
    """Tell what in corrections IDS, or in those of --dataset, would mislead a training, and what they label.

    Nothing is written without --fix; datasets need not be corrections of the project yet. Ends
    with 1 if there are errors.
    """
    from gimseg.correction.loop import check as run

    named = _named(ids, dataset_files)
    usable = True
    for one in named:
        checked = run(one, **given)
        if len(named) > 1:
            click.echo(f"{one if isinstance(one, str) else one.tag}:")
        click.echo(checked.text())
        usable &= checked.usable
    if not usable:
        raise click.exceptions.Exit(1)


def _named(ids: tuple[str, ...], dataset_files: tuple[str, ...]) -> list[Any]:
    """Names of corrections, then Datasets."""
    from gimseg.datasets import read_datasets

    if not ids and not dataset_files:
        raise click.UsageError("name a correction (gimseg correct list shows them), or give --dataset FILE.toml")
    return [*ids, *(dataset for path in dataset_files for dataset in read_datasets(path))]


def learning_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of ``correct train`` that are fields of its settings; what is not given keeps its default."""
    table: list[tuple[str, Any, str]] = [
        ("--loss", str, 'Losses by name and their sums, as "ce + focal_tversky".'),
        ("--learning-rate", float, "Highest learning rate."),
        ("--epochs", int, "Times that the windows below are drawn; the training can go on from each."),
        ("--windows-per-epoch", int, "Windows, half of them replayed."),
        ("--batch", int, "Windows in a batch."),
        ("--minutes", float, "Most minutes of training."),
        (
            "--old-share",
            float,
            "Share of the old model's weights in the new one: more forgets less, and learns less. "
            "[default: 0.2; 0.6 where less is labelled than one window holds]",
        ),
        ("--seed", int, "Seed of all that is drawn."),
    ]
    for name, kind, text in reversed(table):
        command = click.option(name, type=kind, default=None, help=text)(command)
    return command


@correct.command()
@click.argument("ids", nargs=-1)
@dataset_option
@click.option(
    "--replay",
    type=click.Path(exists=True, dir_okay=False),
    help="Dataset file (.toml) of what the model learned first. [default: the windows that the model keeps]",
)
@corrected_option
@project_option
@learning_options
@device_option
@click.option("--restart", is_flag=True, help="Learn again, whatever was learned before.")
@quiet_option
def train(ids: tuple[str, ...], dataset_files: tuple[str, ...], replay: str | None, quiet: bool, **given: Any) -> None:
    """Retrain the model on corrections IDS, or on --dataset; half of each batch is what it learned before.

    The new model is left in the folder of the first correction; the deployed one is not
    touched. A training that was stopped goes on when it is started again in the same way. Where
    only --old-share is another one than before, nothing is learned again: that takes seconds.
    """
    from dataclasses import replace

    from gimseg.correction.learning import LEARNING
    from gimseg.correction.loop import train as run
    from gimseg.datasets import read_datasets

    corrections = _named(ids, dataset_files)
    named = ("loss", "learning_rate", "epochs", "windows_per_epoch", "batch", "minutes", "old_share", "seed")
    chosen = {name: value for name in named if (value := given.pop(name)) is not None}
    done = run(
        *corrections,
        replay=read_datasets(replay) if replay else None,
        settings=replace(LEARNING, **chosen),
        progress=progress_of(quiet),
        **given,
    )
    if not quiet:
        click.echo(done.text())


@correct.command()
@click.argument("id")
@project_option
@click.option(
    "--test",
    type=click.Path(exists=True, dir_okay=False),
    help="Dataset file of what was learned before. [default: the test windows that the model keeps]",
)
@click.option(
    "--suggestions",
    type=click.Path(exists=True),
    help="Areas of gimseg correct suggest, for an estimate of "
    "the accuracy everywhere. [default: suggestions.gpkg of the project]",
)
@click.option("--rest/--no-rest", default=True, help="Look at the rest of the raster too, which is predicted twice.")
@device_option
@quiet_option
def report(id: str, quiet: bool, **given: Any) -> None:
    """Compare the models before and after correction ID, and ask the gate."""
    from gimseg.correction.reporting import report as run

    done = run(id, progress=progress_of(quiet), **given)
    if not quiet:
        click.echo(done.text())


@correct.command()
@click.argument("id")
@project_option
@click.option("-r", "--raster", type=click.Path(exists=True), help="What was predicted. [default: what was drawn on]")
@click.option(
    "--segments",
    multiple=True,
    type=click.Path(),
    help="Mask and polygons to bring up to the new model, each with its own --segments. [default: those that it names]",
)
@click.option("--aoi", type=LayerPath(), help="Predict again inside these polygons. [default: what was drawn]")
@click.option(
    "--test",
    type=click.Path(exists=True, dir_okay=False),
    help="Dataset file of what was learned before, for the gate. [default: that of the last report]",
)
@click.option("--everywhere", is_flag=True, help="Predict the whole raster again.")
@click.option("--force", is_flag=True, help="Even though the gate holds the new model back.")
@polygon_options
@click.option("--window", type=int, help="Largest side of a window, px, as it was given to predict.")
@click.option("--refine", help="As it was given to predict; then with --everywhere.")
@device_option
@click.option("--backend", default="auto", show_default=True, help="What computes: auto, torch or openvino.")
@click.option("--precision", default="auto", show_default=True, help="As it was given to predict.")
@click.option("--overwrite", is_flag=True, help="Replace polygons that were edited, too.")
@quiet_option
def accept(id: str, quiet: bool, **given: Any) -> None:
    """Make the model of correction ID that of the project, and update what was delivered.

    Options that shape polygons are to be given as they were given to predict.
    """
    from gimseg.correction.accepting import accept as run

    done = run(id, progress=progress_of(quiet), **given)
    if not quiet:
        click.echo(done.text())


@correct.command()
@click.argument("id", required=False)
@project_option
@click.option("--force", is_flag=True, help="Even though a file was changed since.")
@quiet_option
def rollback(id: str | None, project: str, force: bool, quiet: bool) -> None:
    """Undo the last acceptance: its model, and the files that it changed."""
    from gimseg.correction.accepting import rollback as run

    done = run(id, project=project, force=force)
    if not quiet:
        click.echo(done.text())


@correct.command("list")
@project_option
def list_(project: str) -> None:
    """Show the corrections of the project: states, scores, models."""
    from gimseg.correction.listing import listed

    click.echo(listed(project).text())
