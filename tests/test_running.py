"""Whatever happens to a run: nothing half done under the final name, and the same bytes in the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from networks_for_tests import Hungry, Reach, brightness_model, model
from worlds import noise, write_raster

from gimseg.backends import backend_by_name
from gimseg.errors import DeviceMemoryError, PredictionError, RasterError
from gimseg.inference import Predictor, predict
from gimseg.parts import parts_folder

TESTS = Path(__file__).parent


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read(1)


def start(script: str, **values: object) -> subprocess.Popen[str]:
    """A Python process that knows the networks of the tests."""
    text = f"import sys; sys.path.insert(0, {str(TESTS)!r})\n" + textwrap.dedent(script).format(**values)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", text], cwd=TESTS.parent, **pipes)


RUN = """
    from gimseg.inference import predict
    from networks_for_tests import Hungry, Sleepy, model
    def say(task, done, total, unit): print(task, done, flush=True)
    predict({raster!r}, model(Sleepy(127.5, 0.01)), output={output!r}, window=32, block_size=32, progress=say)
"""


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_with_the_same_bytes(tmp_path: Path) -> None:
    raster = str(write_raster(tmp_path / "image.tif", noise((200, 200))))
    whole, output = tmp_path / "whole.tif", tmp_path / "mask.tif"
    run = start(RUN, raster=raster, output=str(whole))
    run.communicate(timeout=120)
    assert run.returncode == 0
    random = np.random.default_rng(0)
    kills = 0
    while kills < 20:
        run = start(RUN, raster=raster, output=str(output))
        assert run.stdout is not None
        run.stdout.readline()
        time.sleep(float(random.uniform(0, 0.6)))
        if run.poll() is None:
            run.kill()
            kills += 1
        run.communicate()
        assert not output.exists() or output.read_bytes() == whole.read_bytes()
        if output.exists():
            output.unlink()
    run = start(RUN, raster=raster, output=str(output))
    run.communicate(timeout=120)
    assert run.returncode == 0
    assert output.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


INTERRUPTED = """
    import signal
    # Who runs in the background may have been told to ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from gimseg import cli
    from gimseg.models import Model
    from networks_for_tests import Hungry, Sleepy, model
    Model.load = staticmethod(lambda folder: model(Sleepy(127.5, {seconds})))
    sys.argv = ["gimseg", "predict", {raster!r}, "-o", {output!r}, "--window", "32"{more}]
    sys.exit(cli.main())
"""


@pytest.mark.parametrize("seconds", [0.05, pytest.param(9, marks=pytest.mark.slow)])
def test_ctrl_c_ends_a_run_and_tells_how_to_go_on_also_while_the_network_computes(
    seconds: float, tmp_path: Path
) -> None:
    raster, output = str(write_raster(tmp_path / "image.tif", noise((300, 300)))), tmp_path / "mask.tif"
    more = ', "--quiet"' if seconds > 1 else ""
    run = start(INTERRUPTED, raster=raster, output=str(output), seconds=seconds, more=more)
    while not (parts_folder(output) / "manifest.json").exists():
        assert run.poll() is None
        time.sleep(0.2)
    time.sleep(0.5)
    run.send_signal(signal.SIGINT)
    # Less than the network takes for a window.
    _, said = run.communicate(timeout=7)
    assert run.returncode == 130
    assert said.count(f"Go on with: gimseg predict {raster} -o {output} --window 32") == 1
    assert "Traceback" not in said
    assert not output.exists()


def test_two_processes_share_the_blocks_and_give_the_same_bytes(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "image.tif", noise((200, 150)))
    given = model(Reach(4), mean=(127.0,), std=(70.0,))
    one = predict(raster, given, output=tmp_path / "one.tif", window=32, block_size=32)
    two = predict(raster, given, output=tmp_path / "two.tif", window=32, block_size=32, device="cpu,cpu")
    assert two.path.read_bytes() == one.path.read_bytes()
    with pytest.raises(PredictionError, match="devices cpu,meta: of one kind"):
        Predictor(given, device="cpu,meta")


@pytest.mark.slow
def test_a_process_that_fails_is_reported_and_what_is_finished_stays(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "image.tif", noise((200, 150)))
    predictor = Predictor(brightness_model(), device="cpu,cpu")
    plan = predictor.plan(raster, tmp_path / "mask.tif", window=32, block_size=32)
    os.rename(raster, tmp_path / "gone.tif")
    with pytest.raises(PredictionError, match=r"cpu: .*image\.tif cannot be read any more.*give the same again"):
        predictor.run(plan)
    os.rename(tmp_path / "gone.tif", raster)
    assert predictor.run(plan).path.exists()


class Small:
    """A backend of a device that holds so many pixels at once."""

    def __init__(self, inner: object, pixels: int) -> None:
        self.inner, self.name, self.pixels, self.shapes = inner, inner.name, pixels, []

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        self.shapes.append((images.shape[0], *images.shape[2:]))
        if images.shape[0] * images.shape[2] * images.shape[3] > self.pixels:
            raise DeviceMemoryError("toy is out of memory")
        return self.inner.logits(images)


def small_predictor(pixels: int, batch: int) -> tuple[Predictor, Small]:
    predictor = Predictor(model(Reach(4), mean=(127.0,), std=(70.0,), halo=4), batch=batch)
    backend = Small(backend_by_name(predictor.model, predictor.device, "torch float32"), pixels)
    predictor._backends = {backend.name: backend}
    return predictor, backend


def test_out_of_memory_halves_the_batch_then_the_window_and_says_so(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "image.tif", noise((120, 150)))
    predictor, backend = small_predictor(40 * 40, batch=2)
    done = predictor.predict(raster, tmp_path / "mask.tif", window=64)
    sizes = list(dict.fromkeys(shape[0] * shape[1] * shape[2] for shape in backend.shapes))
    assert sizes == sorted(sizes, reverse=True)
    told = next(note for note in done.notes if "out of memory" in note)
    assert told.endswith("went on with 1 window of 64 px at once")
    whole = predict(raster, predictor.model, output=tmp_path / "whole.tif")
    assert np.array_equal(read(done.path), read(whole.path))
    assert done.resumed == 0


def test_out_of_memory_for_the_smallest_window_is_an_error_with_numbers(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "image.tif", noise((120, 150)))
    predictor, _ = small_predictor(10, batch=1)
    with pytest.raises(DeviceMemoryError, match=r"toy is out of memory: 1 window of .* px is the least .* 4 px around"):
        predictor.predict(raster, tmp_path / "mask.tif", window=64)
    assert not (tmp_path / "mask.tif").exists()


@pytest.mark.slow
def test_processes_that_run_out_of_memory_go_on_with_less_too(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "image.tif", noise((120, 150)))
    given = model(Hungry(4, 2 * 40 * 40), mean=(127.0,), std=(70.0,), halo=4)
    asked = {"device": "cpu,cpu", "backend": "torch", "precision": "float32"}
    done = Predictor(given, batch=2, **asked).predict(raster, tmp_path / "mask.tif", window=64)
    assert next(note for note in done.notes if "out of memory" in note).endswith(
        "went on with 1 window of 64 px at once"
    )
    whole = predict(raster, model(Reach(4), mean=(127.0,), std=(70.0,), halo=4), output=tmp_path / "whole.tif")
    assert np.array_equal(read(done.path), read(whole.path))


def broken(path: Path) -> Path:
    """A raster of 600 x 300 px of which the lower third is missing."""
    write_raster(path, noise((600, 300)), tiled=True, blockxsize=64, blockysize=64)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
    return path


@pytest.mark.parametrize("block", [40, 1000])
@pytest.mark.parametrize("resolution", [1.0, 0.7])
def test_what_cannot_be_read_is_named_when_all_else_is_done_or_left_255_and_listed(
    block: int, resolution: float, tmp_path: Path
) -> None:
    raster, output = broken(tmp_path / "image.tif"), tmp_path / "mask.tif"
    options = {"window": 64, "block_size": block, "resolution": resolution}
    with pytest.raises(RasterError, match=r"parts .* cannot be read: rows \d+ to \d+, columns .*; .*nodata"):
        predict(raster, brightness_model(), output=output, **options)
    assert not output.exists()
    done = predict(raster, brightness_model(), output=output, on_error="nodata", **options)
    assert done.resumed == done.blocks
    assert any("mask_unread.csv" in note for note in done.notes)
    listed = sorted(set((tmp_path / "mask_unread.csv").read_text().splitlines()[1:]))
    assert "POLYGON" in listed[0]
    lost = np.zeros(read(output).shape, bool)
    for line in listed:
        rows, cols = (slice(*map(int, part.split(" to "))) for part in line.split(",")[:2])
        lost[rows, cols] = True
    assert np.array_equal(read(output) == 255, lost)
    assert 0.2 < lost.mean() < 0.5
    # The same pixels, whatever the block.
    again = predict(raster, brightness_model(), output=tmp_path / "again.tif", on_error="nodata", resolution=resolution)
    assert np.array_equal(read(again.path), read(output))


FULL = """
    import resource
    from gimseg.errors import OutputError
    from gimseg.inference import predict
    from networks_for_tests import Hungry, brightness_model
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
    try:
        predict({raster!r}, brightness_model(), output={output!r}, window=64, block_size=64)
    except OutputError as error:
        print("refused:", error)
"""


@pytest.mark.parametrize("limit", [100, 12_000], ids=["parts", "mask"])
def test_a_disk_that_fills_up_is_reported_and_finished_blocks_stay(limit: int, tmp_path: Path) -> None:
    raster, output = write_raster(tmp_path / "image.tif", noise((400, 400))), tmp_path / "mask.tif"
    run = start(FULL, raster=str(raster), output=str(output), limit=limit)
    said, errors = run.communicate(timeout=120)
    assert said.startswith("refused:"), errors
    assert not output.exists()
    assert not list(tmp_path.glob("*.partial"))
    finished = list(parts_folder(output).glob("block_*.tif"))
    assert bool(finished) == (limit > 1000)
    whole = predict(raster, brightness_model(), output=tmp_path / "whole.tif", window=64)
    assert predict(raster, brightness_model(), output=output, window=64, block_size=64).resumed == len(finished)
    assert output.read_bytes() == whole.path.read_bytes()


@pytest.mark.real_data
def test_a_real_damaged_file_is_named_or_its_damage_left_out(real_data: Path, tmp_path: Path) -> None:
    raster = real_data / "odd" / "corrupt.tif"
    with rasterio.open(raster) as dataset:
        given = brightness_model(dtype=dataset.dtypes[0], halo=0)
    with pytest.raises(RasterError, match=r"corrupt\.tif"):
        predict(raster, given, output=tmp_path / "mask.tif")
    done = predict(raster, given, output=tmp_path / "mask.tif", on_error="nodata")
    assert done.counts["no data"] > 0
    assert (tmp_path / "mask_unread.csv").exists()
