"""What pins the state of a training that did not end: settings, datasets, their files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from gimseg.datasets import Dataset, Datasets
from gimseg.errors import OutputError, ResumeError
from gimseg.trainers import is_first_process


def open_work(work: Path, identity: Mapping[str, Any], *, restart: bool = False) -> None:
    """Make the folder of a training's state, or find it.

    Args:
        work: the folder.
        identity: what pins the state: settings, data.
        restart: throw away what is there.

    Raises:
        ResumeError: it is of another training.
        OutputError: the folder cannot be written.
    """
    if not is_first_process():
        return
    told = json.dumps(identity, indent=1, default=str)
    pinned = work / "training.json"
    if restart and work.exists():
        shutil.rmtree(work)
    if pinned.exists() and pinned.read_text(encoding="utf-8") != told:
        raise ResumeError(
            f"{work} holds the state of a training with other settings or data (compare {pinned.name}): "
            "start the same training again to go on, or give --restart to throw that state away"
        )
    try:
        work.mkdir(parents=True, exist_ok=True)
        pinned.write_text(told, encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"cannot write in {work.parent} ({error.strerror}): a training keeps its state there"
        ) from error


def declared(datasets: Datasets) -> dict[str, dict[str, str]]:
    """What was said of each dataset besides what its files hold, by tag; what was not said is not there.

    Of ground truth the names count, with those of layers: which file is for what, and in which order.

    Example:
        >>> declared(Datasets((Dataset("north", 0.2, [__file__], split="val"),)))
        {'north': {'spatial_resolution': '0.2', 'split': 'val'}}
    """
    return {item.tag: _said(item) for item in datasets}


def _said(dataset: Dataset) -> dict[str, str]:
    said = {}
    for item in fields(Dataset):
        value = getattr(dataset, item.name)
        if item.name in ("tag", "image_paths") or value == item.default:
            continue
        by_name = item.name.endswith("_paths")
        said[item.name] = ", ".join(map(os.path.basename, value)) if by_name else str(value)
    return said


def fingerprints(datasets: Datasets) -> dict[str, str]:
    """File name -> size and hash of its content, for every file of the datasets; of images, of samples of it.

    Labels are edited, by a vertex maybe: all of their bytes count.
    """
    found: dict[str, str] = {}
    for dataset in datasets:
        for path in (*dataset.images, *dataset.masks, *dataset.aois, *dataset.ignored):
            name = str(path).split("|")[0]
            if not os.path.isfile(name):
                continue
            size = os.path.getsize(name)
            digest = _hash_of_samples(name, size) if path in dataset.images else _hash_of_all(name, size)
            label = f"{dataset.tag}/{os.path.basename(name)}"
            # Tiles of several folders may be called alike.
            label += f" ({path})" * (label in found)
            found[label] = f"{size} bytes, sha256 {digest}"
    return found


def _hash_of_samples(name: str, size: int) -> str:
    digest = hashlib.sha256(str(size).encode())
    with open(name, "rb") as file:
        for place in (0, size // 2, max(0, size - 65536)):
            file.seek(place)
            digest.update(file.read(65536))
    return digest.hexdigest()[:16]


def _hash_of_all(name: str, size: int) -> str:
    with open(name, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.sha256(str(size).encode())).hexdigest()[:16]
