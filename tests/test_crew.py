"""Laws of a crew: results in order, errors as they were, and nobody left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_vectorization import geometries, houses, read
from worlds import write_raster

from gimseg import regions
from gimseg.crew import Crew
from gimseg.errors import RasterError, TilingError, WorkerError
from gimseg.tiling import crop
from gimseg.vectorization import vectorize


def window(halo: int) -> slice:
    return crop(64, halo)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_results_come_in_the_order_of_the_tasks() -> None:
    with Crew(2) as crew:
        assert list(crew.map(np.arange, range(20)))[7].tolist() == list(range(7))
        pids = set(crew.map(_pid, range(8)))
    assert len(pids) <= 2 and os.getpid() not in pids
    assert not any(map(alive, pids))


def _pid(_: int) -> int:
    time.sleep(0.05)
    return os.getpid()


def test_few_tasks_are_taken_ahead() -> None:
    taken: list[int] = []

    def tasks() -> object:
        for number in range(100):
            taken.append(number)
            yield number

    with Crew(1) as crew:
        results = crew.map(abs, tasks())  # type: ignore[arg-type]
        assert next(results) == 0
        assert len(taken) <= 3
        results.close()


def test_an_error_comes_back_as_it_was_and_ends_the_crew() -> None:
    with Crew(1) as crew:
        (pid,) = crew.map(_pid, [0])
        with pytest.raises(TilingError, match="halo of 40 px"):
            list(crew.map(window, [1, 40]))
    assert not alive(pid)


def test_a_process_that_is_killed_is_told_of() -> None:
    with Crew(1) as crew, pytest.raises(WorkerError, match="ended with status"):
        list(crew.map(_kill, [0]))


def _kill(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [{}, {"connectivity": 8}, {"coverage": True, "simplify_m": 2.0}], ids=str)
def test_other_processes_change_no_polygon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: dict[str, object]
) -> None:
    mask = write_raster(tmp_path / "mask.tif", houses(), tiled=True, blockxsize=16, blockysize=16)
    vectorize(mask, tmp_path / "alone.gpkg", block=16, **steps)
    monkeypatch.setattr(regions, "_WORTH_WORKERS", 0)
    monkeypatch.setattr(regions, "cores", lambda: 3)
    vectorize(mask, tmp_path / "crew.gpkg", block=16, **steps)
    assert geometries(read(tmp_path / "crew.gpkg")) == geometries(read(tmp_path / "alone.gpkg"))


@pytest.mark.slow
def test_a_mask_that_cannot_be_read_is_told_by_other_processes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = write_raster(tmp_path / "mask.tif", houses(), tiled=True, blockxsize=16, blockysize=16)
    mask.write_bytes(mask.read_bytes()[:-5000])
    monkeypatch.setattr(regions, "_WORTH_WORKERS", 0)
    monkeypatch.setattr(regions, "cores", lambda: 2)
    with pytest.raises(RasterError, match=r"mask\.tif"):
        vectorize(mask, tmp_path / "out.gpkg", block=16)
    assert [path.name for path in tmp_path.iterdir()] == ["mask.tif"]


@pytest.mark.slow
def test_a_script_without_a_guard_is_not_run_again_and_its_death_ends_the_crew(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal\nfrom gimseg.crew import Crew\nprint('once', flush=True)\n"
        "with Crew(2) as crew:\n"
        "    print(*crew._processes and [process.pid for process in crew._processes], flush=True)\n"
        "    print(list(crew.map(abs, [-1, -2, -3])), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(regions.__file__).parents[1])}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    said, pids, results = done.stdout.splitlines()
    assert said == "once" and results == "[1, 2, 3]" and done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while any(alive(int(pid)) for pid in pids.split()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(int(pid)) for pid in pids.split())
