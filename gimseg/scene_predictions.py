"""Predictions on the grid of labelled scenes: those of a model, or ready masks; and a place on disk for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.io import DatasetWriter
from rasterio.windows import Window

from gimseg.errors import DatasetError, OutputError
from gimseg.inference import Predictor
from gimseg.labelled_scenes import LabelledScene
from gimseg.legend import UNLABELLED, Legend
from gimseg.products import Products
from gimseg.progress import Progress, silent
from gimseg.rasters import Roi, open_raster
from gimseg.refined_planes import RefinedPlanes, pixel_sides
from gimseg.refinement import Refinement
from gimseg.tiling import chunks, shift, widened

_BLOCK = 1024
# Small enough to leave out ground without labels, large enough to waste little at the borders of blocks.
_MODEL_BLOCK = 2048
_SHARES = Products(probabilities=True)


@dataclass(frozen=True, eq=False)
class Predicted:
    """A block of a scene.

    Args:
        roi: where it lies on the scene's grid.
        classes: (rows, cols), numbers of classes; 0 also where nothing was predicted.
        shares: (classes, rows, cols), probabilities in steps of 1/250, 255 where there are none; None for ready masks.
    """

    roi: Roi
    classes: NDArray[np.uint8]
    shares: NDArray[np.uint8] | None


class Predictions(Protocol):
    """Predictions of any scene."""

    def blocks(self, scene: LabelledScene, wanted: Callable[[Roi], bool]) -> Iterator[Predicted]:
        """Blocks of a scene that are wanted, each pixel once.

        Args:
            scene: at the resolution of the predictions.
            wanted: says whether a place on the scene's grid is to be predicted.

        Raises:
            GimsegError: something cannot be read, or does not fit.
        """


class ModelPredictions:
    """A model predicts at its own resolution, classes and probabilities."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def blocks(self, scene: LabelledScene, wanted: Callable[[Roi], bool]) -> Iterator[Predicted]:
        """See :meth:`Predictions.blocks`."""
        legend = self._predictor.model.recipe.legend
        for roi, planes in self.planes(scene, wanted):
            yield Predicted(roi, _numbers(planes[0], legend), planes[1:])

    def planes(self, scene: LabelledScene, wanted: Callable[[Roi], bool]) -> Iterator[tuple[Roi, NDArray[np.uint8]]]:
        """Blocks that are wanted, and their planes as they are kept: values of classes, probabilities."""
        return self._predictor.blocks(scene.view, _MODEL_BLOCK, products=_SHARES, wanted=wanted)


class RefinedPredictions:
    """What a model predicts, refined: classes as ``gimseg predict --refine`` gives them, probabilities as they were.

    A scene is predicted first and then refined, since refining looks beyond a block.

    Args:
        predictor: of the model.
        chain: the steps.
        folder: for what is kept meanwhile.
        progress: told how much is predicted.
    """

    def __init__(self, predictor: Predictor, chain: Refinement, folder: Path, progress: Progress = silent) -> None:
        self._plain, self._recipe = ModelPredictions(predictor), predictor.model.recipe
        self._chain, self._folder, self._progress = chain, folder, progress

    def blocks(self, scene: LabelledScene, wanted: Callable[[Roi], bool]) -> Iterator[Predicted]:
        """See :meth:`Predictions.blocks`."""
        margin = self._chain.margin(pixel_sides(self._chain, scene.geobox))
        legend, shape = self._recipe.legend, scene.shape
        regions, done = [], 0

        def looked_at(roi: Roi) -> bool:
            return wanted(widened(roi, (margin, margin), shape))

        kept = KeptPlanes(self._folder / "predicted.tif", shape, len(_SHARES.planes(legend)))
        with kept:
            for roi, planes in self._plain.planes(scene, looked_at):
                kept.write(roi, planes)
                done += math.prod(planes.shape[1:])
                self._progress(f"predict {Path(scene.path).name}", done / 1e6, math.prod(shape) / 1e6, "Mpx")
                if wanted(roi):
                    regions.append(roi)
            refined = RefinedPlanes(kept.read, self._chain, scene.geobox, _SHARES, self._recipe, scene.view.read)
            for roi in regions:
                planes = refined.read(roi)
                yield Predicted(roi, _numbers(planes[0], legend), planes[1:])


class ReadyMasks:
    """GeoTIFFs of class values, read on the grid of the scene; of each scene the first that meets it counts.

    Args:
        masks: their paths.
        chain: steps of masks that refine them on the grid of the scene.
    """

    def __init__(self, masks: Sequence[str], chain: Refinement | None = None) -> None:
        self._masks, self._chain = tuple(masks), chain or Refinement()

    def check(self, scene: LabelledScene) -> None:
        """Refuse a scene of which there is no mask, or none that can be refined.

        Raises:
            DatasetError: no mask meets it.
            RefinementError: a step needs probabilities.
        """
        self._path(scene)
        self._chain.apply_mask(np.zeros((1, 1), np.uint8), (1.0, 1.0))

    def blocks(self, scene: LabelledScene, wanted: Callable[[Roi], bool]) -> Iterator[Predicted]:
        """See :meth:`Predictions.blocks`."""
        view = open_raster(self._path(scene), bands=(1,)).on(scene.geobox, "nearest")
        sides = pixel_sides(self._chain, scene.geobox)
        margin = self._chain.margin(sides)
        for roi in chunks(scene.shape, _BLOCK, _BLOCK):
            if wanted(roi):
                wide = widened(roi, (margin, margin), scene.shape)
                pixels = view.read_values(wide)
                values = np.where(pixels.valid, pixels.data[0], UNLABELLED).astype(np.uint8)
                refined = self._chain.apply_mask(scene.legend.to_channels(values), sides)[shift(roi, wide)]
                yield Predicted(roi, _known(refined), None)

    def _path(self, scene: LabelledScene) -> str:
        for mask in self._masks:
            raster = open_raster(mask, bands=(1,))
            if raster.crs == scene.raster.crs and raster.geobox.extent.geom.intersects(scene.geobox.extent.geom):
                return mask
        raise DatasetError(f"no mask of {', '.join(self._masks)} meets {scene.path} in CRS {scene.raster.crs}")


class KeptPlanes:
    """Planes of a scene on disk, written block by block and read anywhere: 255 where nothing was written.

    Args:
        path: of a file to be made; it is no output.
        shape: rows and columns of the scene, px.
        planes: how many, as (planes, rows, cols); None: one, as (rows, cols).
    """

    def __init__(self, path: Path, shape: tuple[int, int], planes: int | None = None) -> None:
        self.path, self.shape = path, shape
        self._count, self._bands = planes or 1, 1 if planes is None else list(range(1, planes + 1))
        self._file: DatasetWriter | None = None

    def __enter__(self) -> Self:
        """Begin to write."""
        tiles = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "zstd", "zstd_level": 1}
        profile = {"height": self.shape[0], "width": self.shape[1], "count": self._count, "dtype": "uint8"}
        # A place of its own, or rasterio warns that it has none.
        profile |= {"transform": Affine.translation(1, 0), "SPARSE_OK": True, "BIGTIFF": "IF_SAFER"}
        profile |= {"nodata": UNLABELLED, "interleave": "band"}
        with _naming(self.path):
            self._file = rasterio.open(self.path, "w+", driver="GTiff", **profile, **tiles)
        return self

    def __exit__(self, *raised: object) -> None:
        """No more is written; what is there can be read."""
        if self._file is not None:
            with _naming(self.path):
                self._file.close()
            self._file = None

    def write(self, roi: Roi, values: NDArray[np.uint8]) -> None:
        """Keep a block while the file is open.

        Raises:
            OutputError: the disk refuses.
        """
        assert self._file is not None
        with _naming(self.path):
            self._file.write(values, self._bands, window=Window.from_slices(*roi))

    def read(self, roi: Roi) -> NDArray[np.uint8]:
        """A region inside the scene.

        Raises:
            OutputError: it cannot be read back.
        """
        with _naming(self.path):
            if self._file is not None:
                return self._file.read(self._bands, window=Window.from_slices(*roi))
            with rasterio.open(self.path, driver="GTiff") as file:
                return file.read(self._bands, window=Window.from_slices(*roi))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """What the disk refuses, as an error of ours."""
    try:
        yield
    except (RasterioError, OSError) as error:
        raise OutputError(
            f"{path.parent} does not take the prediction while it is scored ({error}): make room there, or name "
            "another folder in the environment variable TMPDIR"
        ) from error


def _numbers(values: NDArray[np.uint8], legend: Legend) -> NDArray[np.uint8]:
    """Raster values to numbers of classes; what is left out is no prediction: it counts as background."""
    return _known(legend.to_channels(values))


def _known(numbers: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.where(numbers == UNLABELLED, np.uint8(0), numbers)
