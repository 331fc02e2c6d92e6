"""Options that several commands share, spelt once, and what their values mean."""

from __future__ import annotations

from typing import Any

import click

model_option = click.option("-m", "--model", default="builtin", show_default=True, help="Model folder.")
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:1.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
quiet_option = click.option("--quiet", is_flag=True, help="Say nothing but errors.")


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
