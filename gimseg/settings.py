"""How a network is trained: one value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gimseg.augmentation import Augmentation
from gimseg.errors import TrainingError
from gimseg.losses import parse_loss
from gimseg.optimisers import OPTIMISERS, SCHEDULES

PRECISIONS = {"auto": "", "float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}
"""Arithmetic by name, as lightning names it."""


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
        encoder_rate: what the encoder's rate is multiplied with: below 1 where it is pretrained.
        gradient_clip: greatest norm of all gradients of a step together; 0: any.
        frozen_statistics: normalisation keeps the means and deviations that it came with.

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
    frozen_statistics: bool = False

    def __post_init__(self) -> None:
        for name, known in (("optimiser", OPTIMISERS), ("schedule", SCHEDULES), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise TrainingError(f"{name} {getattr(self, name)!r} is unknown: give one of {', '.join(known)}")
        for name in ("epochs", "windows_per_epoch", "window", "batch", "learning_rate"):
            if not getattr(self, name) > 0:
                raise TrainingError(f"{name} is {getattr(self, name)}: it must be above 0")
        for name in ("warmup", "averaging", "val_share"):
            if not 0 <= getattr(self, name) < 1:
                raise TrainingError(f"{name} is {getattr(self, name)}: it must be at least 0 and below 1")
        for name in ("object_share", "balance"):
            if not 0 <= getattr(self, name) <= 1:
                raise TrainingError(f"{name} is {getattr(self, name)}: it must be 0 to 1")
        for name in ("encoder_rate", "gradient_clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise TrainingError(f"{name} is {getattr(self, name)}: it must be at least 0")
        if self.minutes is not None and not self.minutes > 0:
            raise TrainingError(f"minutes is {self.minutes}: it must be above 0")
        parse_loss(self.loss)

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of the architecture: as given, or for U-Nets depth 4 and a slim decoder.

        With ResNet-18 these are 3.6 M weights instead of 14.3 M.
        """
        if self.network_options is not None:
            return dict(self.network_options)
        slim = self.network.casefold() in ("unet", "unetplusplus")
        return {"encoder_depth": 4, "decoder_channels": (128, 64, 32, 16)} if slim else {}

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return math.ceil(self.windows_per_epoch / self.batch)
