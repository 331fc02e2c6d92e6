"""Raster and model to a mask: in blocks, in bounded memory, and resumable.

Reading, the network and writing overlap in time: one thread reads and normalises a
few blocks ahead, the caller's runs the network, one writes what is finished.
"""

from __future__ import annotations

import inspect
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from odc.geo.geobox import GeoBox

from gimseg.arrays import PredictedArray, array_raster, from_xarray, is_xarray
from gimseg.assembly import assemble, name_counts, plane_reader, plane_slices
from gimseg.averaging import Augmentations, Models, load_models
from gimseg.backends import open_backend
from gimseg.errors import PredictionError
from gimseg.legend import UNLABELLED
from gimseg.matching import ReadPlanes
from gimseg.models import Model
from gimseg.parts import Parts
from gimseg.preflight import Options, Plan, Rasters, choose_bands, plan_lattice, plan_prediction, plan_raster
from gimseg.products import Products, to_shares
from gimseg.progress import Progress, format_duration, silent
from gimseg.rasters import RasterView, Roi
from gimseg.stitching import Mosaic, stitch
from gimseg.tiling import Block, Lattice, chunks, plan_blocks, plan_windows, shift

__all__ = ["Options", "Plan", "Prediction", "Predictor", "predict"]

_AHEAD = 2
T = TypeVar("T")


@dataclass(frozen=True)
class Prediction:
    """What a run has made.

    Args:
        path: of the mask.
        counts: pixels by class name; besides ``background`` and ``no data``.
        shape: rows and columns of the mask, px.
        seconds: that this run took.
        blocks: of the raster.
        resumed: blocks that an earlier run had finished.
        notes: what a person should know.
    """

    path: Path
    counts: dict[str, int]
    shape: tuple[int, int]
    seconds: float
    blocks: int
    resumed: int
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """A line for people, and the notes."""
        valid = sum(self.counts.values()) - self.counts["no data"]
        named = [name for name in self.counts if name not in ("background", "no data")]
        shares = ", ".join(f"{name} {self.counts[name] / max(valid, 1):.1%}" for name in named)
        head = f"{self.path}: {self.shape[1]} x {self.shape[0]} px, {shares}, in {format_duration(self.seconds)}"
        return "\n".join([head, *self.notes])


class _Loaded(NamedTuple):
    block: Block
    image: np.ndarray | None
    """float32 (bands, rows, cols) of `block.read`; None: nothing to predict."""
    wanted: np.ndarray
    """bool (rows, cols) of `block.core`: valid and inside the AoI."""


class Predictor:
    """A loaded network for any number of rasters.

    Args:
        model: a Model, its folder, or ``"builtin"``; several, whose probabilities are averaged.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
        precision: ``"float32"``, ``"bfloat16"``, or ``"auto"``: bfloat16 on CUDA, float32 elsewhere.
        batch: windows at once; None: 1, and 4 on CUDA.
        tta: views of the image that probabilities are averaged over: ``"flips"``, four,
            or ``"symmetries"``, eight: that many times the work.

    Raises:
        PredictionError: there is no such device or precision, or models do not belong together.
        ModelError: the model cannot be loaded.

    Example::

        predictor = Predictor("models/buildings")
        for path in images:
            predictor.predict(path, output=path.with_suffix(".mask.tif"))
    """

    def __init__(
        self,
        model: Models = "builtin",
        *,
        device: str = "auto",
        precision: str = "auto",
        batch: int | None = None,
        tta: Augmentations | None = None,
    ) -> None:
        self.model = load_models(model, tta)
        self.device = _choose_device(device)
        self.backend = open_backend(self.model, self.device, precision=precision)
        self.batch = batch or (4 if self.device.type == "cuda" else 1)
        self.fingerprint = self.model.fingerprint()

    def plan(self, raster: Rasters, output: str | os.PathLike[str], **options: Any) -> Plan:
        """Check everything that can be checked before the first window; see :func:`predict` for the options.

        Raises:
            GimsegError: what stands in the way.
        """
        engine = {"device": self.device.type, "backend": self.backend.name, "batch": self.batch}
        return plan_prediction(raster, output, self.model, self.fingerprint, engine, Options(**options))

    def predict(
        self,
        raster: Rasters,
        output: str | os.PathLike[str],
        *,
        progress: Progress = silent,
        **options: Any,
    ) -> Prediction:
        """A raster to a mask; see :func:`predict`."""
        return self.run(self.plan(raster, output, **options), progress=progress)

    def run(self, plan: Plan, *, progress: Progress = silent) -> Prediction:
        """Do what was planned.

        Raises:
            PredictionError: another run is writing this output.
            ResumeError: finished blocks are there that belong to another run.
            RasterError: a window cannot be read; finished blocks stay.
            OutputError: the disk refuses.
        """
        started = time.monotonic()
        with Parts(plan.output, plan.identity, planes=plan.planes, restart=plan.options.restart) as parts:
            todo = [block for block in plan.blocks if not parts.has(block)]
            self._predict_blocks(plan, parts, todo, progress)
            counts = assemble(plan, parts, progress)
            parts.remove()
        return Prediction(
            path=plan.output,
            counts=name_counts(counts, self.model.recipe.legend),
            shape=plan.shape,
            seconds=time.monotonic() - started,
            blocks=len(plan.blocks),
            resumed=len(plan.blocks) - len(todo),
            notes=plan.notes,
        )

    def predict_array(self, array: Any, geobox: GeoBox | None = None, **options: Any) -> PredictedArray:
        """Segment an array in memory; reads and writes no file.

        What is predicted is, byte for byte, what a file of these pixels on this grid gives.

        Args:
            array: numpy (bands, rows, cols) or (rows, cols), or an xarray DataArray or
                Dataset, whose grid odc-geo finds. Its bands are counted from 1, as those of a file.
            geobox: grid of a numpy array.
            **options: fields of :class:`gimseg.preflight.Options`. ``nodata`` is a number.
                ``match_input=True`` gives the result on the array's own grid.

        Returns:
            classes, and what else ``products`` asks for.

        Raises:
            GimsegError: array, grid, model and options do not fit.
        """
        chosen = Options(**options)
        if is_xarray(array):
            array, geobox, nodata = from_xarray(array)
            chosen = chosen if chosen.nodata is not None else replace(chosen, nodata=nodata)
        if geobox is None or isinstance(chosen.nodata, str):
            raise PredictionError("an array needs a geobox, and its nodata is a number or nothing")
        bands = choose_bands(self.model.recipe, chosen)
        plan = plan_raster(array_raster(array, geobox, bands=bands, nodata=chosen.nodata), self.model, chosen)
        predicted = np.full((plan.planes, *plan.lattice.shape), UNLABELLED, np.uint8)
        for block in plan.blocks:
            predicted[:, *block.core] = self._predict_loaded(plan, _load(plan, self.model, block))
        return _to_array(plan, plane_reader(plan, lambda roi: predicted[:, *roi]))

    def blocks(self, view: RasterView, block_size: int = 2048) -> Iterator[tuple[Roi, np.ndarray]]:
        """Predict a raster block by block, writing nothing.

        Args:
            view: the raster on the grid to predict, with the model's bands.
            block_size: side of a block, px: memory grows with it, the result does not change.

        Yields:
            the block's place on the grid, and its classes: uint8 (rows, cols), 255
            where there is no image.

        Raises:
            RasterError: a window cannot be read.
        """
        lattice = plan_lattice((view.shape[0], view.shape[1]), self.model)
        for block in plan_blocks(lattice, block_size):
            pixels = view.read(block.read)
            wanted = pixels.valid[shift(block.core, block.read)]
            image = self.model.recipe.prepare(pixels)
            yield block.core, self.predict_block(image, block, lattice, wanted, Products())[0]

    def predict_block(
        self, image: np.ndarray, block: Block, lattice: Lattice, wanted: np.ndarray, products: Products
    ) -> np.ndarray:
        """What is kept of a block.

        Args:
            image: normalised float32 (bands, rows, cols) of `block.read`.
            block: where.
            lattice: of the raster.
            wanted: bool (rows, cols) of `block.core`; other pixels become 255, and
                windows without any are not computed.
            products: what is kept of each pixel.

        Returns:
            uint8 (planes, rows, cols) of `block.core`.
        """
        mosaic = Mosaic(block.core, len(products.planes(self.model.recipe.legend)))
        asked = []
        for window in plan_windows(lattice, block):
            if wanted[shift(window.core, block.core)].any():
                asked.append(window)
            else:
                mosaic.skip(window)

        def predict(images: np.ndarray) -> np.ndarray:
            return self.encode(torch.from_numpy(images), products).cpu().numpy()

        stitch(mosaic, asked, image, block.read, predict, batch=self.batch)
        return np.where(wanted, mosaic.to_array(), np.uint8(UNLABELLED))

    def encode(self, images: torch.Tensor, products: Products) -> torch.Tensor:
        """Normalised float32 (N, bands, rows, cols) to what is kept of them, uint8 (N, planes, rows, cols)."""
        recipe = self.model.recipe
        with torch.inference_mode():
            return products.encode(recipe.probabilities(self.backend.logits(images)), recipe)

    def _predict_blocks(self, plan: Plan, parts: Parts, todo: Sequence[Block], progress: Progress) -> None:
        total = sum(np.prod(block.shape) for block in todo) / 1e6
        done = 0.0
        readers, writers = ThreadPoolExecutor(1, "gimseg-reader"), ThreadPoolExecutor(1, "gimseg-writer")
        writing: deque[Future[None]] = deque()
        try:
            progress("predict", 0, total, "Mpx")
            for loaded in _ahead(readers, lambda block: _load(plan, self.model, block), todo):
                values = self._predict_loaded(plan, loaded)
                if len(writing) >= _AHEAD:
                    writing.popleft().result()
                writing.append(writers.submit(parts.write, loaded.block, values, plan.geobox))
                done += float(np.prod(loaded.block.shape)) / 1e6
                progress("predict", done, total, "Mpx")
            while writing:
                writing.popleft().result()
        finally:
            readers.shutdown(cancel_futures=True)
            # What is computed is worth keeping, also when the run is being stopped.
            writers.shutdown()

    def _predict_loaded(self, plan: Plan, loaded: _Loaded) -> np.ndarray:
        if loaded.image is None:
            return np.full((plan.planes, *loaded.block.shape), UNLABELLED, np.uint8)
        return self.predict_block(loaded.image, loaded.block, plan.lattice, loaded.wanted, plan.products)


ENGINE_NAMES = tuple(name for name in inspect.signature(Predictor).parameters if name != "model")
"""What can be said of a :class:`Predictor` besides its model."""


def predict(
    raster: Rasters,
    model: Models = "builtin",
    *,
    output: str | os.PathLike[str],
    device: str = "auto",
    precision: str = "auto",
    tta: Augmentations | None = None,
    progress: Progress = silent,
    **options: Any,
) -> Prediction:
    """Segment a raster into a mask: a GeoTIFF of class values, 255 where there is no image.

    A run that was stopped goes on where it was when it is started again in the same
    way, and ends with the same bytes.

    Args:
        raster: georeferenced image; several are one mosaic.
        model: a Model, its folder, or ``"builtin"``; several are averaged.
        output: the mask, ``.tif``; what else is asked for is written beside it.
        device: see :class:`Predictor`.
        precision: see :class:`Predictor`.
        tta: see :class:`Predictor`.
        progress: told how far the work is.
        **options: fields of :class:`gimseg.preflight.Options`: ``products``, ``aoi``, ``bands``,
            ``nodata``, ``crs``, ``vector_crs``, ``resolution``, ``match_input``, ``allow_vrt``, ``cog``,
            ``block_size``, ``overwrite``, ``restart``.

    Returns:
        what was made.

    Raises:
        GimsegError: what stands in the way, before the first window where it can be known.
    """
    predictor = Predictor(model, device=device, precision=precision, tta=tta)
    return predictor.predict(raster, output, progress=progress, **options)


def _to_array(plan: Plan, read: ReadPlanes) -> PredictedArray:
    planes = np.empty((plan.planes, *plan.shape), np.uint8)
    for roi in chunks(plan.shape, 512, 4096):
        planes[:, *roi] = read(roi)
    slices = plane_slices(plan)
    shares = {name: to_shares(planes[place]) for name, place in slices.items() if name != "classes"}
    uncertainty = shares.get("uncertainty")
    return PredictedArray(
        geobox=plan.target,
        legend=plan.legend,
        classes=planes[0],
        probabilities=shares.get("probabilities"),
        uncertainty=None if uncertainty is None else uncertainty[0],
        notes=plan.notes,
    )


def _load(plan: Plan, model: Model, block: Block) -> _Loaded:
    """Read and normalise a block with its halo, if anything in it is asked for."""
    nothing = np.zeros(block.shape, bool)
    inside = None if plan.aoi is None else plan.aoi.burn_mask(plan.geobox[block.core])
    if inside is not None and not inside.any():
        return _Loaded(block, None, nothing)
    pixels = plan.view.read(block.read)
    wanted = pixels.valid[shift(block.core, block.read)]
    if inside is not None:
        wanted = wanted & inside
    if not wanted.any():
        return _Loaded(block, None, nothing)
    return _Loaded(block, model.recipe.prepare(pixels), wanted)


def _ahead(pool: ThreadPoolExecutor, work: Callable[[Block], T], blocks: Sequence[Block]) -> Iterator[T]:
    """Results in order, a few computed before they are asked for."""
    coming: deque[Future[T]] = deque()
    for block in blocks:
        coming.append(pool.submit(work, block))
        if len(coming) > _AHEAD:
            yield coming.popleft().result()
    while coming:
        yield coming.popleft().result()


def _choose_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise PredictionError(f"device {device!r} cannot be used ({reason}): take auto, cpu or cuda") from error
    return chosen
