"""Options that several commands share, spelt once, and what their values mean."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

model_option = click.option("-m", "--model", default="builtin", show_default=True, help="Model folder.")
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:1.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
quiet_option = click.option("--quiet", is_flag=True, help="Say nothing but errors.")


def models_option(text: str) -> Decorator:
    """``--model`` that can be given several times; what then happens."""
    help = f"Model folder, or a project's. Several times: {text}."
    return click.option("-m", "--model", multiple=True, default=["builtin"], show_default=True, help=help)


def opening_options(layer: str) -> Decorator:
    """How a raster and a layer are opened where they do not say it themselves.

    Args:
        layer: what it is called, with its article.
    """

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            click.option("--vector-crs", help=f"CRS of {layer} that has none."),
            click.option("--crs", help="CRS of a raster that has none."),
            click.option(
                "--nodata",
                callback=lambda _, __, text: nodata_of(text),
                help="Value that means no data, or auto for a border that nothing declares.",
            ),
            click.option(
                "--bands",
                callback=lambda _, __, text: numbers(text),
                help="Bands of the raster to use, as 1,2,3. [default: those of the model]",
            ),
        ):
            command = option(command)
        return command

    return add


class LayerPath(click.Path):
    """A file of a vector layer, which is there; ``file.gpkg|layername=x`` names the layer in it."""

    def __init__(self) -> None:
        super().__init__(exists=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from gimseg.vector_formats import split_name

        super().convert(split_name(os.fspath(value))[0], param, ctx)
        return value


class PipelineOrder(click.Group):
    """A group that lists its commands in the order in which they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def progress_of(quiet: bool) -> Any:
    """How a command says how far it is."""
    from gimseg.progress import ConsoleProgress, silent

    return silent if quiet else ConsoleProgress()


def numbers(text: str | None) -> tuple[int, ...] | None:
    """A list of band numbers.

    Example:
        >>> numbers("4,3,2")
        (4, 3, 2)
    """
    try:
        return tuple(int(part) for part in text.split(",")) if text else None
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no list of band numbers such as 1,2,3") from error


def nodata_of(text: str | None) -> float | str | None:
    """A value, or ``auto``."""
    try:
        return text if text in (None, "auto") else float(str(text))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is neither a number nor auto") from error
