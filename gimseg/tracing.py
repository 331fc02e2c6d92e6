"""Regions of equal pixels to polygons, exact and strip by strip, in one process or in several.

A strip of rows is worked on alone (:func:`strip_of`): regions that touch neither its
first nor its last row become polygons at once, of the others the strip knows the corners
of their outlines and the runs of pixels with which they touch its edges. Where two strips
meet, only the two rows at the seam are looked at: runs above and below that touch are one
region (:class:`Tracer`). When a region has no pixel in the last row seen, it is complete.
So strips can be worked on in any process, and memory follows what is open at the seam.

With 4-connectedness pixels of a region share edges, and each region is one polygon. With
8-connectedness regions that touch at a corner belong together, and such a group is one
multipolygon: one ring around both would touch itself, which is not valid.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import shapely

from gimseg.errors import TilingError
from gimseg.outlines import Outlines, find_corners, link
from gimseg.runs import Runs, by_number, components, padded


class Traced(NamedTuple):
    """Finished regions.

    Attributes:
        polygons: (n,) shapely polygons (multipolygons with 8-connectedness), x = column,
            y = row, in pixels from the top-left corner of the mask.
        values: (n,) uint8, the value of each region.
    """

    polygons: np.ndarray
    values: np.ndarray


class Strip(NamedTuple):
    """What a strip of rows tells, without the rest of the mask; plain arrays.

    Edge regions are those with a pixel in the first or the last row, numbered from 0;
    groups are what 8-connectedness joins (with 4-connectedness each region is its own),
    edge groups, numbered from 0, those that have an edge region.

    Attributes:
        rows: number of rows.
        edges: uint8 (2, width), the first and the last row.
        regions: the edge region of each run of the first row, and of the last.
        values: (n,) uint8 of the edge regions.
        groups: (n,) edge group of each edge region.
        corners: those of the edge regions inside the strip, ordered by `owners`.
        owners: the edge region of each corner.
        done: the polygons of all other regions.
        done_values: their values.
        done_groups: their groups; an edge group if below the number of those.
    """

    rows: int
    edges: np.ndarray
    regions: tuple[np.ndarray, np.ndarray]
    values: np.ndarray
    groups: np.ndarray
    corners: np.ndarray
    owners: np.ndarray
    done: Outlines
    done_values: np.ndarray
    done_groups: np.ndarray


def trace(strips: Iterable[np.ndarray], connectivity: int = 4) -> Iterator[Traced]:
    """Polygons of all regions of a mask that comes as strips of rows, from the top.

    The set of polygons does not depend on how the mask was cut, and is the one of
    ``rasterio.features.shapes``. Each region is given once, after the strip that
    closed it; what lies in a hole of it comes before, or with it.

    Args:
        strips: whole numbers (rows, width), any number of rows each; 0 gives no polygon.
        connectivity: 4 or 8.

    Yields:
        the regions closed by each strip, and by the end of the mask.

    Raises:
        TilingError: another connectivity.

    Example:
        >>> mask = np.array([[7, 7, 0], [7, 0, 0], [7, 7, 7]], "uint8")
        >>> [done.values.tolist() for done in trace([mask[:2], mask[2:]])]
        [[], [], [7]]
    """
    top = 0

    def alone(labels: np.ndarray) -> Strip:
        nonlocal top
        top += len(labels)
        return strip_of(labels, top - len(labels), connectivity)

    return join(map(alone, strips), connectivity)


def join(strips: Iterable[Strip], connectivity: int = 4) -> Iterator[Traced]:
    """The same from strips that were worked on elsewhere, in order from the top."""
    if connectivity not in (4, 8):
        raise TilingError(f"connectivity={connectivity}: 4 (pixels share edges) or 8 (or corners) is needed")
    tracer: Tracer | None = None
    for strip in strips:
        tracer = tracer or Tracer(strip.edges.shape[1], connectivity)
        yield tracer.feed(strip)
    if tracer is not None:
        yield tracer.finish()


class Rows(Protocol):
    """A mask of which some rows can be read, in any process."""

    def read(self, top: int, bottom: int) -> np.ndarray:
        """uint8 (bottom - top, width), 0 where there is no polygon."""


def read_strips(source: Rows, pixels: int, connectivity: int, cut: tuple[int, int]) -> list[Strip]:
    """Read some rows of a mask, and work on about so many pixels of them at once, alone.

    Args:
        source: the mask.
        pixels: a strip has about as many, and one row at least.
        connectivity: 4 or 8.
        cut: rows (top, bottom) to read.
    """
    top, bottom = cut
    labels = source.read(top, bottom)
    rows = max(1, pixels // labels.shape[1])
    return [strip_of(labels[start : start + rows], top + start, connectivity) for start in range(0, len(labels), rows)]


def strip_of(labels: np.ndarray, row: int, connectivity: int = 4) -> Strip:
    """Work on a strip alone.

    Args:
        labels: whole numbers (rows, width), rows >= 1.
        row: of the mask in which it begins.
        connectivity: 4 or 8.
    """
    block = padded(labels)
    runs = Runs.of(block)
    corners, pixels = find_corners(block, runs.same_right, row + 1)
    regions = runs.joined(connectivity=4)
    groups = regions if connectivity == 4 else runs.joined(connectivity=8)
    edge, number, on_edges = runs.edge_regions(regions)

    n = len(number)
    values, group_of_region = np.zeros(n, labels.dtype), np.zeros(n, np.int64)
    values[regions] = block.ravel()[runs.starts]
    group_of_region[regions] = groups
    group_of_region = _edge_first(group_of_region, edge)

    owners = regions[runs.at(pixels)]
    inside = number[owners] < 0
    done, done_regions = link(corners[inside], owners[inside])
    owners = number[owners[~inside]]
    order = np.argsort(owners, kind="stable")
    return Strip(
        len(labels),
        labels[[0, -1]],
        on_edges,
        values[edge],
        group_of_region[edge],
        corners[~inside][order],
        owners[order],
        done,
        values[done_regions],
        group_of_region[done_regions],
    )


def _edge_first(groups: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """The groups of regions, numbered anew: those of edge regions come first."""
    n = groups.max(initial=-1) + 1
    touches = np.zeros(n, bool)
    touches[groups[edge]] = True
    number = np.empty(n, np.int64)
    number[np.argsort(~touches, kind="stable")] = np.arange(n)
    return number[groups]


class Crossing(NamedTuple):
    """What regions are after a seam. Nodes are the regions open before, then the edge regions of the strip.

    Attributes:
        runs: those of the two rows at the seam.
        node_of_run: the node of each.
        n_before: number of regions open before.
        label: the region that each node is now.
        open_labels: the regions that stay open, in the order of their new numbers.
        into: region -> its number among the open ones, -1 if it is closed.
    """

    runs: Runs
    node_of_run: np.ndarray
    n_before: int
    label: np.ndarray
    open_labels: np.ndarray
    into: np.ndarray


class Seam:
    """Which regions are open below the rows seen so far.

    Args:
        width: columns of the mask, px.
    """

    def __init__(self, width: int) -> None:
        self._row = np.zeros(width, np.uint8)
        self._open_of_run = np.empty(0, np.int64)
        self._n_open = 0

    def cross(self, edges: np.ndarray, regions: tuple[np.ndarray, np.ndarray], n_edge: int) -> Crossing:
        """Take the next strip.

        Args:
            edges: uint8 (2, width), its first and its last row.
            regions: the edge region of each run of the first row, and of the last.
            n_edge: number of its edge regions.
        """
        runs = Runs.of(padded(np.stack([self._row, edges[0]])))
        node_of_run = np.concatenate([self._open_of_run, self._n_open + regions[0]])
        label = components(node_of_run[runs.touching(4)], self._n_open + n_edge)
        open_labels, open_of_run = np.unique(label[self._n_open + regions[1]], return_inverse=True)
        into = np.full(label.max(initial=-1) + 1, -1)
        into[open_labels] = np.arange(len(open_labels))
        crossing = Crossing(runs, node_of_run, self._n_open, label, open_labels, into)
        self._row, self._open_of_run, self._n_open = edges[1], open_of_run, len(open_labels)
        return crossing


class Tracer:
    """The corners of open regions, from strip to strip.

    Args:
        width: columns of the mask, px.
        connectivity: 4 or 8.
    """

    def __init__(self, width: int, connectivity: int = 4) -> None:
        self._connectivity = connectivity
        self._width = width
        self._row = 0
        self._seam = Seam(width)
        self._held: list[list[np.ndarray]] = []  # open region -> its corners so far
        self._values = np.empty(0, np.uint8)  # of the open regions
        self._groups = _Groups()

    def feed(self, strip: Strip) -> Traced:
        """Take the next strip; give the regions that it closes."""
        crossing = self._seam.cross(strip.edges, strip.regions, len(strip.values))
        runs, label = crossing.runs, crossing.label
        values = np.zeros(len(crossing.into), strip.values.dtype)
        values[label] = np.concatenate([self._values, strip.values])

        corners, pixels = find_corners(runs.block, runs.same_right, self._row)
        corners = np.concatenate([strip.corners, corners])
        nodes = np.concatenate([crossing.n_before + strip.owners, crossing.node_of_run[runs.at(pixels)]])
        closed, closed_labels = link(*self._hold(corners, label[nodes], crossing))
        self._row += strip.rows
        self._values = values[crossing.open_labels]
        if self._connectivity == 8:
            joined = self._groups.join(strip, crossing)
            return self._groups.close(joined, strip, Traced(closed.geometries(), values[closed_labels]), closed_labels)
        polygons = np.concatenate([strip.done.geometries(), closed.geometries()])
        return Traced(polygons, np.concatenate([strip.done_values, values[closed_labels]]))

    def finish(self) -> Traced:
        """The regions that the lower edge of the mask closes."""
        return self.feed(strip_of(np.zeros((1, self._width), np.uint8), self._row, self._connectivity))

    def _hold(self, corners: np.ndarray, regions: np.ndarray, crossing: Crossing) -> tuple[np.ndarray, np.ndarray]:
        """Keep the corners of open regions, give those of closed ones with their region."""
        held: list[list[np.ndarray]] = [[] for _ in crossing.open_labels]
        done_corners, done_regions = [], []
        for chunks, region in zip(self._held, crossing.label[: crossing.n_before].tolist(), strict=True):
            into = crossing.into[region]
            if into >= 0:
                held[into] = held[into] + chunks if held[into] else chunks
            else:
                done_corners += chunks
                done_regions += [np.full(len(chunk), region) for chunk in chunks]
        into = crossing.into[regions]
        done_corners.append(corners[into < 0])
        done_regions.append(regions[into < 0])
        for region, chosen in by_number(into, into >= 0):
            held[region].append(corners[chosen])
        self._held = held
        return np.concatenate(done_corners), np.concatenate(done_regions)


class _Groups:
    """Regions that touch at corners: which of the open ones belong together, and their finished parts."""

    def __init__(self) -> None:
        self._of_open = np.empty(0, np.int64)  # open region -> open group
        self._parts: list[list[Traced]] = []  # open group -> polygons of its finished regions

    def join(self, strip: Strip, crossing: Crossing) -> _Joined:
        """Number the groups anew across a seam."""
        touching, label = crossing.node_of_run[crossing.runs.touching(8)], crossing.label
        n_old, n_edge = len(self._parts), strip.groups.max(initial=-1) + 1
        group_of_node = np.concatenate([self._of_open, n_old + strip.groups])
        joined = components(group_of_node[touching], n_old + n_edge)
        of_label = np.empty(label.max(initial=-1) + 1, np.int64)
        of_label[label] = joined[group_of_node]
        still_open, self._of_open = np.unique(of_label[crossing.open_labels], return_inverse=True)
        # Groups that are complete inside the strip follow those of the seam.
        n_joined = joined.max(initial=-1) + 1
        n_inside = max(strip.done_groups.max(initial=-1) + 1 - n_edge, 0)
        of_strip = np.concatenate([joined[n_old:], n_joined + np.arange(n_inside)])
        return _Joined(n_joined + n_inside, joined[:n_old], of_strip, of_label, still_open)

    def close(self, joined: _Joined, strip: Strip, closed: Traced, closed_labels: np.ndarray) -> Traced:
        """Give the groups of which no region is open any more; keep the parts of others."""
        groups = np.concatenate([joined.of_strip[strip.done_groups], joined.of_label[closed_labels]])
        parts = Traced(
            np.concatenate([strip.done.geometries(), closed.polygons]),
            np.concatenate([strip.done_values, closed.values]),
        )
        into = np.full(joined.total, -1)
        into[joined.still_open] = np.arange(len(joined.still_open))
        held: list[list[Traced]] = [[] for _ in joined.still_open]
        done, done_groups = [], []
        for chunks, group in zip(self._parts, joined.of_old.tolist(), strict=True):
            if into[group] >= 0:
                held[into[group]] += chunks
            else:
                done += chunks
                done_groups += [np.full(len(chunk.values), group) for chunk in chunks]
        stays = into[groups] >= 0
        for group, chosen in by_number(into[groups], stays):
            held[group].append(Traced(parts.polygons[chosen], parts.values[chosen]))
        self._parts = held
        done.append(Traced(parts.polygons[~stays], parts.values[~stays]))
        return _grouped(done, np.concatenate([*done_groups, groups[~stays]]))


class _Joined(NamedTuple):
    """Groups after a seam: how many; numbers of the old open ones, of the strip's, of the regions'; which stay open."""

    total: int
    of_old: np.ndarray
    of_strip: np.ndarray
    of_label: np.ndarray
    still_open: np.ndarray


def _grouped(parts: Sequence[Traced], groups: np.ndarray) -> Traced:
    """One multipolygon for each group of parts."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    if not len(starts):
        return Traced(np.empty(0, object), np.empty(0, np.uint8))
    polygons = np.concatenate([some.polygons for some in parts])[order]
    values = np.concatenate([some.values for some in parts])[order]
    indices = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(order)))
    return Traced(shapely.multipolygons(polygons, indices=indices), values[starts])
