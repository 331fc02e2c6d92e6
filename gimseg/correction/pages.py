"""The report of a correction as a page: verdict, scores, swipes, and what changed elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gimseg.correction.differences import COLOURS, Changed, Objects
from gimseg.correction.estimates import Estimate
from gimseg.correction.gate import TOLERANCE, Scored, Verdict
from gimseg.correction.proof import Models, Proof
from gimseg.correction.rounds import Correction
from gimseg.intervals import Interval
from gimseg.labelled_scenes import LabelledScene
from gimseg.legend import Legend
from gimseg.pictures import blend, label_overlay, to_rgb
from gimseg.report import Block, Column, Figures, Page, Paragraph, Picture, Section, Swipe, Table

MOST_LOOKS = 6


@dataclass(frozen=True, eq=False)
class Look:
    """A place before, after, and as it was drawn.

    Args:
        title: where it is.
        image: (bands, rows, cols), raster values.
        before: uint8 (rows, cols), class values.
        after: likewise.
        truth: likewise; 255 where nothing was drawn.
        score: how much there is to be seen.
    """

    title: str
    image: NDArray[np.float32]
    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    score: float

    def swipe(self, legend: Legend) -> Swipe:
        """The three over one another."""
        image = to_rgb(self.image)
        planes = (("before", self.before), ("after", self.after), ("truth", self.truth))
        pictures = (Picture(blend(image, label_overlay(labels, legend)), name) for name, labels in planes)
        return Swipe(tuple(pictures), self.title)


@dataclass(frozen=True, eq=False)
class RasterChange:
    """What changed in one raster.

    Args:
        scene: the raster.
        changed: pixels.
        objects: objects.
        image: a coarse picture of it, (bands, rows, cols) of the cells of the map.
    """

    scene: LabelledScene
    changed: Changed
    objects: Objects
    image: NDArray[np.float32]

    def text(self) -> str:
        """For people."""
        rest, objects = self.changed.rest, self.objects
        share = "nothing to compare" if math.isnan(rest.share) else f"{rest.share:.2%} of the pixels changed"
        return (
            f"{Path(self.scene.path).name}, where nothing was drawn: {share}; in all of it {objects.appeared:,} "
            f"objects appeared and {objects.vanished:,} vanished ({objects.before:,} before, {objects.after:,} after)"
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "raster": self.scene.path,
            "drawn": self.changed.drawn.to_dict(),
            "rest": self.changed.rest.to_dict(),
            "objects": self.objects._asdict(),
        }

    def picture(self) -> Picture:
        """The raster in grey, with what changed on it."""
        grey = np.repeat(to_rgb(self.image).mean(axis=2, keepdims=True), 3, axis=2) * 0.6 + 70
        overlay = np.zeros((*grey.shape[:2], 4), np.uint8)
        for name, plane in (("appeared", self.changed.gained), ("vanished", self.changed.lost)):
            share = plane.total / np.maximum(plane.valid, 1)
            colour = tuple(int(COLOURS[name][place : place + 2], 16) for place in (1, 3, 5))
            more = share > overlay[..., 3] / 255
            # A cell of which a tenth changed is seen as well as one that changed altogether.
            overlay[more] = np.column_stack([np.full((more.sum(), 3), colour), 255 * np.sqrt(share[more])])
        return Picture(blend(grey.astype(np.uint8), overlay), "changes")


def make_page(
    correction: Correction,
    models: Models,
    proof: Proof,
    changes: Sequence[RasterChange],
    looks: Sequence[Look],
    estimate: Estimate | None,
) -> Page:
    """The report of a correction."""
    legend = models.after.model.recipe.legend
    shown = sorted(looks, key=lambda look: -look.score)[:MOST_LOOKS]
    sections = [
        Section("Verdict", tuple(_verdict(proof))),
        Section("Before, after, truth", tuple(_swipes(shown, len(looks), legend))),
        Section("Scores", tuple(_scores(proof, legend))),
        Section("The rest of the raster", tuple(_rest(changes, estimate))),
    ]
    told = {
        "correction": str(correction.folder),
        "started": correction.started,
        "rasters": "\n".join(correction.rasters),
        **{f"model {when}": f"{each.model.name}, {each.model.folder}, {each.fingerprint}"
           for when, each in (("before", models.before), ("after", models.after))},
        "drawing": "\n".join(f"{id} {key}" for id, key in proof.key["drawing"].items()),
        "old test set": proof.test or ("none" if proof.old is None else "test windows that the model keeps"),
    }  # fmt: skip
    head = "accepted by the gate" if proof.verdict.passed else "held back by the gate"
    return Page(f"Correction {correction.id}: {head}", tuple(sections), ", ".join(correction.rasters), told)


def _verdict(proof: Proof) -> Iterator[Block]:
    verdict: Verdict = proof.verdict
    items = [("gate", "passed" if verdict.passed else "held back", "the old model stays" * (not verdict.passed))]
    for name, scored in proof.grounds.items():
        if scored is None:
            items.append((name, "–", "there is none"))
            continue
        one = scored.deployed
        items.append((f"{scored.measure}, {name}", f"{one.before.score:.3f} → {one.after.score:.3f}", _gain(one.gain)))
    yield Figures(tuple(items))
    for reason in verdict.reasons:
        yield Paragraph(f"{reason[0].upper()}{reason[1:]}.")
    for item in verdict.unguarded:
        yield Paragraph(f"Not guarded: {item}.")


def _swipes(looks: Sequence[Look], count: int, legend: Legend) -> Iterator[Block]:
    if not looks:
        yield Paragraph("Nothing was drawn that a picture shows.")
        return
    more = f" The {len(looks)} of {count} places where most is to be seen." if count > len(looks) else ""
    yield Paragraph(
        "Drag the dividers. Left: what the old model found; middle: what the new one finds; right: what was drawn, "
        f"hatched where nothing was.{more}"
    )
    for look in looks:
        yield look.swipe(legend)


def _scores(proof: Proof, legend: Legend) -> Iterator[Block]:
    columns = (
        Column("ground"), Column("threshold"), Column("score"), Column("before", "share"), Column("95 %"),
        Column("after", "share"), Column("95 %"), Column("gain", "change"), Column("95 %"),
        Column("blocks", "count", "blocks of ground, or windows, that were drawn for the intervals"),
    )  # fmt: skip
    rows = []
    for name, scored in proof.grounds.items():
        if scored is None:
            continue
        each = [("deployed", scored.measure, scored.deployed)]
        if scored.rescanned is not None:
            each.append((_thresholds(scored, legend), "IoU", scored.rescanned))
        for threshold, measure, one in each:
            cells = [cell for interval in (one.before, one.after, one.gain) for cell in _cells(interval)]
            rows.append((name, threshold, measure, *cells, scored.pieces))
    if not rows:
        yield Paragraph("No ground was held out, and the old model keeps no test windows: nothing can be scored.")
        return
    yield Table(columns, tuple(rows), "Both models on ground that neither learned", sortable=False)
    yield Paragraph(
        "“Deployed” is the threshold that each model carries; below it stands what the best threshold for that very "
        "ground would give, which flatters both alike. Intervals hold 95 % of the scores from drawing blocks of ground "
        f"again and again. The gate asks for a gain on the corrected ground and a loss of at most {TOLERANCE:g} IoU on "
        "what was held out of earlier corrections and on the old test set, at the deployed thresholds."
    )
    if not legend.is_binary:
        yield _by_class(proof, legend)


def _by_class(proof: Proof, legend: Legend) -> Table:
    rows: list[tuple[Any, ...]] = []
    for name, scored in proof.grounds.items():
        if scored is not None:
            pairs = zip(legend.names, scored.before.iou[1:], scored.after.iou[1:], strict=True)
            rows += [(name, item, float(one), float(two), float(two - one)) for item, one, two in pairs]
    columns = (
        Column("ground"), Column("class"), Column("IoU before", "share"), Column("IoU after", "share"),
        Column("gain", "change"),
    )  # fmt: skip
    return Table(columns, tuple(rows), "By class, at the deployed thresholds")


def _rest(changes: Sequence[RasterChange], estimate: Estimate | None) -> Iterator[Block]:
    if not changes:
        yield Paragraph("The rest of the raster was not looked at.")
    for change in changes:
        rest, objects = change.changed.rest, change.objects
        share = "–" if math.isnan(rest.share) else f"{rest.share:.2%}"
        yield Figures(
            (
                ("pixels changed where nothing was drawn", share, f"of {rest.seen:,}"),
                ("became an object", f"{rest.gained:,} px", ""),
                ("became background", f"{rest.lost:,} px", ""),
                ("objects appeared", f"{objects.appeared:,}", f"{objects.after:,} after"),
                ("objects vanished", f"{objects.vanished:,}", f"{objects.before:,} before"),
            )
        )
        colours = "Green became an object, red became background."
        yield Swipe((Picture(to_rgb(change.image), "image"), change.picture()), f"{change.text()}. {colours}")
    if estimate is not None:
        yield Paragraph(f"{estimate.text()[0].upper()}{estimate.text()[1:]}.")


def _thresholds(scored: Scored, legend: Legend) -> str:
    if not legend.is_binary:
        return "best for each class"
    before, after = (values[0] for values in scored.thresholds)
    return f"best: {before:.3g} → {after:.3g}"


def _cells(interval: Interval) -> tuple[float, str]:
    known = not math.isnan(interval.low)
    return float(interval.score), f"{interval.low:.2f} to {interval.high:.2f}".replace("-", "−") if known else "–"


def _gain(gain: Interval) -> str:
    known = not math.isnan(gain.low)
    return (f"{gain.score:+.3f}" + (f" ({gain.low:+.3f} to {gain.high:+.3f})" if known else "")).replace("-", "−")
