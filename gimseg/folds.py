"""Cross-validation by site: which datasets are for validation in which fold."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace

from gimseg.datasets import SPLITS, Dataset, Datasets
from gimseg.errors import DatasetError, TrainingError


def parse_fold(text: str) -> tuple[int, int]:
    """Number of the fold, from 1, and number of folds.

    Raises:
        TrainingError: the text is no such pair.

    Example:
        >>> parse_fold("2/5")
        (2, 5)
    """
    found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    number, folds = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= folds or folds < 2:
        raise TrainingError(f"fold {text!r}: write its number and how many there are, as 1/5 to 5/5")
    return number, folds


def take_fold(datasets: Datasets, fold: str, seed: int = 0) -> Datasets:
    """The same datasets with new splits: one group of sites for validation, the others to train on.

    A dataset is a site. All that are not of the split ``test`` are dealt to the folds, in
    an order that the seed and their tags give; those of ``test`` stay. Over all folds each
    site is for validation once.

    Args:
        datasets: with a split, or none; not divided by an attribute of an AoI layer.
        fold: as ``"1/5"``.
        seed: deals anew.

    Raises:
        DatasetError: there are fewer sites than folds, or a dataset is divided in itself.
        TrainingError: the fold cannot be read.
    """
    number, folds = parse_fold(fold)
    sites = [item for item in datasets if item.split != "test"]
    for item in sites:
        if item.split is not None and item.split not in SPLITS:
            raise DatasetError(
                f"fold {fold}: dataset '{item.tag}' is divided by the attribute {item.split!r} of its AoIs, and folds "
                "are of whole datasets: leave its split out"
            )
    if len(sites) < folds:
        raise DatasetError(
            f"fold {fold}: there are {len(sites)} datasets to learn from, needed is one a fold, {folds}: ask for "
            f"{max(2, len(sites))} folds or give each site a dataset of its own"
        )
    ranked = sorted(sites, key=lambda item: _rank(item, seed))
    held = {item.tag for place, item in enumerate(ranked) if place % folds == number - 1}
    return Datasets(
        tuple(
            item if item.split == "test" else replace(item, split="val" if item.tag in held else "train")
            for item in datasets
        )
    )


def _rank(item: Dataset, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{item.tag}".encode()).digest()
