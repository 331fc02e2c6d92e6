"""The options of ``gimseg train`` that are fields of its settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

_CHOICES = {
    "--optimiser": ("muon", "adamw", "adam", "sgd"),
    "--schedule": ("one_cycle", "cosine", "step", "plateau", "constant"),
    "--precision": ("auto", "float32", "bfloat16", "float16"),
    "--balance-by": ("dataset", "raster"),
    "--points-by": ("uniform", "class"),
    "--normalise": ("model", "dataset", "percentile", "none"),
}


class Numbers(click.ParamType[tuple[float, ...]]):
    """Numbers with commas between them."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """The numbers, or wrong usage."""
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of numbers such as 0.3,0.5", param, ctx)


class SettingOption(click.Option):
    """An option that is a field of :class:`gimseg.settings.Settings`, which has a table of its own in files."""


_OPTIONS: tuple[tuple[str, Any, str], ...] = (
    ("--network", str, "Architecture: one of segmentation-models-pytorch, AttentionUnet or FCDenseNet."),
    ("--encoder", str, "Its encoder; tu-NAME for one of timm."),
    ("--encoder-weights", str, "Pretrained weights of the encoder: a name, as imagenet, or a file. [default: random]"),
    ("--encoder-rate", float, "What the encoder's learning rate is multiplied with."),
    ("--frozen-encoder", bool, "Keep the encoder as it came."),
    ("--frozen-statistics", bool, "Keep the means and deviations of the normalisation as they came."),
    ("--loss", str, 'Losses by name and their sums, as "0.5*bce + focal_tversky".'),
    ("--optimiser", str, "Optimiser."),
    ("--learning-rate", float, "Highest learning rate."),
    ("--weight-decay", float, "Decay of the weights."),
    ("--schedule", str, "Learning rate over time."),
    ("--warmup", float, "Share of the training in which the rate rises."),
    ("--gradient-clip", float, "Greatest norm of the gradients of a step; 0: any."),
    ("--accumulate", int, "Batches whose gradients make one step."),
    ("--averaging", float, "Decay of the moving average of the weights; 0: none."),
    ("--swa", float, "Share of the training, at its end, over which weights are averaged alike."),
    ("--epochs", int, "Looks at the validation ground."),
    ("--windows-per-epoch", int, "Windows drawn between two looks."),
    ("--window", int, "Side of a window, px."),
    ("--batch", int, "Windows in a batch, on each device."),
    ("--patience", int, "Stop after so many epochs without gain; 0: never."),
    ("--min-gain", float, "Least gain of validation IoU that counts."),
    ("--minutes", float, "Most minutes of training."),
    ("--precision", str, "Arithmetic of the network."),
    ("--normalise", str, "How values are brought to the network."),
    ("--resolutions", Numbers(), "Ground sizes of a pixel that windows are shown at, as 0.3,0.5."),
    ("--object-share", float, "Share of the windows drawn near objects."),
    ("--empty-share", float, "Share of the windows that hold no object. [default: as they come]"),
    ("--hard-share", float, "Share of the windows drawn where the loss was high."),
    ("--balance", float, "0: datasets are drawn by their ground; 1: alike."),
    ("--balance-by", str, "What --balance makes alike."),
    ("--class-balance", float, "0: classes are drawn by their ground; 1: alike."),
    ("--points", int, "Points in place of dense labels, on ground as large as a window; 0: all pixels."),
    ("--points-by", str, "Points drawn from all pixels alike, or as many for each class."),
    ("--val-share", float, "Share of the ground held out where nothing is for validation."),
    ("--fold", str, "1/5: of five groups of datasets the first is for validation."),
    ("--seed", int, "Seed of all that is drawn."),
    ("--workers", int, "Processes that read windows."),
    ("--devices", int, "GPUs that learn side by side."),
    ("--tensorboard", bool, "Write event files for TensorBoard too."),
    ("--exemplars", int, "Labelled windows kept in the model."),
)


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of ``train`` that are fields of its settings; what is not given keeps its default."""
    for name, kind, text in reversed(_OPTIONS):
        if kind is bool:
            option = click.option(name, cls=SettingOption, is_flag=True, default=None, help=text)
        else:
            chosen = click.Choice(_CHOICES[name]) if name in _CHOICES else kind
            option = click.option(name, cls=SettingOption, type=chosen, default=None, help=text)
        command = option(command)
    return command
