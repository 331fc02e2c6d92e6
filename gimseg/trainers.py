"""Lightning's trainer as the settings want it: device, arithmetic, steps, logs, when to stop."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from gimseg.depthwise import depthwise_in_float32
from gimseg.errors import TrainingError
from gimseg.fitting import Fit
from gimseg.freed_memory import freed_memory_kept
from gimseg.settings import PRECISIONS, Settings
from gimseg.torchvision_ops import declare_missing_operators

declare_missing_operators()

from lightning.pytorch import Callback, LightningDataModule, Trainer  # noqa: E402
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint  # noqa: E402
from lightning.pytorch.loggers import TensorBoardLogger  # noqa: E402


def run_training(
    fit: Fit,
    windows: LightningDataModule,
    work: Path,
    device: str,
    callbacks: Sequence[Callback] = (),
    *,
    scored: bool = True,
) -> None:
    """Fit until the settings' end; go on from ``last.ckpt`` in `work` where it is.

    Args:
        fit: network, loss and settings.
        windows: to learn from, and to score on.
        work: folder of checkpoints and logs.
        device: ``auto``, ``cpu``, ``cuda``.
        callbacks: beside those that the settings ask for.
        scored: there is ground to choose the best epoch by.

    Of several processes that learn side by side only the first comes back: the others have
    nothing more to do, and end.

    Raises:
        TrainingError: the devices or the log that were asked for are not there.
        KeyboardInterrupt: the user stopped it.
    """
    trainer = make_trainer(fit.settings, work, device, callbacks, scored=scored)
    last = work / "last.ckpt"
    on_cpu = trainer.strategy.root_device.type == "cpu"
    try:
        with ExitStack() as held:
            if on_cpu:
                held.enter_context(freed_memory_kept())
            if on_cpu and trainer.precision == PRECISIONS["bfloat16"]:
                held.enter_context(depthwise_in_float32(fit.network))
            trainer.fit(fit, datamodule=windows, ckpt_path=str(last) if last.exists() else None, weights_only=True)
    except SystemExit:
        # Lightning ends the process on Ctrl-C; what ends a process is the command's to say.
        if not trainer.interrupted:
            raise
        raise KeyboardInterrupt from None
    if not trainer.is_global_zero:
        sys.exit(0)


def is_first_process() -> bool:
    """Whether this process is not one that lightning started beside another, to learn on a further device."""
    return os.environ.get("LOCAL_RANK", "0") == "0" and os.environ.get("NODE_RANK", "0") == "0"


def make_trainer(
    settings: Settings, work: Path, device: str, callbacks: Sequence[Callback] = (), *, scored: bool
) -> Trainer:
    """Lightning's trainer; see :func:`run_training`."""
    own: list[Any] = []
    if scored:
        own.append(_keep("best", work, monitor="val_iou", mode="max"))
    # A checkpoint of its own, after the best is known: lightning's `save_last` saves only when the best changes.
    own.append(_keep("last", work))
    if settings.patience and scored:
        stop = EarlyStopping("val_iou", settings.min_gain, settings.patience, mode="max", check_on_train_epoch_end=True)
        own.append(stop)
    _quiet_lightning()
    return Trainer(
        accelerator={"auto": "auto", "cuda": "gpu"}.get(device, device),
        devices=settings.devices,
        # An encoder that is cut short keeps layers that no gradient reaches.
        strategy="ddp_find_unused_parameters_true" if settings.devices > 1 else "auto",
        precision=_precision(settings.precision, device),  # type: ignore[arg-type]
        max_epochs=settings.epochs,
        callbacks=[*callbacks, *own],
        logger=_logger(settings, work),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        gradient_clip_val=settings.gradient_clip or None,
        accumulate_grad_batches=settings.accumulate,
        reload_dataloaders_every_n_epochs=1,
        log_every_n_steps=10,
    )


def _keep(name: str, work: Path, **chosen: Any) -> ModelCheckpoint:
    return ModelCheckpoint(
        work, filename=name, save_top_k=1, enable_version_counter=False, save_on_train_epoch_end=True, **chosen
    )


def _logger(settings: Settings, work: Path) -> TensorBoardLogger | bool:
    if not settings.tensorboard:
        return False
    if not any(importlib.util.find_spec(name) for name in ("tensorboard", "tensorboardX")):
        raise TrainingError(
            "tensorboard = true needs one of the packages tensorboard and tensorboardX: pip install "
            "gimseg[tensorboard], or leave it out; metrics.csv is always written"
        )
    return TensorBoardLogger(work, name="tensorboard", version="")


def _precision(name: str, device: str) -> str:
    """Lightning's name; ``auto`` is bfloat16 where the device computes it faster than float32."""
    if name == "auto":
        if device != "cpu" and torch.cuda.is_available():
            name = "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
        else:
            name = "bfloat16" if _cpu_computes_bfloat16() else "float32"
    return PRECISIONS[name]


def _cpu_computes_bfloat16() -> bool:
    """Without these instructions bfloat16 is emulated, at a sixth of the speed of float32."""
    capability = torch.backends.cpu.get_cpu_capability()
    return capability.startswith("AVX512") and bool(torch.cpu._is_avx512_bf16_supported())


def _quiet_lightning() -> None:
    """Our own lines say what these would, with what to do."""
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\.")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
