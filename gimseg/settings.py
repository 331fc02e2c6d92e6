"""How a network is trained: one value."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from gimseg.augmentation import Augmentation
from gimseg.errors import TrainingError
from gimseg.folds import parse_fold
from gimseg.losses import parse_loss
from gimseg.optimisers import OPTIMISERS, SCHEDULES

PRECISIONS = {"auto": "", "float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}
"""Arithmetic by name, as lightning names it."""

NORMALISATIONS = ("model", "dataset", "percentile", "none")
_TINY, _BELOW_1 = 5e-324, math.nextafter(1.0, 0.0)
_CHOICES: dict[str, Collection[str]] = {
    "optimiser": OPTIMISERS,
    "schedule": SCHEDULES,
    "precision": PRECISIONS,
    "balance_by": ("dataset", "raster"),
    "points_by": ("uniform", "class"),
    "normalise": NORMALISATIONS,
}
_MANY = sys.float_info.max
_RANGES: tuple[tuple[tuple[str, ...], float, float, str], ...] = (
    (("epochs", "windows_per_epoch", "window", "batch", "accumulate", "devices"), 1, _MANY, "1 or more"),
    (("learning_rate", "minutes", "resolutions"), _TINY, _MANY, "above 0 and finite"),
    (("warmup", "averaging", "val_share", "swa", "hard_share", "old_share"), 0, _BELOW_1, "at least 0 and below 1"),
    (("object_share", "balance", "class_balance", "empty_share"), 0, 1, "0 to 1"),
    (("encoder_rate", "gradient_clip", "weight_decay", "points", "patience", "exemplars"), 0, _MANY, "0 or more"),
)


@dataclass(frozen=True)
class Settings:
    """How a network is trained. The defaults did best in the project's own tables.

    Args:
        network: architecture, by its name in segmentation-models-pytorch.
        encoder: encoder, by its name there (``tu-…``: timm).
        encoder_weights: pretrained weights of the encoder, by name or a file of them
            (``.safetensors``, ``.pth``), or None for random ones.
        network_options: further arguments of the architecture; None: see :attr:`options`.
        loss: sum of losses by name, as in ``0.5*bce + focal_tversky(exponent=0.75)``
            or ``dice + ramp(0, 1)*boundary``; ``ce`` is ``bce`` where there is one class.
        optimiser: ``muon``, ``adamw``, ``adam`` or ``sgd``.
        learning_rate: the highest rate.
        encoder_rate: what the encoder's rate is multiplied with: below 1 where it is pretrained.
        gradient_clip: greatest norm of all gradients of a step together; 0: any.
        weight_decay: decay of weights.
        schedule: ``one_cycle``, ``cosine``, ``step``, ``plateau`` or ``constant``.
        warmup: share of the training in which the rate rises, 0 to 1.
        averaging: decay of the moving average of the weights; 0: none.
        epochs: times that ``windows_per_epoch`` windows are drawn.
        windows_per_epoch: number of windows between two looks at the validation ground.
        window: side of a window, px.
        batch: windows in a batch.
        patience: epochs without gain after which training stops; 0: never.
        min_gain: least gain of validation IoU that counts.
        minutes: most minutes of training; the schedule fits itself to them.
        precision: ``auto``, ``float32`` or ``bfloat16`` (or ``float16`` on a GPU).
        object_share: share of the windows that are drawn near objects.
        balance: 0 draws from datasets in proportion to their ground, 1 from all alike.
        val_share: share of the ground held out where no dataset is for validation.
        augmentation: how training windows are varied; None: not at all.
        seed: seed of everything that is drawn.
        workers: processes that read windows; None: chosen by the number of cores.
        exemplars: labelled windows kept in the model for replay.
        balance_by: ``dataset``, or ``raster``: what `balance` makes alike.
        class_balance: the same for classes, among the windows near objects.
        empty_share: share of the windows that hold no object, 0 to 1; None: as they come.
        hard_share: share of the windows that are drawn where the loss was high.
        fold: as ``"1/5"``: of 5 groups of datasets the first is for validation; see
            :func:`gimseg.folds.take_fold`.
        points: points that take the place of dense labels in training, for each piece of
            ground as large as a window; 0: all pixels.
        points_by: ``uniform``, or ``class``: as many points for each class.
        accumulate: batches whose gradients make one step.
        swa: share of the training, at its end, over which weights are averaged alike, at
            a constant rate; takes the place of `averaging`. 0: none.
        frozen_encoder: its weights and statistics stay as they came.
        frozen_statistics: normalisation keeps the means and deviations that it came with.
        devices: processors of the kind `device` that learn side by side, each with
            batches of its own.
        tensorboard: write event files for TensorBoard too.
        normalise: how values are brought to the network: ``model`` (mean and deviation of all
            training ground), ``dataset`` (those of each dataset; a raster that is predicted has its
            own), ``percentile`` (2nd and 98th to -1 and 1), ``none``.
        old_share: share of the old model's weights in the new one, 0 to below 1, or None: by how much is
            labelled, see :func:`gimseg.correction.learning.usual_share`; of corrections alone
            (weight-space ensembles, Wortsman et al. 2022, arXiv 2109.01903: 1 - their alpha).
        resolutions: ground sizes of a pixel that windows are shown at, each as often, in
            the unit of ``spatial_resolution``; empty: that of the datasets.

    Raises:
        TrainingError: a value is out of range.
        LossError: the loss has no such name or argument.
    """

    network: str = "Unet"
    encoder: str = "tu-resnet18"
    encoder_weights: str | None = None
    network_options: Mapping[str, Any] | None = None
    loss: str = "ce + dice"
    optimiser: str = "muon"
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    schedule: str = "cosine"
    warmup: float = 0.1
    averaging: float = 0.99
    epochs: int = 30
    windows_per_epoch: int = 320
    window: int = 256
    batch: int = 8
    patience: int = 0
    min_gain: float = 0.001
    minutes: float | None = None
    precision: str = "auto"
    object_share: float = 0.5
    balance: float = 0.5
    val_share: float = 0.15
    augmentation: Augmentation | None = field(default_factory=Augmentation)
    seed: int = 0
    workers: int | None = None
    exemplars: int = 32
    encoder_rate: float = 1.0
    gradient_clip: float = 0.0
    balance_by: str = "dataset"
    class_balance: float = 0.0
    empty_share: float | None = None
    hard_share: float = 0.0
    fold: str | None = None
    points: int = 0
    points_by: str = "uniform"
    accumulate: int = 1
    swa: float = 0.0
    frozen_encoder: bool = False
    frozen_statistics: bool = False
    devices: int = 1
    tensorboard: bool = False
    normalise: str = "model"
    old_share: float | None = 0.0
    resolutions: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "resolutions", tuple(float(size) for size in self.resolutions))
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise TrainingError(f"{name} {getattr(self, name)!r} is unknown: give one of {', '.join(known)}")
        for names, least, most, needed in _RANGES:
            for name in names:
                given = getattr(self, name)
                for value in given if isinstance(given, tuple) else (given,):
                    if value is not None and not least <= value <= most:
                        raise TrainingError(f"{name} is {value}: it must be {needed}")
        if self.hard_share and self.devices > 1:
            raise TrainingError("hard_share needs one device: several do not know one another's losses")
        if self.fold is not None:
            parse_fold(self.fold)
        parse_loss(self.loss)

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of the architecture: as given, or for U-Nets depth 4 and a slim decoder.

        With ResNet-18 these are 3.6 M weights instead of 14.3 M.
        """
        if self.network_options is not None:
            return dict(self.network_options)
        slim = self.network.casefold() in ("unet", "unetplusplus", "attentionunet")
        return {"encoder_depth": 4, "decoder_channels": (128, 64, 32, 16)} if slim else {}

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the optimiser in an epoch."""
        batches = math.ceil(math.ceil(self.windows_per_epoch / self.devices) / self.batch)
        return math.ceil(batches / self.accumulate)
