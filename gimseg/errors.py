"""The errors that gimseg raises on purpose.

A message says what was given, what was needed, and what to do, with numbers.
The verb that was asked for adds the path once. Each kind is also a standard
one, so that a caller who knows nothing of gimseg can catch it::

    GimsegError
    ├── GridError          (ValueError)    CRS, transform, resolution, footprint
    ├── RasterError        (OSError)       a raster that cannot be read as asked
    ├── VectorError        (ValueError)    a vector layer that cannot be used
    ├── LegendError        (ValueError)    class names, values, colours
    ├── DatasetError       (ValueError)    images and ground truth that do not fit
    ├── LossError          (ValueError)    a loss or metric asked for wrongly
    ├── RefinementError    (ValueError)    post-processing asked for wrongly
    ├── TilingError        (ValueError)    window, halo, stride, block
    ├── ModelError         (ValueError)    network, recipe, model folder
    ├── TrainingError      (RuntimeError)  training cannot start or go on
    ├── PredictionError    (RuntimeError)  prediction cannot start or go on
    │   └── DeviceMemoryError              the device cannot hold what it was given
    ├── WorkerError        (RuntimeError)  a process that worked for this one died
    ├── ResumeError        (RuntimeError)  finished parts belong to another run
    ├── CorrectionError    (ValueError)    a correction that cannot be used
    ├── ReportError        (ValueError)    a page whose parts do not fit
    └── OutputError        (OSError)       an output that cannot or must not be written
"""

from __future__ import annotations


class GimsegError(Exception):
    """Root of all errors that gimseg raises on purpose."""


class GridError(GimsegError, ValueError):
    """CRS, transform, resolution or footprint do not allow what was asked."""


class RasterError(GimsegError, OSError):
    """A raster cannot be read as asked."""


class VectorError(GimsegError, ValueError):
    """A vector layer cannot be used as asked."""


class LegendError(GimsegError, ValueError):
    """Class names, values or colours are wrong."""


class DatasetError(GimsegError, ValueError):
    """Images and ground truth do not fit together."""


class LossError(GimsegError, ValueError):
    """A loss or a metric was asked for wrongly."""


class RefinementError(GimsegError, ValueError):
    """Post-processing was asked for wrongly."""


class TilingError(GimsegError, ValueError):
    """Window, halo, stride and block do not fit together."""


class ModelError(GimsegError, ValueError):
    """A network, a recipe or a model folder cannot be used as asked."""


class TrainingError(GimsegError, RuntimeError):
    """Training cannot start or go on."""


class PredictionError(GimsegError, RuntimeError):
    """Prediction cannot start or go on."""


class DeviceMemoryError(PredictionError):
    """The device cannot hold the windows that it was given at once."""


class WorkerError(GimsegError, RuntimeError):
    """A process that worked for this one died."""


class ResumeError(GimsegError, RuntimeError):
    """Finished parts belong to another run."""


class CorrectionError(GimsegError, ValueError):
    """A correction cannot be used as it was drawn or asked for."""


class ReportError(GimsegError, ValueError):
    """Parts of a report do not fit together."""


class OutputError(GimsegError, OSError):
    """An output cannot, or must not, be written."""
