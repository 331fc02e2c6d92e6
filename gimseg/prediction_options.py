"""The options of ``predict`` and ``vectorize`` that shape what they write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

refine_option = click.option("--refine", help='Refine classes in steps, as "tv(0.1), open(1 m), fill(4 m2)".')


def polygon_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of ``predict`` and ``vectorize`` that shape polygons, in the order in which they are applied."""
    options = (
        click.option(
            "--connectivity",
            default=4,
            show_default=True,
            help="Pixels of one object share edges (4), or edges or corners (8).",
        ),
        click.option(
            "--instances",
            type=click.Choice(["distance", "probability"]),
            help="Split objects that touch: at necks, or where the probability falls between two peaks.",
        ),
        click.option("--min-area", "min_area_m2", default=0.0, help="Drop polygons below this area, m²."),
        click.option("--fill-holes", "fill_holes_m2", default=0.0, help="Fill holes below this area, m²."),
        click.option("--simplify", "simplify_m", default=0.0, help="Simplify polygons within this tolerance, m."),
        click.option("--coverage", is_flag=True, help="Simplify neighbours together: no gap, no overlap."),
        click.option("--smooth", "smooth_m", default=0.0, help="Round corners within this tolerance, m."),
        click.option("--right-angles", is_flag=True, help="Make the corners of buildings right angles."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def product_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of ``predict`` that say what it delivers besides classes, and where."""
    options = (
        click.option("--probabilities", is_flag=True, help="Write the probability of each class beside the mask."),
        click.option("--uncertainty", type=click.Choice(["entropy", "margin"]), help="Write how unsure each pixel is."),
        click.option(
            "--threshold",
            multiple=True,
            metavar="[CLASS=]NUMBER",
            help="A pixel is of a class above this probability; once for all, or for each class. [default: the "
            "model's; of several classes the most probable]",
        ),
        click.option(
            "--tta",
            type=click.Choice(["flips", "symmetries"]),
            help="Average over 4 flips, or all 8 symmetries, of the image: as many times the work.",
        ),
        refine_option,
        click.option("--match-input", is_flag=True, help="Bring the result to the input's own pixels."),
        click.option("--mosaic", is_flag=True, help="Take all rasters as one."),
        click.option("--allow-vrt", is_flag=True, help="Read VRTs and /vsi paths: for trusted ones only."),
        click.option("--cog", is_flag=True, help="Write Cloud Optimized GeoTIFFs."),
        click.option("--stac", is_flag=True, help="Write a STAC item beside the mask."),
    )
    for option in reversed(options):
        command = option(command)
    return command
