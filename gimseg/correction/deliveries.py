"""What was delivered for rasters, and how it is brought up to a new model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rasterio

from gimseg.assembly import RUN_TAG
from gimseg.attributes import CLASS_ID
from gimseg.delivery import Delivery, deliver
from gimseg.errors import CorrectionError, ResumeError
from gimseg.jobs import default_outputs
from gimseg.outputs import FAMILIES
from gimseg.products import Products, Uncertainty
from gimseg.rasters import open_raster
from gimseg.stac import is_item, item_path, rehome_item
from gimseg.vector_output import driver_of
from gimseg.vectors import open_layer

MADE = "made"
"""Folder of the files that were predicted again, before they are put in place."""
_MASKS = (".tif", ".tiff")


@dataclass(frozen=True)
class Delivered:
    """What was delivered for a raster, and is brought up to a new model."""

    raster: str
    mask: Path
    layers: tuple[Path, ...]

    @classmethod
    def of(cls, raster: str | os.PathLike[str], segments: Sequence[str | os.PathLike[str]]) -> Delivered | None:
        """From the files that were named; None where there are none.

        Raises:
            CorrectionError: no mask, or files in several folders.
        """
        paths = [Path(path) for path in segments]
        if not paths:
            return None
        masks = [path for path in paths if path.suffix.lower() in _MASKS]
        layers = tuple(path for path in paths if path not in masks)
        for path in layers:
            driver_of(path)
        itself = [path for path in paths if os.path.realpath(path) == os.path.realpath(raster)]
        if itself:
            raise CorrectionError(f"{itself[0]} is the image itself: name what was predicted from it with --segments")
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise CorrectionError(f"{missing[0]} does not exist: name what was delivered with --segments")
        if len(masks) != 1 or len({path.resolve().parent for path in paths}) != 1:
            raise CorrectionError(
                f"{', '.join(map(str, paths))}: one mask (.tif) and its polygons, in one folder, can be updated"
            )
        return cls(os.fspath(raster), masks[0], layers)

    def check_ours(self) -> None:
        """Refuse files that no prediction has made: they would be replaced.

        Raises:
            CorrectionError: a mask or a layer is something else.
        """
        with rasterio.open(self.mask, driver="GTiff") as mask:
            if RUN_TAG not in mask.tags():
                raise CorrectionError(
                    f"{self.mask} was not made by gimseg predict: name the mask that was, or replace it with "
                    "--overwrite"
                )
        for path in self.layers:
            if CLASS_ID not in open_layer(path).fields:
                raise CorrectionError(
                    f"{path} has no attribute {CLASS_ID}: it was not made by gimseg predict or vectorize; name the "
                    "layer that was, or replace it with --overwrite"
                )

    def options(self, areas: Path | None) -> dict[str, Any]:
        """For :func:`gimseg.delivery.deliver`: in part, or all of it."""
        beside = Products(probabilities=True, uncertainty="margin").files(self.mask)
        products = Products(
            probabilities=beside["probabilities"].is_file(),
            uncertainty=_uncertainty_of(beside["uncertainty"]),
        )
        given: dict[str, Any] = {"products": products, "stac": is_item(item_path(self.mask))}
        if areas is not None:
            given |= {"aoi": areas, "older": self.mask}
            if self.layers:
                given["older_layer"] = self.layers[0]
        return given

    def predict(self, model: Path, stage: Path, options: dict[str, Any]) -> Delivery:
        """Make all files anew, in a folder of their own; a run that was stopped goes on there."""
        made = stage / MADE
        made.mkdir(parents=True, exist_ok=True)
        for path in made.iterdir():
            # What lies open is of an earlier try that came to its end; hidden parts go on.
            if not path.name.startswith("."):
                path.unlink()
        outputs = [made / path.name for path in (self.mask, *self.layers)]
        try:
            done = deliver(self.raster, model, outputs, **options)
        except ResumeError:
            # Something else was drawn, or asked for, since that try.
            shutil.rmtree(made)
            made.mkdir()
            done = deliver(self.raster, model, outputs, **options)
        item = item_path(made / self.mask.name)
        if item.exists():
            rehome_item(item, self.mask.absolute().parent)
        return done

    def stale(self, made: set[str]) -> list[Path]:
        """Files of the families of its layers that the new ones have not."""
        found = [path.with_suffix(ending) for path in self.layers for ending in FAMILIES.get(path.suffix.lower(), ())]
        return [path for path in found if path.name not in made and path.exists() and path.suffix != ".qml"]


def deliveries_of(
    rasters: Sequence[str | os.PathLike[str]], segments: Sequence[str | os.PathLike[str]]
) -> tuple[Delivered, ...]:
    """Which files were delivered for which raster.

    Of one raster all are; of several each has those that ``gimseg predict`` names after it.

    Raises:
        CorrectionError: a file that no raster is known for, or what :meth:`Delivered.of` refuses.
    """
    if len(rasters) == 1:
        one = Delivered.of(rasters[0], segments)
        return () if one is None else (one,)
    stems = {Path(default_outputs(raster)[0]).stem: raster for raster in rasters}
    named: dict[str, list[str | os.PathLike[str]]] = {}
    for path in segments:
        stem = Path(path).stem
        if stem not in stems:
            raise CorrectionError(
                f"{path}: for which of {', '.join(map(str, rasters))} it was delivered is not known: name it "
                f"{' or '.join(stems)}, or give that raster alone with --raster"
            )
        named.setdefault(stem, []).append(path)
    made = (Delivered.of(stems[stem], paths) for stem, paths in named.items())
    return tuple(one for one in made if one is not None)


def _uncertainty_of(path: Path) -> Uncertainty | None:
    """Which uncertainty a raster beside a mask holds, by the name of its band."""
    told = open_raster(path).band_names[0] if path.is_file() else ""
    return "entropy" if "entropy" in told else "margin" if told else None
