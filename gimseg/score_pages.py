"""The report of an evaluation: scores, curves, confusion, worst samples, maps of scores, provenance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gimseg.charts import SERIES, Line, LineChart
from gimseg.legend import UNLABELLED, Legend
from gimseg.pictures import blend, outcome_overlay, to_rgb
from gimseg.probability_scores import Calibration, Scan
from gimseg.report import (
    Block,
    Cell,
    Chart,
    Column,
    Figures,
    Gallery,
    Page,
    Paragraph,
    Picture,
    Section,
    Swipe,
    Table,
)
from gimseg.sample_lists import Sample
from gimseg.sample_windows import FEW_WRONG, SIDE
from gimseg.scene_scores import Overview, Score
from gimseg.score_tables import AVERAGED, Scores, SplitScores, class_extras, metres, written
from gimseg.styles import SCORE_COLOURS

MOST_MAPS = 12
"""Rasters of which a map is shown, the worst."""
_SHARES, _ABOVE = (0.0, 1.0), (0.0, 1.02)
_SCORES = ("iou", "f1", "precision", "recall", "specificity", "mcc")
_WITH_INTERVAL = ("iou", "f1", "precision", "recall")
_NAMES = {"iou": "IoU", "f1": "F1", "mcc": "MCC"}
_MEANINGS = {
    "iou": "TP / (TP + FP + FN)",
    "f1": "2 TP / (2 TP + FP + FN), which is Dice",
    "precision": "TP / (TP + FP): of what was predicted, the share that is true",
    "recall": "TP / (TP + FN): of what is true, the share that was found",
    "specificity": "TN / (TN + FP)",
    "mcc": "Matthews correlation, −1 to 1",
}


def score_page(
    scores: Scores, overviews: Mapping[int, Overview], samples: Sequence[Sample], provenance: Mapping[str, Any]
) -> Page:
    """The report of an evaluation.

    Args:
        scores: of all splits.
        overviews: pictures of scenes, by their number.
        samples: the worst windows.
        provenance: settings and origins; ``title`` and ``subtitle`` head the page.
    """
    sections = []
    for one in scores.together:
        title = "Scores" if one.split == "all" else f"Scores: {one.split}"
        sections.append(Section(title, tuple(_scores(one))))
        if one.probabilities is not None:
            sections.append(Section(title.replace("Scores", "Thresholds and curves"), tuple(_curves(one))))
    sections.append(Section("Rasters", (_rasters(scores),)))
    sections.append(Section("Worst samples", tuple(_worst(samples, scores.legend))))
    sections.append(Section("Maps of scores", tuple(_maps(scores, overviews))))
    told = dict(provenance)
    return Page(told.pop("title"), tuple(sections), told.pop("subtitle"), told)


def _scores(one: SplitScores) -> Iterator[Block]:
    yield _headline(one)
    yield _by_class(one)
    yield Paragraph(f"Intervals hold 95 % of the scores from drawing {one.drawn}.")
    if not one.legend.is_binary:
        yield _averages(one)
    yield _confusion(one)
    if one.outlines:
        yield _outlines(one)
    if one.objects:
        yield _objects(one)


def _averages(one: SplitScores) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for how, scores in AVERAGED.items():
        rows.append((how, *(one.confusion.average(score, how) if score in scores else None for score in _SCORES)))
    return Table((Column("average"), *map(_column, _SCORES)), tuple(rows), "Averages over the classes", sortable=False)


def _headline(one: SplitScores) -> Figures:
    key = (one.legend.names[0] if one.legend.is_binary else "macro", "iou")
    items = []
    for score in ("iou", "f1", "precision", "recall"):
        interval = one.intervals[key[0], score]
        known = not np.isnan(interval.low)
        note = f"{interval.low:.3f} to {interval.high:.3f}" if known else ""
        name = _NAMES.get(score, score)
        items.append((name if one.legend.is_binary else f"mean {name}", written(interval.score), note))
    extra = class_extras(one, 0) if one.legend.is_binary else {}
    if "boundary" in extra:
        distance = f"within {extra['boundary']['distance_m']:.3g} m"
        items.append(("outline F1", written(extra["boundary"]["f1"]), distance))
    if "objects" in extra:
        items.append(("object F1", written(extra["objects"]["f1"]), f"{extra['objects']['true']:,} objects"))
    beside = f"kappa {written(one.confusion.kappa)}, MCC {written(one.confusion.mcc_of_all)}"
    items.append(("accuracy", written(one.confusion.accuracy), beside))
    return Figures(tuple(items))


def _by_class(one: SplitScores) -> Table:
    columns = [Column("class")]
    for score in _SCORES:
        columns += [_column(score), *([Column("95 %")] if score in _WITH_INTERVAL else [])]
    rows = []
    for number, name in enumerate(one.legend.names, 1):
        cells: list[Any] = [name]
        for score in _SCORES:
            interval = one.intervals[name, score]
            span = "–" if np.isnan(interval.low) else f"{interval.low:.2f} – {interval.high:.2f}"
            cells += [interval.score, *([span] if score in _WITH_INTERVAL else [])]
        rows.append((*cells, int(one.confusion.support[number])))
    return Table(
        (*columns, Column("true pixels", "count")), tuple(rows), "Each class against all others, pixel by pixel"
    )


def _confusion(one: SplitScores) -> Table:
    names = ("background", *one.legend.names)
    columns = (Column("true \\ predicted"), *(Column(name, "count") for name in names), Column("recall", "share"))
    matrix, recall = one.confusion.matrix, one.confusion.recall
    rows: list[tuple[Cell, ...]] = [(name, *map(int, matrix[i]), float(recall[i])) for i, name in enumerate(names)]
    return Table(columns, tuple(rows), "Confusion, pixels", sortable=False)


def _outlines(one: SplitScores) -> Table:
    columns = [Column("class"), *(Column(name, "share") for name in ("F1", "precision", "recall", "IoU of rims"))]
    columns += [Column("Hausdorff"), Column("95th percentile")]
    rows = []
    for number, name in enumerate(one.legend.names):
        part = class_extras(one, number)["boundary"]
        distances = [metres(part[key], one.reach) for key in ("hausdorff_m", "hausdorff_95_m")]
        rows.append((name, part["f1"], part["precision"], part["recall"], part["iou"], *distances))
    return Table(tuple(columns), tuple(rows), f"Outlines, hit within {one.reach.distance_m:.3g} m", sortable=False)


def _objects(one: SplitScores) -> Table:
    columns = [Column("class"), Column("objects"), Column("true", "count"), Column("predicted", "count")]
    columns += [Column(name, "share") for name in ("precision", "recall", "F1")]
    rows: list[tuple[Any, ...]] = []
    for number, name in enumerate(one.legend.names):
        part = class_extras(one, number)["objects"]
        for what, row in (("all", part), ("all, by area", {**part, **part["by_area"]}), *part["by_size"].items()):
            rows.append((name, what, row["true"], row["predicted"], row["precision"], row["recall"], row["f1"]))
    return Table(tuple(columns), tuple(rows), "Objects, matched where their IoU is above one half", sortable=False)


def _curves(one: SplitScores) -> Iterator[Block]:
    table = one.probabilities
    assert table is not None
    for number, name in enumerate(one.legend.names):
        scan, calibration = table.scan(number), table.calibration(number)
        if np.isnan(scan.best_threshold):
            continue
        panels = (_thresholds(name, scan), _precision(name, scan), _calibration(name, calibration))
        best = f"highest, {np.nanmax(scan.iou):.3f}, at a threshold of {scan.best_threshold:.3f}"
        yield Chart((*panels, _histogram(name, calibration.pixels)), f"The IoU of {name} is {best}.")
    if one.legend.is_binary:
        yield _threshold_table(table.scan(0))


def _thresholds(name: str, scan: Scan) -> LineChart:
    best = (scan.best_threshold, float(np.nanmax(scan.iou)))
    lines = [Line("IoU", scan.thresholds, scan.iou, mark=best)]
    lines += [Line(what, scan.thresholds, getattr(scan, what)) for what in ("precision", "recall")]
    return LineChart(f"{name}: threshold", "threshold", "score", tuple(lines), _SHARES, _ABOVE)


def _precision(name: str, scan: Scan) -> LineChart:
    line = Line(f"average precision {scan.average_precision:.3f}", scan.recall, scan.precision)
    return LineChart(f"{name}: precision and recall", "recall", "precision", (line,), _SHARES, _ABOVE)


def _calibration(name: str, calibration: Calibration) -> LineChart:
    told = f"error {calibration.expected_error:.3f}"
    found = Line(told, calibration.confidence, calibration.share, colour=SERIES[2])
    lines = (Line("", _SHARES, _SHARES, dashed=True), found)
    return LineChart(f"{name}: calibration", "probability", "share that is true", lines, _SHARES, _ABOVE)


def _threshold_table(scan: Scan) -> Table:
    columns = [Column("threshold", "number"), *(Column(name, "share") for name in ("IoU", "F1", "precision", "recall"))]
    cells = np.column_stack([scan.thresholds, scan.iou, scan.f1, scan.precision, scan.recall])[25::25]
    return Table(tuple(columns), tuple(tuple(map(float, row)) for row in cells), "Scores by threshold")


def _histogram(name: str, pixels: np.ndarray) -> LineChart:
    edges = np.linspace(0, 1, len(pixels) + 1)
    heights = np.repeat(np.where(pixels > 0, pixels / max(pixels.sum(), 1), np.nan), 2)
    line = Line("", np.repeat(edges, 2)[1:-1], heights, colour=SERIES[4])
    return LineChart(f"{name}: how sure", "probability", "share of pixels", (line,), _SHARES, _ABOVE)


def _rasters(scores: Scores) -> Table:
    columns = [
        Column("raster"),
        Column("dataset"),
        Column("split"),
        *map(_column, ("iou", "f1", "precision", "recall")),
    ]
    columns += [Column("loss", "number", "mean cross-entropy, nats"), Column("labelled pixels", "count")]
    rows: list[tuple[Cell, ...]] = []
    for row in sorted(scores.rows, key=lambda row: np.nan_to_num(row.confusion.mean_iou, nan=2)):
        table = row.confusion
        means = [table.average(score) for score in ("iou", "f1", "precision", "recall")]
        rows.append((Path(row.path).name, row.tag, row.split, *means, row.windows.loss, table.total))
    return Table(tuple(columns), tuple(rows), "Worst first; of several classes the mean")


def _worst(samples: Sequence[Sample], legend: Legend) -> Iterator[Block]:
    yield Paragraph(
        f"Windows of about {SIDE} x {SIDE} px with the lowest IoU; those with less than {FEW_WRONG:.0%} of pixels "
        "wrong come after all others. Outcome: hits green, misses blue, false alarms red."
    )
    if not samples:
        yield Paragraph("No window has a wrong pixel.")
    rows = []
    for sample in samples:
        panels = sample.panels(legend)
        captions = ("image", "truth", "prediction", "outcome")
        pictures = [
            Picture(blend(to_rgb(panel.image), panel.overlay), text)
            for panel, text in zip(panels, captions, strict=True)
        ]
        rows.append((sample.title.replace("\n", ": "), tuple(pictures)))
    yield Gallery(tuple(rows))


def _maps(scores: Scores, overviews: Mapping[int, Overview]) -> Iterator[Block]:
    legend = ", ".join(
        f"{step / len(SCORE_COLOURS):.1f} to {(step + 1) / len(SCORE_COLOURS):.1f} {name}"
        for step, name in enumerate(("red", "orange", "yellow", "pale blue", "blue"))
    )
    yield Paragraph(
        f"Drag the dividers: the image; hits green, misses blue, false alarms red; the IoU of each window ({legend}; "
        "no colour where there is neither object nor prediction)."
    )
    shown = [row for row in scores.rows if row.scene in overviews]
    for row in shown:
        overview = overviews[row.scene]
        image = to_rgb(overview.image)
        outcome = blend(image, outcome_overlay(overview.truth, overview.classes))
        pictures = (
            Picture(image, "image"),
            Picture(outcome, "outcome"),
            Picture(blend(image, score_overlay(row, overview)), "IoU by window"),
        )
        yield Swipe(pictures, f"{Path(row.path).name} ({row.split}): IoU {written(row.confusion.mean_iou)}")
    if len(shown) < len(scores.rows):
        yield Paragraph(f"The {len(shown)} worst of {len(scores.rows)} rasters are shown.")


def score_overlay(row: Score, overview: Overview) -> np.ndarray:
    """Windows in the colours of their IoU, uint8 (rows, cols, 4), over an overview."""
    overlay = np.zeros((*overview.truth.shape, 4), np.uint8)
    for number, iou in enumerate(row.windows.iou):
        starts = zip(row.windows.roi(number), overview.origin, strict=True)
        place = tuple(
            slice(max(0, -((origin - axis.start) // overview.step)), max(0, -((origin - axis.stop) // overview.step)))
            for axis, origin in starts
        )
        if not np.isnan(iou):
            colour = SCORE_COLOURS[min(int(iou * len(SCORE_COLOURS)), len(SCORE_COLOURS) - 1)]
            shown = overlay[place]
            shown[:] = (*bytes.fromhex(colour[1:]), 255)
            edge = 2 if min(shown.shape[:2]) > 30 else 1
            shown[edge:-edge, edge:-edge, 3] = 110
    overlay[overview.truth == UNLABELLED] = (0, 0, 0, 90)
    return overlay


def _column(score: str) -> Column:
    return Column(_NAMES.get(score, score), "number" if score == "mcc" else "share", _MEANINGS[score])
