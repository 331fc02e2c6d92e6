"""Compare losses: the same small network, windows and steps with each, scored on ground never learned from.

python examples/compare_losses.py -o comparison.md            # synthetic farmland, about 2 % of it buildings
python examples/compare_losses.py -o comparison.md --data data.toml

Writes a table and, beside it, a picture of the curves: IoU, false alarms and misses over the steps. The network
is tiny and the training short: the table compares losses, it does not say how well they can do.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from gimseg import Dataset
from gimseg.datasets import Datasets, read_datasets
from gimseg.labelled_windows import WindowRequest
from gimseg.legend import UNLABELLED
from gimseg.losses import parse_loss
from gimseg.sampling import Survey, WindowSampler, band_statistics, covering_windows
from gimseg.scenes import make_scene, write_scene
from gimseg.settings import Settings
from gimseg.training import survey_ground

FAMILIES = {
    "pixels": [
        "ce",
        "bce(pos_weight=20)",
        "focal",
        "focal(alpha=0.75)",
        "partial_ce",
        "border_ce",
    ],
    "regions": [
        "dice",
        "generalised_dice",
        "weighted_dice",
        "jaccard",
        "jaccard(positive=0.8, negative=0.2)",
        "lovasz",
    ],
    "false alarms against misses": [
        "tversky",
        "tversky(fp_weight=0.7, fn_weight=0.3)",
        "focal_tversky",
        "unified_focal",
    ],
    "distance and topology": [
        "boundary",
        "hausdorff",
        "cldice",
        "dice + ramp(0, 1)*boundary",
        "0.5*dice + 0.5*cldice",
    ],
    "sums": [
        "ce + dice",
        "ce + lovasz",
        "0.3*bce(pos_weight=2) + 0.3*focal(alpha=0.8, gamma=1.5) + 0.4*jaccard(positive=0.8, negative=0.2)",
    ],
}
WINDOW, BATCH, LOOKS = 64, 8, 10
SIDE = 192  # of the windows that are scored
LEARNED = (*(("farmland", seed) for seed in (1, 2, 3, 4, 5, 9, 10)), ("village", 1))
UNSEEN = (("farmland", 7), ("farmland", 8), ("village", 6))


class TinyUNet(nn.Module):
    """Three levels, six thousand weights."""

    def __init__(self, bands: int, width: int = 8) -> None:
        super().__init__()
        self.fine = _block(bands, width)
        self.middle = _block(width, 2 * width)
        self.coarse = _block(2 * width, 2 * width)
        self.up = _block(4 * width, width)
        self.head = nn.Conv2d(2 * width, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(N, bands, H, W) to logits (N, 1, H, W); H and W are multiples of 4."""
        fine = self.fine(image)
        middle = self.middle(F.max_pool2d(fine, 2))
        coarse = self.coarse(F.max_pool2d(middle, 2))
        middle = self.up(torch.cat([middle, F.interpolate(coarse, scale_factor=2.0)], 1))
        return self.head(torch.cat([fine, F.interpolate(middle, scale_factor=2.0)], 1))


def _block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


@dataclass(frozen=True)
class Counts:
    """Labelled pixels of the unseen ground by probability: objects and background, (101,) each."""

    objects: np.ndarray
    background: np.ndarray

    def outcome(self, threshold: int = 50) -> tuple[float, float, float]:
        """Hits, false alarms, misses at a threshold in percent."""
        hits = self.objects[threshold:].sum()
        return float(hits), float(self.background[threshold:].sum()), float(self.objects.sum() - hits)

    def iou(self, threshold: int = 50) -> float:
        """IoU of the objects."""
        hits, alarms, misses = self.outcome(threshold)
        return hits / max(1.0, hits + alarms + misses)

    @property
    def best(self) -> int:
        """The threshold of the highest IoU, percent."""
        return max(range(1, 100), key=self.iou)


@dataclass(frozen=True)
class Study:
    """The same for every loss: windows to learn from for each seed, ground to score on."""

    batches: dict[int, list[tuple[Tensor, Tensor]]]
    unseen: list[tuple[Tensor, Tensor]]
    share: float


def synthetic(folder: Path) -> Datasets:
    """Farmland with a village, buildings on about 2 % of the ground."""
    datasets = []
    for split, scenes, shape in (("train", LEARNED, (512, 512)), ("val", UNSEEN, (2 * SIDE, 2 * SIDE))):
        for style, seed in scenes:
            scene = make_scene(seed, shape, resolution=0.5, style=style, border=False)
            image, labels = write_scene(scene, folder, f"{style}{seed}")
            datasets.append(Dataset(f"{style}{seed}", 0.5, image, labels, split=split))
    return Datasets(tuple(datasets))


def prepare(datasets: Datasets, steps: int, seeds: int) -> Study:
    """Draw and read all windows."""
    ground = survey_ground(datasets, Settings(window=WINDOW))
    mean, std = (np.array(values, np.float32)[:, None, None] for values in band_statistics(ground.train))

    def read(surveys: tuple[Survey, ...], requests: tuple[WindowRequest, ...], size: int, split: str):
        images, labels = [], []
        for request in requests:
            scene = surveys[request.scene].scene
            roi = tuple(slice(centre - size // 2, centre + size // 2) for centre in (request.row, request.col))
            pixels, truth = scene.read(roi, split if scene.splits else None)
            images.append(np.where(pixels.valid, (pixels.data - mean) / std, 0))
            labels.append(np.where((truth > 0) & (truth < UNLABELLED), 1, truth))
        return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels))

    sampler = WindowSampler(ground.train, WINDOW, object_share=0.0)
    batches = {}
    for seed in range(seeds):
        images, labels = read(ground.train, sampler.draw(steps * BATCH, seed), WINDOW, "train")
        batches[seed] = list(zip(images.split(BATCH), labels.split(BATCH), strict=True))
    unseen = [read(ground.val, (request,), SIDE, "val") for request in covering_windows(ground.val, SIDE)]
    totals = np.sum([item.counts[:UNLABELLED] for item in ground.train], axis=0)
    return Study(batches, unseen, float(totals[1:].sum() / totals.sum()))


def learn(text: str, study: Study, seed: int) -> list[Counts]:
    """Scores after each part of the training."""
    torch.manual_seed(seed)
    batches = study.batches[seed]
    network = TinyUNet(batches[0][0].shape[1])
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.01, len(batches))
    looks, scores = np.linspace(0, len(batches), LOOKS + 1).round()[1:], []
    loss = parse_loss(text)
    for step, (images, labels) in enumerate(batches, 1):
        network.train()
        optimiser.zero_grad()
        loss.at(step / len(batches))(network(images), labels).backward()
        optimiser.step()
        schedule.step()
        if step in looks:
            scores.append(score(network.eval(), study))
    return scores


@torch.inference_mode()
def score(network: nn.Module, study: Study) -> Counts:
    """Histograms of the probability over the unseen ground."""
    counts = np.zeros((2, 101), np.int64)
    for image, labels in study.unseen:
        percent = (100 * torch.sigmoid(network(image)[:, 0])).int().numpy()
        for value in (0, 1):
            counts[value] += np.bincount(percent[labels.numpy() == value], minlength=101)
    return Counts(counts[1], counts[0])


def milliseconds(text: str, study: Study) -> float:
    """Processor time of a loss and its gradient, one window of SIDE x SIDE px with objects; the least of five."""
    _, labels = max(study.unseen, key=lambda window: int((window[1] == 1).sum()))
    logits = torch.randn(1, 1, *labels.shape[1:], generator=torch.Generator().manual_seed(0)).requires_grad_()
    taken = []
    for _ in range(5):
        started = time.process_time()
        parse_loss(text)(logits, labels).backward()
        taken.append(1000 * (time.process_time() - started))
    return min(taken)


def row(text: str, finals: list[Counts], cost: float) -> str:
    """One line of the table: means over the seeds."""
    parts = []
    for counts in finals:
        parts.append((*shares(counts), counts.best, counts.iou(counts.best)))
    iou, alarms, misses, best, best_iou = np.mean(parts, axis=0)
    spread = max(part[0] for part in parts) - min(part[0] for part in parts)
    ratio = f"{alarms / misses:.2f}" if misses > 0.0005 else "-"
    return (
        f"| `{text}` | {iou:.3f} (±{spread / 2:.3f}) | {alarms:.0%} | {misses:.0%} | {ratio} | "
        f"{best_iou:.3f} at {best / 100:.2f} | {cost:.1f} |"
    )


def shares(counts: Counts) -> tuple[float, float, float]:
    """IoU, and false alarms and misses for each true object pixel, at a threshold of 0.5."""
    hits, alarms, misses = counts.outcome()
    return counts.iou(), alarms / (hits + misses), misses / (hits + misses)


def draw(path: Path, curves: dict[str, np.ndarray], steps: int) -> None:
    """IoU, false alarms and misses over the steps, a column for each family; `curves` are (looks, 3) each."""
    figure = Figure(figsize=(17, 9), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    x = np.linspace(0, steps, LOOKS + 1).round()[1:]
    families = {name: [text for text in texts if text in curves] for name, texts in FAMILIES.items()}
    families["other"] = [text for text in curves if not any(text in texts for texts in families.values())]
    families = {name: texts for name, texts in families.items() if texts}
    panels = figure.subplots(3, len(families), sharex=True, sharey="row", squeeze=False)
    for column, (family, texts) in zip(panels.T, families.items(), strict=True):
        for text in texts:
            for axes, curve in zip(column, curves[text].T, strict=True):
                axes.plot(x, curve, marker=".", label=text if len(text) < 45 else "compound")
        column[0].set_title(family)
        column[-1].set_xlabel("steps")
        column[0].legend(frameon=False, fontsize=7)
    for row_of, name in zip(panels, ("IoU", "false alarms / true pixels", "misses / true pixels"), strict=True):
        row_of[0].set_ylabel(name)
        for axes in row_of:
            axes.grid(alpha=0.3)
    # Shared axes: set once, when all lines are there. False alarms go from none to many times the objects.
    panels[0, 0].set_ylim(bottom=0)
    panels[1, 0].set_yscale("symlog", linthresh=0.5)
    panels[1, 0].set_ylim(bottom=0)
    ticks = (0, 0.25, 0.5, 1, 2, 5, 10, 20, 40)
    panels[1, 0].set_yticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    panels[2, 0].set_ylim(0, 1.02)
    figure.savefig(path, dpi=75)


@click.command()
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Markdown table to write.")
@click.option("--data", type=click.Path(exists=True), help="Dataset file; without it synthetic scenes.")
@click.option("--steps", default=100, show_default=True, help="Steps of each training.")
@click.option("--seeds", default=2, show_default=True, help="Trainings of each loss.")
@click.option("--loss", "losses", multiple=True, help="Only this loss; can be given several times.")
def main(output: Path, data: str | None, steps: int, seeds: int, losses: tuple[str, ...]) -> None:
    """Train a tiny network with each loss, score it on ground that it has not seen."""
    with tempfile.TemporaryDirectory() as folder:
        study = prepare(read_datasets(data) if data else synthetic(Path(folder)), steps, seeds)
    lines = [
        f"Objects on {study.share:.1%} of the learned ground; {steps} steps of {BATCH} windows, {seeds} seeds.\n",
        "| loss | IoU at 0.5 | false alarms | misses | FP/FN | IoU at the best threshold | ms |",
        "|---|---|---|---|---|---|---|",
    ]
    curves = {}
    for text in losses or [text for texts in FAMILIES.values() for text in texts]:
        scores = [learn(text, study, seed) for seed in range(seeds)]
        curves[text] = np.mean([[shares(counts) for counts in run] for run in scores], axis=0)
        lines.append(row(text, [run[-1] for run in scores], milliseconds(text, study)))
        print(lines[-1], flush=True)
        output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    draw(output.with_suffix(".png"), curves, steps)


if __name__ == "__main__":
    main()
