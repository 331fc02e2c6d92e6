"""Which of several ways to compute a network is the fastest here, and a memory of what was found."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

from gimseg import __version__
from gimseg.outputs import write_text
from gimseg.recipes import Recipe

Compute = Callable[[torch.Tensor], torch.Tensor]
"""Normalised images (N, bands, rows, cols) to logits."""
AGREEMENT = 0.9995
"""Share of pixels whose class must be that of float32."""
_GAIN = 0.95
_REMEMBERED = 200


@dataclass(frozen=True)
class Trial:
    """How one way did.

    Args:
        name: of the backend.
        seconds_per_mpx: of window, not of raster.
        agreement: share of pixels of the same class as the reference, 0 to 1.
    """

    name: str
    seconds_per_mpx: float
    agreement: float


def run_trial(
    name: str, compute: Compute, images: Sequence[torch.Tensor], recipe: Recipe, reference: Sequence[np.ndarray] = ()
) -> tuple[Trial, list[np.ndarray]]:
    """Compute images, the first once more beforehand, since what is done for the first time takes longer.

    Args:
        name: of the backend.
        compute: its network.
        images: (N, bands, rows, cols) each.
        recipe: makes classes of logits.
        reference: classes of each of the images; none: these will be the reference.

    Returns:
        how it did, and the classes of each of the images.
    """
    compute(images[0])
    seconds = []
    classes = []
    for image in images:
        started = time.perf_counter()
        logits = compute(image)
        seconds.append((time.perf_counter() - started) / (image[:, 0].numel() / 1e6))
        classes.append(recipe.classify(logits))
    same = [np.mean(mine == other) for mine, other in zip(classes, reference or classes, strict=True)]
    return Trial(name, min(seconds), float(np.mean(same))), classes


def choose(trials: Sequence[Trial]) -> Trial:
    """The fastest that agrees; the first, the reference, where the gain is not worth a change.

    Example:
        >>> slow, wrong, quick = Trial("a", 4.0, 1.0), Trial("b", 1.0, 0.99), Trial("c", 2.0, 0.9999)
        >>> choose([slow, wrong, quick]).name
        'c'
        >>> choose([slow, Trial("d", 3.9, 1.0)]).name
        'a'
    """
    right = [trial for trial in trials[1:] if trial.agreement >= AGREEMENT]
    best = min(right, key=lambda trial: trial.seconds_per_mpx, default=trials[0])
    return best if best.seconds_per_mpx < _GAIN * trials[0].seconds_per_mpx else trials[0]


def noise(bands: int, shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """Normalised float32 (1, bands, rows, cols) with detail of every size and hard edges, as images have them."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(1, bands, *shape)
    for cells in (2, 4, 8, 16, 32, 64):
        coarse = torch.randn(1, bands, cells, cells, generator=generator)
        image += interpolate(coarse, shape, mode="nearest" if cells in (8, 32) else "bilinear") / cells**0.25
    image += 0.1 * torch.randn(image.shape, generator=generator)
    return (image - image.mean()) / image.std()


class Memory:
    """What trials have found on this machine, in a small file; losing it costs a new trial and nothing else.

    Args:
        path: the file; None: in the user's folder for caches.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or cache_folder() / "backends.json"

    def recall(self, key: str) -> list[Trial]:
        """The trials under a key, in the order of their making; [] where nothing, or nothing legible, is kept."""
        try:
            return [Trial(**trial) for trial in self._read()[key]]
        except (KeyError, TypeError):
            return []

    def keep(self, key: str, trials: Sequence[Trial]) -> None:
        """Keep trials; a folder that cannot be written is no error."""
        kept = {name: value for name, value in self._read().items() if name != key}
        latest = dict(list(kept.items())[1 - _REMEMBERED :]) | {key: [asdict(trial) for trial in trials]}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps(latest, indent=1))
        except OSError:
            return

    def _read(self) -> dict[str, Any]:
        try:
            table = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return table if isinstance(table, dict) else {}


def trial_key(**what: Any) -> str:
    """Changes with machine, versions and all that is given: 16 hexadecimal digits."""
    here: Mapping[str, Any] = {
        "machine": (platform.node(), platform.machine(), torch.backends.cpu.get_cpu_capability()),
        "threads": torch.get_num_threads(),
        "versions": (__version__, torch.__version__, *map(_version, ("openvino", "segmentation-models-pytorch"))),
    }
    text = json.dumps({**here, **what}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """Where the user's caches belong on this platform: XDG_CACHE_HOME, ~/Library/Caches or LOCALAPPDATA."""
    named = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", "")
    if Path(named).is_absolute():
        return Path(named) / "gimseg"
    # No home either, as for some services: then nothing is kept.
    home = Path(os.path.expanduser("~"))
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "gimseg"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"
