"""Raster and model to a mask: in blocks, in bounded memory, and resumable."""

from __future__ import annotations

import inspect
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from odc.geo.geobox import GeoBox

from gimseg.arrays import PredictedArray, array_raster, from_xarray, is_xarray
from gimseg.assembly import assemble, name_counts, plane_reader, plane_slices
from gimseg.averaging import Augmentations, Models, load_models
from gimseg.backends import Backend, Choice, backend_by_name, candidates, choose_backend
from gimseg.computing import Computation, Network
from gimseg.errors import DeviceMemoryError, PredictionError, RasterError
from gimseg.freed_memory import prefer_large_pages
from gimseg.imagery import Rasters, choose_bands
from gimseg.legend import UNLABELLED
from gimseg.loading import Loaded, load_block
from gimseg.matching import ReadPlanes
from gimseg.parts import Parts, read_manifest
from gimseg.pipeline import map_ahead
from gimseg.preflight import (
    Engine,
    Options,
    Plan,
    choose_blocks,
    plan_prediction,
    plan_raster,
    shrink,
)
from gimseg.products import Products, to_shares
from gimseg.progress import Progress, format_duration, silent
from gimseg.rasters import RasterView, Roi
from gimseg.running import check_read, pixels_of, predict_blocks, write_unread
from gimseg.tiling import Block, Lattice, chunks
from gimseg.window_choice import choose_lattice
from gimseg.workers import predict_on_devices

__all__ = ["Options", "Plan", "Prediction", "Predictor", "predict"]

_TIMED = 512


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


class _Asked(NamedTuple):
    """What a caller said of the backend."""

    backend: str
    precision: str


class Predictor:
    """A loaded network for any number of rasters.

    Args:
        model: a Model, its folder, or ``"builtin"``; several, whose probabilities are averaged.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...; several of one kind,
            as ``"cuda:0,cuda:1"``, have a process each and share the blocks.
        backend: see :func:`gimseg.backends.choose_backend`.
        precision: see there.
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
        backend: str = "auto",
        precision: str = "auto",
        batch: int | None = None,
        tta: Augmentations | None = None,
    ) -> None:
        prefer_large_pages()
        self.model = load_models(model, tta)
        self.devices = tuple(_choose_device(name.strip()) for name in device.split(","))
        self.device = self.devices[0]
        if {item.type for item in self.devices} != {self.device.type}:
            raise PredictionError(f"devices {device}: of one kind, or the same pixels would differ")
        self.fingerprint = self.model.fingerprint()
        self._asked = _Asked(backend, precision)
        self._chosen_here = {"backend": len(candidates(self.device, *self._asked)) > 1, "batch": batch is None}
        self._batch = batch or (4 if self.device.type == "cuda" else 1)
        self._backends: dict[str, Backend] = {}

    def plan(self, raster: Rasters, output: str | os.PathLike[str], **options: Any) -> Plan:
        """Check everything that can be checked before the first window; see :func:`predict` for the options.

        Raises:
            GimsegError: what stands in the way.
        """
        given = Options(**options)
        engine = Engine(self.device, batch=self._batch)
        if not given.restart:
            engine = self._as_before(engine, output)
        return self._decided(plan_prediction(raster, output, self.model, self.fingerprint, engine, given))

    def _decided(self, plan: Plan) -> Plan:
        """The plan with the backend that is the fastest for as much work as it is."""
        if plan.engine.backend:
            return plan
        return plan.computed_by(*self._choose_backend(plan.lattice))

    def _choose_backend(self, lattice: Lattice) -> Choice:
        megapixels = math.prod(lattice.shape) * lattice.cost / 1e6
        return choose_backend(
            self.model,
            self.device,
            backend=self._asked.backend,
            precision=self._asked.precision,
            window=lattice.window,
            batch=self._batch,
            megapixels=megapixels,
        )

    def _as_before(self, engine: Engine, output: str | os.PathLike[str]) -> Engine:
        """What a run that goes on had chosen, where nobody asks for something else."""
        before = read_manifest(output).get("engine", {})
        if before.get("device") != engine.device.type:
            return engine
        kept = {name: before[name] for name, free in self._chosen_here.items() if free and name in before}
        return replace(engine, window=before.get("window"), **kept)

    def estimate(self, plan: Plan) -> float:
        """Seconds that the network will take, about: one window, or a part of it, is timed."""
        network = self._network(plan)
        side = min(*plan.lattice.window, max(_TIMED, plan.lattice.stride)) // plan.lattice.stride * plan.lattice.stride
        values = np.zeros((plan.engine.batch, len(self.model.recipe.bands), side, side), plan.view.dtype)
        valid = np.ones((plan.engine.batch, side, side), bool)
        for _ in range(2):  # what is done for the first time takes longer
            started = time.monotonic()
            network.encode(network.probabilities(values, valid)).to_array()
            seconds = time.monotonic() - started
        pixels = plan.windows * math.prod(plan.lattice.window)
        return seconds * pixels / (plan.engine.batch * side**2)

    def _network(self, plan: Plan) -> Network:
        return Network(self._opened(plan.engine.backend), self.model.recipe, plan.products, self.device)

    def _opened(self, name: str) -> Backend:
        """Opened once for all rasters."""
        if name not in self._backends:
            self._backends[name] = backend_by_name(self.model, self.device, name)
        return self._backends[name]

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

        Where the device runs out of memory, with half the batch, then half the window;
        finished blocks, which other windows made, are thrown away then.

        Raises:
            PredictionError: another run is writing this output.
            ResumeError: finished blocks are there that belong to another run.
            RasterError: something cannot be read; finished blocks stay.
            OutputError: the disk refuses.
            DeviceMemoryError: the smallest window is still too large.
        """
        while True:
            try:
                return self._run(plan, progress)
            except DeviceMemoryError as error:
                smaller = shrink(plan, self.model)
                if smaller is None:
                    side = max(plan.lattice.window)
                    raise DeviceMemoryError(
                        f"{error}: {plan.engine.batch} window of {side} px is the least that holds what the network "
                        f"looks at, {self.model.recipe.halo} px around each pixel; take a device with more memory"
                    ) from error
                plan = smaller

    def _run(self, plan: Plan, progress: Progress) -> Prediction:
        started = time.monotonic()
        with Parts(plan.output, plan.identity, planes=plan.planes, restart=plan.options.restart) as parts:
            skip_damaged = plan.options.on_error == "nodata"
            todo = parts.unfinished(plan.blocks, keep_damaged=skip_damaged)
            if len(self.devices) > 1:
                predict_on_devices(plan, self.model, self.devices, parts, progress)
            else:
                predict_blocks(plan, self._network(plan), parts, todo, progress, pixels_of(todo))
            if not skip_damaged:
                check_read(plan, parts)
            counts = assemble(plan, parts, progress)
            listed = write_unread(plan, parts)
            parts.remove()
        told = () if listed is None else (f"what could not be read is 255, and listed in {listed}",)
        return Prediction(
            path=plan.output,
            counts=name_counts(counts, self.model.recipe.legend),
            shape=plan.shape,
            seconds=time.monotonic() - started,
            blocks=len(plan.blocks),
            resumed=len(plan.blocks) - len(todo),
            notes=(*plan.notes, *told),
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
        bands = choose_bands(self.model.recipe, chosen.bands)
        raster = array_raster(array, geobox, bands=bands, nodata=chosen.nodata)
        plan = self._decided(plan_raster(raster, self.model, Engine(self.device, batch=self._batch), chosen))
        predicted = np.full((plan.planes, *plan.lattice.shape), UNLABELLED, np.uint8)

        def load(block: Block) -> Loaded:
            return load_block(plan.view, plan.lattice, block, plan.asked)

        loaded = map_ahead(load, plan.blocks, threads=1, limit=1)
        for step in Computation(self._network(plan), plan.lattice, plan.engine.batch).run(loaded):
            if step.finished is not None:
                predicted[:, *step.finished.block.core] = step.finished.values
        return _to_array(plan, plane_reader(plan, lambda roi: predicted[:, *roi]))

    def blocks(
        self,
        view: RasterView,
        block_size: int | None = None,
        *,
        products: Products | None = None,
        wanted: Callable[[Roi], bool] | None = None,
        lattice: Lattice | None = None,
    ) -> Iterator[tuple[Roi, np.ndarray]]:
        """Predict a raster block by block, writing nothing.

        Args:
            view: the raster on the grid to predict, with the model's bands; levelled where the recipe wants
                it so, see :mod:`gimseg.levelling`.
            block_size: side of a block, px: memory grows with it, the result does not change.
            products: what is kept of each pixel; None: classes.
            wanted: says of a place on the grid whether it is predicted; None: all is.
            lattice: of windows; None: the one that this model is predicted with.

        Yields:
            the block's place on the grid, and its planes: uint8 (planes, rows, cols), 255
            where there is no image.

        Raises:
            RasterError: a part cannot be read.
        """
        lattice = lattice or choose_lattice(view.shape, self.model, self.device, batch=self._batch)
        blocks = choose_blocks(view, lattice, self.model.recipe.legend.n_channels, block_size)
        opened = self._opened(self._choose_backend(lattice).name)
        network = Network(opened, self.model.recipe, products or Products(), self.device)
        todo = (block for block in blocks if wanted is None or wanted(block.core))
        loaded = map_ahead(lambda block: load_block(view, lattice, block), todo, threads=1, limit=1)
        for step in Computation(network, lattice, self._batch).run(loaded):
            if step.finished is not None:
                if step.finished.unread:
                    raise RasterError(step.finished.unread[0].reason)
                yield step.finished.block.core, step.finished.values


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
            ``block_size``, ``window``, ``blend``, ``on_error``, ``overwrite``, ``restart``.

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
