"""Scores of all rasters of an evaluation: as numbers for programs, and as lines of text."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gimseg.boundary_scores import BoundaryTable
from gimseg.intervals import Interval, resampled
from gimseg.legend import Legend
from gimseg.metrics import CLASS_SCORES, Confusion
from gimseg.object_scores import ObjectTable
from gimseg.probability_scores import ProbabilityTable
from gimseg.sample_windows import SIDE
from gimseg.scene_scores import Reach, Score

_OF_COUNTS = ("iou", "f1", "precision", "recall", "specificity")
AVERAGED = {"macro": (*_OF_COUNTS, "mcc"), "micro": _OF_COUNTS}
"""Way of averaging over classes -> scores that are averaged so."""
_FEW_UNITS = 10
_SCORED = ("IoU", "F1", "precision", "recall", "MCC", "outline F1", "object F1")
_HEAD = ("raster", "split", "class", *_SCORED, "pixels")


@dataclass(frozen=True, eq=False)
class SplitScores:
    """All rasters of one split together.

    Args:
        split: its name.
        legend: of the classes.
        rows: the rasters.
        reach: how far outlines were looked at.
    """

    split: str
    legend: Legend
    rows: tuple[Score, ...]
    reach: Reach

    @cached_property
    def confusion(self) -> Confusion:
        """Pixels of all rasters together."""
        return sum((row.confusion for row in self.rows), Confusion.zeros(len(self.legend.classes) + 1))

    @cached_property
    def probabilities(self) -> ProbabilityTable | None:
        """Of all rasters together; None for ready masks."""
        tables = [row.probabilities for row in self.rows if row.probabilities is not None]
        return sum(tables[1:], tables[0]) if tables else None

    @cached_property
    def outlines(self) -> tuple[BoundaryTable, ...]:
        """Of each class."""
        zeros = BoundaryTable.zeros(self.reach.reach_m)
        return tuple(sum(tables, zeros) for tables in zip(*(row.outlines for row in self.rows), strict=True))

    @cached_property
    def objects(self) -> tuple[ObjectTable, ...]:
        """Of each class; none where some ground truth has no areas."""
        if not all(row.objects for row in self.rows):
            return ()
        return tuple(
            sum(tables, ObjectTable.zeros()) for tables in zip(*(row.objects for row in self.rows), strict=True)
        )

    @property
    def loss(self) -> float:
        """Mean cross-entropy of the labelled pixels; NaN for ready masks."""
        pixels = [row.windows.pixels.sum() for row in self.rows]
        return float(np.average([row.windows.loss for row in self.rows], weights=pixels))

    @property
    def drawn(self) -> str:
        """What intervals were made from, for people."""
        if len(self.rows) >= _FEW_UNITS:
            return f"{len(self.rows)} rasters again and again"
        count = sum(len(row.windows) for row in self.rows)
        told = f"{count} block{'s' * (count != 1)} of ground of about {SIDE} x {SIDE} px again and again"
        return told if count >= _FEW_UNITS else f"{told}; of so few they are too narrow"

    @cached_property
    def intervals(self) -> Mapping[tuple[str, str], Interval]:
        """95 % intervals by class (or ``macro``, ``micro``, ``all``) and score.

        Drawn are rasters, or where there are fewer than ten, blocks of ground.
        """
        if len(self.rows) >= _FEW_UNITS:
            counts = np.stack([row.confusion.matrix for row in self.rows])
        else:
            counts = np.concatenate([row.windows.counts for row in self.rows])
        drawn = [self._flat(Confusion(total)) for total in resampled(counts)]
        return {
            key: Interval.around(score, [one[key] for one in drawn])
            for key, score in self._flat(self.confusion).items()
        }

    def best_threshold(self, number: int = 0) -> float:
        """Where the IoU of a class, from 0, is highest; NaN without probabilities or true pixels."""
        return float("nan") if self.probabilities is None else self.probabilities.scan(number).best_threshold

    def _flat(self, confusion: Confusion) -> dict[tuple[str, str], float]:
        flat = {
            (name, score): float(getattr(confusion, score)[number])
            for score in CLASS_SCORES
            for number, name in enumerate(self.legend.names, 1)
        }
        flat |= {(how, score): confusion.average(score, how) for how, scores in AVERAGED.items() for score in scores}
        of_all = {"accuracy": confusion.accuracy, "kappa": confusion.kappa, "mcc": confusion.mcc_of_all}
        return flat | {("all", score): value for score, value in of_all.items()}

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it; what is undefined is None."""
        table = self.confusion.to_dict(("background", *self.legend.names))
        table["intervals"] = {"level": 0.95, "drawn": self.drawn, "scores": _nested(self.intervals)}
        for how, scores in AVERAGED.items():
            table[how] = {score: self.confusion.average(score, how) for score in scores}
        table["cross_entropy"] = self.loss
        for number, name in enumerate(self.legend.names):
            table["classes"][name] |= class_extras(self, number)
        return plain(table)


@dataclass(frozen=True)
class Scores:
    """Scores per raster, per split and of all labelled pixels together."""

    legend: Legend
    rows: tuple[Score, ...]
    reach: Reach

    def of_split(self, split: str | None = None) -> Confusion:
        """Pixels of all rasters of a split (None: of all splits) together."""
        confusions = [row.confusion for row in self.rows if split in (None, row.split)]
        return sum(confusions, Confusion.zeros(len(self.legend.classes) + 1))

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that were scored, in order."""
        return tuple(dict.fromkeys(row.split for row in self.rows))

    @cached_property
    def together(self) -> tuple[SplitScores, ...]:
        """Each split, its rasters together."""
        return tuple(
            SplitScores(split, self.legend, tuple(row for row in self.rows if row.split == split), self.reach)
            for split in self.splits
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it: ``splits``, ``rasters``; each with its confusion table."""
        names = ("background", *self.legend.names)
        return {
            "boundary_m": self.reach.distance_m,
            "splits": {one.split: one.to_dict() for one in self.together},
            "rasters": [
                {"dataset": row.tag, "raster": row.path, "split": row.split, **row.confusion.to_dict(names)}
                for row in self.rows
            ],
        }

    def table(self) -> str:
        """Scores as lines of text: one a raster and class, one a split and class, and what else is known of each."""
        lines: list[tuple[str, ...]] = [_HEAD]
        for row in self.rows:
            lines += _lines(os.path.basename(row.path), SplitScores(row.split, self.legend, (row,), self.reach))
        for one in self.together:
            if len(one.rows) > 1:
                lines += _lines("together", one)
        widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
        rows = [
            "  ".join(
                cell.ljust(width) if column < 3 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([*rows, *(line for one in self.together for line in _summary(one))])


def class_extras(one: SplitScores, number: int) -> dict[str, Any]:
    """What is known of a class, from 0, besides its pixels: outlines, objects, probabilities."""
    extras: dict[str, Any] = {}
    if one.outlines:
        table, distance = one.outlines[number], one.reach.distance_m
        extras["boundary"] = {
            "distance_m": distance,
            "f1": table.f1(distance),
            "precision": table.precision(distance),
            "recall": table.recall(distance),
            "iou": table.iou(distance),
            **_farthest(table, "hausdorff", 1.0),
            **_farthest(table, "hausdorff_95", 0.95),
            "reach_m": one.reach.reach_m,
        }
    if one.objects:
        objects = one.objects[number]
        extras["objects"] = {
            "true": int(objects.counts[:, 0].sum()),
            "predicted": int(objects.counts[:, 2].sum()),
            **objects.scores()._asdict(),
            "mean_iou_of_pairs": objects.mean_iou,
            "by_area": objects.scores(by_area=True)._asdict(),
            "by_size": {
                name: {**scores._asdict(), "true": int(row[0]), "predicted": int(row[2])}
                for (name, scores), row in zip(objects.by_size().items(), objects.counts, strict=True)
            },
        }
    if one.probabilities is not None:
        extras["probabilities"] = _curves(one.probabilities, number)
    return extras


def _farthest(table: BoundaryTable, name: str, share: float) -> dict[str, float]:
    """A distance between outlines, and where it is beyond reach what it is more than; NaN where there is none."""
    distance = table.hausdorff_m(share)
    return {f"{name}_m": distance, f"{name}_more_than_m": table.reach_m if math.isinf(distance) else math.nan}


def _curves(table: ProbabilityTable, number: int) -> dict[str, Any]:
    scan, calibration = table.scan(number), table.calibration(number)
    scores = {name: getattr(scan, name).tolist() for name in ("thresholds", "iou", "f1", "precision", "recall")}
    return {
        "best_threshold": scan.best_threshold,
        "best_iou": float(np.nanmax(scan.iou, initial=0)),
        "average_precision": scan.average_precision,
        "expected_calibration_error": calibration.expected_error,
        "scan": scores,
        "calibration": {name: value.tolist() for name, value in calibration._asdict().items()},
    }


def _lines(name: str, one: SplitScores) -> list[tuple[str, ...]]:
    lines = []
    for number, class_name in enumerate(one.legend.names):
        scores = [getattr(one.confusion, score)[number + 1] for score in ("iou", "f1", "precision", "recall", "mcc")]
        scores.append(one.outlines[number].f1(one.reach.distance_m) if one.outlines else float("nan"))
        scores.append(one.objects[number].scores().f1 if one.objects else float("nan"))
        pixels = f"{int(one.confusion.support[number + 1]):,}"
        lines.append((name, one.split, class_name, *map(written, scores), pixels))
    return lines


def _summary(one: SplitScores) -> list[str]:
    """What the table has no room for."""
    lines = ["", f"{one.split}: 95 % intervals from drawing {one.drawn}"]
    for name in one.legend.names:
        told = ", ".join(f"{label} {one.intervals[name, score]}" for label, score in (("IoU", "iou"), ("F1", "f1")))
        lines.append(f"  {name}: {told}")
    if not one.legend.is_binary:
        for how, scores in AVERAGED.items():
            told = ", ".join(f"{score} {written(one.intervals[how, score].score)}" for score in scores)
            lines.append(f"  {how}: {told}")
    of_all = {"accuracy": one.confusion.accuracy, "kappa": one.confusion.kappa, "MCC": one.confusion.mcc_of_all}
    lines.append("  " + ", ".join(f"{name} {written(value)}" for name, value in of_all.items()))
    for number, name in enumerate(one.legend.names):
        lines += [f"  {name}, {told}" for told in _told(class_extras(one, number), one.reach)]
    return lines


def _told(extras: Mapping[str, Any], reach: Reach) -> Iterator[str]:
    """Lines on a class: outlines, objects, probabilities."""
    if "boundary" in extras:
        part = extras["boundary"]
        farthest, most = (metres(part[name], reach) for name in ("hausdorff_m", "hausdorff_95_m"))
        yield (
            f"outline within {part['distance_m']:.3g} m: F1 {written(part['f1'])}, IoU {written(part['iou'])}; "
            f"Hausdorff {farthest}, 95 % {most}"
        )
    if "objects" in extras:
        part = extras["objects"]
        by_area = f"{written(part['by_area']['precision'])} and {written(part['by_area']['recall'])}"
        yield (
            f"objects ({part['true']:,} true, {part['predicted']:,} predicted, matched at IoU 0.5): precision "
            f"{written(part['precision'])}, recall {written(part['recall'])}; by area {by_area}"
        )
    if "probabilities" in extras:
        part = extras["probabilities"]
        yield (
            f"probabilities: best threshold {written(part['best_threshold'])} (IoU {written(part['best_iou'])}), "
            f"average precision {written(part['average_precision'])}, calibration error "
            f"{written(part['expected_calibration_error'])}"
        )


def metres(distance: float, reach: Reach) -> str:
    """A distance between outlines as people read it.

    Example:
        >>> metres(float("inf"), Reach(1, 20)), metres(2.345, Reach(1, 20)), metres(float("nan"), Reach(1, 20))
        ('more than 20 m', '2.3 m', '–')
    """
    if math.isnan(distance):
        return "–"
    return f"more than {reach.reach_m:.3g} m" if math.isinf(distance) else f"{distance:.1f} m"


def written(value: float) -> str:
    """A score as people read it."""
    return "–" if math.isnan(value) else f"{value:.3f}"


def plain(value: Any) -> Any:
    """Values as JSON takes them: what is no number is None.

    Example:
        >>> plain({"a": (1.0, float("nan")), "b": float("inf")})
        {'a': [1.0, None], 'b': None}
    """
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _nested(intervals: Mapping[tuple[str, str], Interval]) -> dict[str, dict[str, list[float]]]:
    nested: dict[str, dict[str, list[float]]] = {}
    for (name, score), interval in intervals.items():
        nested.setdefault(name, {})[score] = [interval.low, interval.high]
    return nested
