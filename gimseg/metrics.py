"""Scores of a segmentation, all of them from one table: the confusion matrix.

Tables add up, over windows, rasters and processes, so that a score of several
rasters is that of their pixels together, not a mean of means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gimseg.errors import LossError
from gimseg.legend import UNLABELLED

CLASS_SCORES = ("iou", "f1", "precision", "recall", "specificity", "mcc")
"""Scores that each class has."""

# Pixels counted at a time: the counting needs 16 bytes a pixel.
_CHUNK = 1 << 20


class _Counts(NamedTuple):
    """Pixels of a class against the rest."""

    hits: int
    false_alarms: int
    misses: int
    rest: int


_PARTS: dict[str, Callable[[_Counts], tuple[float, float]]] = {
    "iou": lambda n: (n.hits, n.hits + n.false_alarms + n.misses),
    "f1": lambda n: (2 * n.hits, 2 * n.hits + n.false_alarms + n.misses),
    "precision": lambda n: (n.hits, n.hits + n.false_alarms),
    "recall": lambda n: (n.hits, n.hits + n.misses),
    "specificity": lambda n: (n.rest, n.rest + n.false_alarms),
}


@dataclass(frozen=True, eq=False)
class Confusion:
    """Pixels by true class (rows) and predicted class (columns); class 0 is the background.

    Scores are arrays with one number a class, NaN where it is 0/0: a class that is
    neither there nor predicted has no IoU.

    Attributes:
        matrix: (classes, classes), int64, read-only.

    Example:
        >>> table = Confusion.of([[0, 0, 1], [1, 1, 255]], [[0, 1, 1], [1, 0, 1]], 2)
        >>> table.matrix.tolist()
        [[1, 1], [1, 2]]
        >>> table.iou[1], table.accuracy
        (np.float64(0.5), 0.6)
        >>> (table + table).total
        10
    """

    matrix: NDArray[np.int64]

    def __post_init__(self) -> None:
        given = np.asarray(self.matrix)
        if given.ndim != 2 or given.shape[0] != given.shape[1] or not 1 <= len(given) <= UNLABELLED:
            raise LossError(f"a confusion matrix is (classes, classes) of 1 to {UNLABELLED}; given is {given.shape}")
        if given.dtype.kind not in "iu" or (given < 0).any():
            raise LossError(f"a confusion matrix holds counts: whole numbers of 0 or above; given is {given.dtype}")
        matrix = given.astype(np.int64)
        matrix.setflags(write=False)
        object.__setattr__(self, "matrix", matrix)

    @classmethod
    def zeros(cls, n: int) -> Confusion:
        """The empty table of n classes, the background among them."""
        return cls(np.zeros((n, n), np.int64))

    @classmethod
    def of(cls, truth: ArrayLike, prediction: ArrayLike, n: int) -> Confusion:
        """Count two class masks of one shape.

        Args:
            truth: any shape, whole numbers 0 to n - 1; 255 (unlabelled) is not counted.
            prediction: the same shape; 255 (invalid, not predicted) is not counted.
            n: classes, the background among them. Torch tensors on the CPU do too.

        Raises:
            LossError: shapes that differ, or values that are no class.
        """
        expected, got = _as_bytes(truth, "truth"), _as_bytes(prediction, "prediction")
        if expected.shape != got.shape:
            raise LossError(f"truth is {expected.shape}, prediction {got.shape}; needed is one shape")
        empty = cls.zeros(n)
        pairs = np.zeros(1 << 16, np.int64)
        expected, got = expected.ravel(), got.ravel()
        for start in range(0, expected.size, _CHUNK):
            part = slice(start, start + _CHUNK)
            pairs += np.bincount((expected[part].astype(np.uint16) << 8) | got[part], minlength=1 << 16)
        table = pairs.reshape(256, 256)
        for name, counts in (("truth", table.sum(1)), ("prediction", table.sum(0))):
            strangers = np.flatnonzero(counts[n:UNLABELLED]) + n
            if strangers.size:
                raise LossError(
                    f"{name} holds {', '.join(map(str, strangers[:5]))}, needed is 0 to {n - 1} or {UNLABELLED}; "
                    f"the table has {n} classes"
                )
        return empty + cls(table[:n, :n])

    def update(self, truth: ArrayLike, prediction: ArrayLike) -> Confusion:
        """This table with two more masks counted in: a new one."""
        return self + Confusion.of(truth, prediction, len(self.matrix))

    def __add__(self, other: Confusion) -> Confusion:
        if not isinstance(other, Confusion):
            return NotImplemented
        if self.matrix.shape != other.matrix.shape:
            raise LossError(f"tables of {len(self.matrix)} and {len(other.matrix)} classes do not add up")
        return Confusion(self.matrix + other.matrix)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Confusion) and np.array_equal(self.matrix, other.matrix)

    __hash__ = None  # type: ignore[assignment]

    @property
    def total(self) -> int:
        """Pixels counted."""
        return int(self.matrix.sum())

    @property
    def support(self) -> NDArray[np.int64]:
        """True pixels of each class."""
        return self.matrix.sum(1)

    @property
    def iou(self) -> NDArray[np.float64]:
        """TP / (TP + FP + FN), also called Jaccard."""
        return _ratio(self._hits, self.support + self._predicted - self._hits)

    @property
    def f1(self) -> NDArray[np.float64]:
        """2·TP / (2·TP + FP + FN), also called Dice."""
        return _ratio(2 * self._hits, self.support + self._predicted)

    @property
    def precision(self) -> NDArray[np.float64]:
        """TP / (TP + FP): of what was predicted, the share that is true."""
        return _ratio(self._hits, self._predicted)

    @property
    def recall(self) -> NDArray[np.float64]:
        """TP / (TP + FN): of what is true, the share that was predicted."""
        return _ratio(self._hits, self.support)

    @property
    def specificity(self) -> NDArray[np.float64]:
        """TN / (TN + FP): of what is not of the class, the share that was not taken for it."""
        others = self.total - self.support
        return _ratio(others - (self._predicted - self._hits), others)

    @property
    def mcc(self) -> NDArray[np.float64]:
        """Matthews correlation of each class against the rest, -1 to 1; NaN where truth or prediction is constant.

        Source: Matthews 1975, Biochim. Biophys. Acta 405(2), 442-451.
        """
        # Products of four counts overflow int64 beyond some 50 thousand pixels each.
        hits, true, given, total = (
            np.asarray(counts, np.float64) for counts in (self._hits, self.support, self._predicted, self.total)
        )
        spread = np.sqrt(true) * np.sqrt(given) * np.sqrt(total - true) * np.sqrt(total - given)
        return _ratio(hits * total - true * given, spread)

    @property
    def kappa(self) -> float:
        """Cohen's kappa: agreement beyond chance, 1 at most; NaN where chance alone agrees fully.

        Source: Cohen 1960, Educ. Psychol. Meas. 20(1), 37-46.
        """
        total = np.float64(self.total)
        by_chance = _ratio((self.support.astype(np.float64) * self._predicted).sum(), total * total)
        return float(_ratio(self.accuracy - by_chance, 1 - by_chance))

    @property
    def mcc_of_all(self) -> float:
        """Matthews correlation of all classes at once, R_K: 1 at most; NaN where truth or prediction is constant.

        Of two classes it is that of each of them.

        Source: Gorodkin 2004, Comput. Biol. Chem. 28(5-6), 367-374.
        """
        hits, true, given, total = (
            np.asarray(counts, np.float64) for counts in (self._hits.sum(), self.support, self._predicted, self.total)
        )
        spread = np.sqrt(total**2 - (true**2).sum()) * np.sqrt(total**2 - (given**2).sum())
        return float(_ratio(hits * total - (true * given).sum(), spread))

    def average(self, score: str, how: str = "macro", *, background: bool = False) -> float:
        """One number for all classes.

        Args:
            score: ``iou``, ``f1``, ``precision``, ``recall``, ``specificity`` or ``mcc``.
            how: ``macro``, the mean of the classes that have a score; ``weighted``, that
                mean by true pixels; ``micro``, the score of hits, misses and false alarms
                of the classes added up (not for ``mcc``).
            background: whether class 0 takes part.

        Raises:
            LossError: a name that is not known.

        Example:
            >>> table = Confusion([[5, 1, 0], [0, 8, 1], [1, 0, 2]])
            >>> round(table.average("f1"), 3), round(table.average("f1", "micro"), 3)
            (0.778, 0.833)
        """
        if score not in CLASS_SCORES or how not in ("macro", "weighted", "micro") or (score, how) == ("mcc", "micro"):
            raise LossError(
                f"average({score!r}, {how!r}): needed are one of {', '.join(CLASS_SCORES)} and macro, weighted or "
                "micro (mcc has no micro average: mcc_of_all is that of all classes)"
            )
        first = 0 if background else 1
        if how == "micro":
            return float(_ratio(*_PARTS[score](self._pooled(first))))
        scores, weights = getattr(self, score)[first:], self.support[first:].astype(np.float64)
        known = ~np.isnan(scores)
        if how == "macro":
            return float(scores[known].mean()) if known.any() else float("nan")
        return float(_ratio((scores[known] * weights[known]).sum(), weights[known].sum()))

    def _pooled(self, first: int) -> _Counts:
        """Hits, false alarms, misses and true negatives of all classes from `first` on."""
        hits, true, given = (counts[first:].sum() for counts in (self._hits, self.support, self._predicted))
        pixels = self.total * (len(self.matrix) - first)
        return _Counts(hits, given - hits, true - hits, pixels - true - given + hits)

    @property
    def accuracy(self) -> float:
        """Share of pixels whose class is right; NaN without a pixel."""
        return float(_ratio(self._hits.sum(), self.matrix.sum()))

    @property
    def mean_iou(self) -> float:
        """Mean IoU of the classes other than the background that have one; NaN if none has."""
        scores = self.iou[1:]
        scores = scores[~np.isnan(scores)]
        return float(scores.mean()) if scores.size else float("nan")

    def to_dict(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """All scores for JSON; what is undefined is None.

        Args:
            names: of all classes, or of all but the background; numbers without it.

        Raises:
            LossError: the number of names is neither.

        Example:
            >>> scores = Confusion([[6, 1], [1, 2]]).to_dict(["roof"])
            >>> scores["classes"]["roof"]["iou"], scores["mean_iou"], scores["pixels"]
            (0.5, 0.5, 10)
        """
        classes = len(self.matrix)
        labels = [str(value) for value in range(classes)] if names is None else list(names)
        if len(labels) == classes - 1:
            labels = ["background", *labels]
        if len(labels) != classes or len(set(labels)) != classes:
            raise LossError(f"given are the names {labels}, needed are {classes} different ones (or one less)")
        columns = {name: getattr(self, name) for name in CLASS_SCORES}
        return {
            "classes": {
                label: {name: _jsonable(column[i]) for name, column in columns.items()}
                | {"support": int(self.support[i])}
                for i, label in enumerate(labels)
            },
            "mean_iou": _jsonable(self.mean_iou),
            "accuracy": _jsonable(self.accuracy),
            "kappa": _jsonable(self.kappa),
            "mcc": _jsonable(self.mcc_of_all),
            "pixels": self.total,
            "confusion": self.matrix.tolist(),
        }

    @property
    def _hits(self) -> NDArray[np.int64]:
        return np.diagonal(self.matrix)

    @property
    def _predicted(self) -> NDArray[np.int64]:
        return self.matrix.sum(0)


def _as_bytes(mask: ArrayLike, name: str) -> NDArray[np.uint8]:
    values = np.asarray(mask)
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "iub":
        raise LossError(f"{name} is {values.dtype}, needed are whole numbers: the class of each pixel")
    if values.size and (values.min() < 0 or values.max() > UNLABELLED):
        raise LossError(f"{name} goes from {values.min()} to {values.max()}, needed is 0 to {UNLABELLED}")
    return values.astype(np.uint8)


def _ratio(numerator: ArrayLike, denominator: ArrayLike) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        return np.true_divide(numerator, denominator)


def _jsonable(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
