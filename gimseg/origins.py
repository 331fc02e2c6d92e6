"""Where polygons come from: the model that found them and the date they stand for."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gimseg.raster_files import DRIVERS, check_file, open_dataset

MODEL_TAG = "gimseg_model"
"""Tag of a mask that names the model."""
DATE_TAG = "gimseg_image_date"
"""Tag of a mask that holds the date of its image, YYYY-MM-DD."""

_DATE = re.compile(r"(\d{4})[:-](\d{2})[:-](\d{2})(?!\d)")


@dataclass(frozen=True)
class Origin:
    """Where polygons come from.

    Args:
        model: name of the model; None if nothing tells.
        date: of the image, where it tells; else of the run.
    """

    model: str | None
    date: datetime.date

    @classmethod
    def of_tags(cls, tags: Mapping[str, str]) -> Origin:
        """What the tags of a mask say.

        Example:
            >>> Origin.of_tags({"gimseg_model": "roofs", "TIFFTAG_DATETIME": "2024:05:01 10:00:00"})
            Origin(model='roofs', date=datetime.date(2024, 5, 1))
        """
        date = parse_date(tags.get(DATE_TAG)) or parse_date(tags.get("TIFFTAG_DATETIME"))
        return cls(tags.get(MODEL_TAG) or None, date or date_of_run())


def image_date(path: str | os.PathLike[str], *, allow_vrt: bool = False) -> datetime.date | None:
    """The day an image was taken: GDAL's ``ACQUISITIONDATETIME``, else ``TIFFTAG_DATETIME``; None if it has neither.

    Args:
        path: the image.
        allow_vrt: see :func:`gimseg.rasters.open_raster`.

    Raises:
        RasterError: the file cannot be read.
    """
    drivers = (*DRIVERS, "VRT") if allow_vrt else tuple(DRIVERS)
    with open_dataset(check_file(path, allow_virtual=allow_vrt), drivers) as dataset:
        said = dataset.tags(ns="IMAGERY").get("ACQUISITIONDATETIME"), dataset.tags().get("TIFFTAG_DATETIME")
    return parse_date(said[0]) or parse_date(said[1])


def parse_date(text: Any) -> datetime.date | None:
    """The date at the beginning of a text, written as TIFF, ISO or GDAL do; None if there is none.

    Example:
        >>> parse_date("2024:05:01 10:00:00"), parse_date("2024-05-01T10:00:00Z"), parse_date("0000:00:00 00:00:00")
        (datetime.date(2024, 5, 1), datetime.date(2024, 5, 1), None)
    """
    found = _DATE.match(str(text or ""))
    try:
        return datetime.date(*map(int, found.groups())) if found else None
    except ValueError:
        return None


def date_of_run() -> datetime.date:
    """Today (UTC); the day that ``SOURCE_DATE_EPOCH`` names, for outputs that are to be the same on any day."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    now = datetime.datetime.now(datetime.UTC)
    return (datetime.datetime.fromtimestamp(int(epoch), datetime.UTC) if epoch.isdecimal() else now).date()
