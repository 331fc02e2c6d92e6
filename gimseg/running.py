"""The blocks of a plan, read, predicted and kept, until all are finished."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from gimseg.computing import Computation, Finished, Network
from gimseg.errors import RasterError
from gimseg.freed_memory import give_back_freed_memory
from gimseg.loading import Loaded, load_block
from gimseg.outputs import write_text
from gimseg.parts import Parts
from gimseg.pipeline import Behind, ahead, map_ahead, readers
from gimseg.preflight import Plan
from gimseg.progress import Progress
from gimseg.tiling import Block

_NAMED = 5


def predict_blocks(
    plan: Plan, network: Network, parts: Parts, blocks: Iterable[Block], progress: Progress, pixels: int = 0
) -> None:
    """Predict blocks and keep them.

    Reading, the network and writing overlap: some threads read blocks ahead, one runs
    the network, one writes; the caller's waits, so that an interrupt finds it at once.

    Args:
        plan: of the raster.
        network: that predicts.
        parts: keep what is finished.
        blocks: which, in order; taken as they are needed.
        progress: told the share of the raster, Mpx, that is done.
        pixels: in all blocks.

    Raises:
        DeviceMemoryError: the device cannot hold a batch.
        OutputError: the disk refuses.
    """
    total, done = pixels / 1e6, 0.0
    progress("predict", done, total, "Mpx")
    threads = readers()

    def load(block: Block) -> Loaded:
        return load_block(plan.view, plan.lattice, block, plan.asked)

    def keep(finished: Finished) -> None:
        unread = [_told(plan, item.roi, item.reason) for item in finished.unread]
        parts.write(finished.block, finished.values, plan.geobox, unread)
        # Reading, the network and writing free in threads of their own: without this the peak creeps up.
        give_back_freed_memory()

    computation = Computation(network, plan.lattice, plan.engine.batch)
    loaded = map_ahead(load, blocks, threads=threads, limit=threads)
    with Behind(keep) as writer, closing(ahead(computation.run(loaded))) as steps:
        for step in steps:
            done += step.pixels / 1e6
            if step.finished is not None:
                writer(step.finished)
            progress("predict", min(done, total), total, "Mpx")


def pixels_of(blocks: Iterable[Block]) -> int:
    """Pixels of the raster in blocks."""
    return sum(block.shape[0] * block.shape[1] for block in blocks)


def check_read(plan: Plan, parts: Parts) -> None:
    """Refuse to write a mask of a raster of which something could not be read.

    Raises:
        RasterError: it names what.
    """
    unread = parts.unread()
    if not unread:
        return
    places = "; ".join(f"rows {item['rows']}, columns {item['cols']}" for item in unread[:_NAMED])
    more = f" and {len(unread) - _NAMED} more" if len(unread) > _NAMED else ""
    raise RasterError(
        f"{len(unread)} parts of the mask's grid cannot be read: {places}{more} ({unread[0]['reason']}). All else "
        "is finished and kept: give the same again with --on-error nodata to leave them 255, or mend the file"
    )


def write_unread(plan: Plan, parts: Parts) -> Path | None:
    """List beside the mask what could not be read and is 255 there; None where there is nothing to list.

    The list is CSV; its column ``wkt`` holds them in the mask's CRS, which QGIS shows.
    """
    unread = parts.unread()
    if not unread:
        return None
    path = plan.output.with_name(f"{plan.output.stem}_unread.csv")
    lines = ["rows,columns,reason,wkt"]
    for item in unread:
        reason = str(item["reason"]).replace('"', "'")
        lines.append(f'{item["rows"]},{item["cols"]},"{reason}","{item["wkt"]}"')
    write_text(path, "\n".join(lines) + "\n")
    return path


def _told(plan: Plan, roi: Any, reason: str) -> dict[str, Any]:
    rows, cols = roi
    return {
        "rows": f"{rows.start} to {rows.stop}",
        "cols": f"{cols.start} to {cols.stop}",
        "reason": reason,
        "wkt": plan.geobox[roi].extent.geom.wkt,
    }
