"""From raster to mask: right pixels, whatever the blocks; refused early, or resumed with the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
import torch
from networks_for_tests import Constant, Reach, brightness_model, model
from worlds import noise, north_up, write_raster

from gimseg.backends import backend_by_name
from gimseg.errors import GimsegError, OutputError, PredictionError, RasterError, ResumeError
from gimseg.inference import Predictor, predict
from gimseg.legend import Legend
from gimseg.models import Model, build_network
from gimseg.parts import Parts, parts_folder


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read(1)


@pytest.mark.parametrize("shape", [(1, 1), (7, 100), (16, 16), (97, 61), (130, 45)])
@pytest.mark.parametrize(("window", "halo", "block"), [(32, 8, 16), (32, 8, 48), (64, 0, 10), (16, 4, 2048)])
def test_an_identity_network_gives_the_image_back(
    shape: tuple[int, int], window: int, halo: int, block: int, tmp_path: Path
) -> None:
    image = noise(shape, seed=shape[0])
    raster = write_raster(tmp_path / "image.tif", image)
    given = brightness_model(halo=halo)
    done = predict(raster, given, output=tmp_path / "mask.tif", window=window, block_size=block)
    assert np.array_equal(read(done.path), image > 127.5)
    assert done.counts == {"background": int((image < 128).sum()), "bright": int((image > 127).sum()), "no data": 0}


def test_the_bytes_do_not_depend_on_the_block_size(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "image.tif", noise((90, 110)))
    masks = []
    for block in (16, 50, 2048):
        path = tmp_path / str(block) / "mask.tif"
        path.parent.mkdir()
        predict(raster, model(Reach(4)), output=path, window=32, block_size=block)
        masks.append(path.read_bytes())
    assert 0.1 < read(path).mean() < 0.9
    assert len(set(masks)) == 1


def test_a_real_network_is_stitched_alike_for_all_block_sizes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_network("Unet", "mobilenet_v2", encoder_depth=3, decoder_channels=[16, 8, 8]).eval()
    recipe = {"bands": (1, 2, 3), "mean": (128.0,) * 3, "std": (74.0,) * 3, "window": 64, "halo": 16, "stride": 8}
    raster = write_raster(tmp_path / "image.tif", noise((3, 90, 110)))
    predictor = Predictor(model(network, **recipe))
    one = predictor.predict(raster, tmp_path / "one.tif", window=64, block_size=32)
    other = predictor.predict(raster, tmp_path / "other.tif", window=64)
    assert (one.blocks, other.blocks) == (6, 2)
    assert np.array_equal(read(one.path), read(other.path))


def test_stitching_with_the_halo_of_its_reach_is_one_pass_over_the_image(tmp_path: Path) -> None:
    network, image = Reach(8), noise((100, 120))
    raster = write_raster(tmp_path / "image.tif", image)
    given = model(network, mean=(127.0,), std=(70.0,), halo=8)
    done = predict(raster, given, output=tmp_path / "mask.tif", window=40, block_size=48)
    with torch.inference_mode():
        whole = (torch.from_numpy(image).float() - 127) / 70
        expected = (network(whole[None, None])[0, 0] > 0).numpy()
    assert done.blocks > 4
    assert np.array_equal(read(done.path), expected)


@pytest.mark.parametrize("shape", [(1, 1), (7, 100), (20, 33), (97, 61)])
def test_a_raster_smaller_than_a_window_is_one_pass_over_it_mirrored_up_to_the_stride(
    shape: tuple[int, int], tmp_path: Path
) -> None:
    network, image = Reach(6), noise(shape, seed=3)
    raster = write_raster(tmp_path / "image.tif", image)
    done = predict(raster, model(network, mean=(127.0,), std=(70.0,)), output=tmp_path / "mask.tif")
    beyond = [(0, -size % 4) for size in shape]
    with torch.inference_mode():
        whole = torch.from_numpy((np.pad(image, beyond, "reflect").astype(np.float32) - 127) / 70)
        expected = (network(whole[None, None])[0, 0] > 0).numpy()
    assert np.array_equal(read(done.path), expected[: shape[0], : shape[1]])


@pytest.mark.parametrize("block", [16, 50, 2048])
def test_blended_windows_have_the_same_bytes_for_every_block(block: int, tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "image.tif", noise((90, 110)))
    given = model(Reach(12), mean=(127.0,), std=(70.0,), halo=4, blend=True)
    whole = predict(raster, given, output=tmp_path / "whole.tif")
    one = predict(raster, given, output=tmp_path / "one.tif", block_size=block)
    assert one.path.read_bytes() == whole.path.read_bytes()
    cropped = predict(raster, given, output=tmp_path / "cropped.tif", block_size=block, blend=False, window=32)
    assert (read(cropped.path) != read(one.path)).any()


def test_several_windows_at_once_give_the_same(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "image.tif", noise((90, 110)))
    masks = [
        read(Predictor(model(Reach(6)), batch=batch).predict(raster, tmp_path / f"{batch}.tif", window=32).path)
        for batch in (1, 3)
    ]
    assert np.array_equal(*masks)


def test_bfloat16_gives_nearly_the_same(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "image.tif", noise((64, 64)))
    changes = {"mean": (127.0,), "std": (70.0,)}
    one, other = (
        read(Predictor(model(Reach(2), **changes), precision=name).predict(raster, tmp_path / f"{name}.tif").path)
        for name in ("float32", "bfloat16")
    )
    assert 0 < (one != other).mean() < 0.02


@pytest.mark.parametrize(("logit", "value"), [(3.0, 1), (-3.0, 0)])
def test_a_constant_network_gives_a_constant_mask_without_a_border(logit: float, value: int, tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "image.tif", noise((70, 90)))
    for blend in (False, True):
        output = tmp_path / f"{blend}.tif"
        done = predict(raster, model(Constant(logit)), output=output, window=32, block_size=32, blend=blend)
        assert (read(done.path) == value).all()


def test_invalid_pixels_are_255_and_do_not_tell_their_value(tmp_path: Path) -> None:
    image = noise((80, 90), low=1)
    image[:40, :40] = 0
    image[60, 70] = 0
    raster = write_raster(tmp_path / "image.tif", image, nodata=0)
    done = predict(raster, brightness_model(), output=tmp_path / "mask.tif", window=32, block_size=16)
    assert np.array_equal(read(done.path), np.where(image == 0, 255, image > 127.5))
    assert done.counts["no data"] == 1601
    with rasterio.open(done.path) as mask:
        assert mask.nodata == 255


def test_blocks_without_a_valid_pixel_do_not_reach_the_network(tmp_path: Path, monkeypatch) -> None:
    image = np.zeros((64, 64), np.uint8)
    image[40:, 40:] = 200
    raster = write_raster(tmp_path / "image.tif", image, nodata=0)
    predictor = Predictor(brightness_model())
    asked = []
    backend = backend_by_name(predictor.model, predictor.device, "torch float32")
    predictor._backends[backend.name] = backend
    logits = backend.logits
    monkeypatch.setattr(backend, "logits", lambda images: (asked.append(len(images)), logits(images))[1])
    predictor.predict(raster, tmp_path / "mask.tif", window=32, block_size=32)
    assert sum(asked) == 1


def test_only_the_area_of_interest_is_predicted_and_read(tmp_path: Path, monkeypatch) -> None:
    image = noise((96, 96))
    raster = write_raster(tmp_path / "image.tif", image)
    left, top = north_up().c, north_up().f
    # Columns 10 to 30, rows 50 to 90; given in another CRS than the raster's.
    box = gpd.GeoSeries([shapely.box(left + 10, top - 90, left + 30, top - 50)], crs="EPSG:32633").to_crs("EPSG:4326")
    gpd.GeoDataFrame(geometry=box).to_file(tmp_path / "aoi.gpkg")
    predictor = Predictor(brightness_model())
    plan = predictor.plan(raster, tmp_path / "mask.tif", aoi=tmp_path / "aoi.gpkg", window=32, block_size=16)
    reads = []
    read_view = type(plan.view).read_plain
    monkeypatch.setattr(type(plan.view), "read_plain", lambda view, roi: (reads.append(roi), read_view(view, roi))[1])
    done = predictor.run(plan)
    expected = np.full(image.shape, 255)
    expected[50:90, 10:30] = image[50:90, 10:30] > 127.5
    assert np.array_equal(read(done.path), expected)
    assert len(reads) == 6
    assert done.blocks == 25


def test_an_area_of_interest_that_misses_the_raster_is_refused(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "image.tif", noise((20, 20)))
    far = gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)], crs="EPSG:32633")
    far.to_file(tmp_path / "aoi.gpkg")
    with pytest.raises(GimsegError, match=r"aoi\.gpkg"):
        predict(raster, brightness_model(), output=tmp_path / "mask.tif", aoi=tmp_path / "aoi.gpkg")
    left, top = north_up().c, north_up().f
    points = gpd.GeoDataFrame(geometry=[shapely.Point(left + 5, top - 5)], crs="EPSG:32633")
    points.to_file(tmp_path / "points.gpkg")
    with pytest.raises(PredictionError, match="points or lines"):
        predict(raster, brightness_model(), output=tmp_path / "mask.tif", aoi=tmp_path / "points.gpkg")


def test_the_mask_has_the_models_resolution_and_says_what_it_is(tmp_path: Path) -> None:
    image = np.kron(noise((40, 50)), np.ones((2, 2), np.uint8))
    raster = write_raster(tmp_path / "image.tif", image, transform=north_up(0.5))
    done = predict(raster, brightness_model(), output=tmp_path / "mask.tif")
    with rasterio.open(done.path) as mask:
        assert mask.res == (1.0, 1.0)
        assert mask.crs.to_epsg() == 32633
        assert mask.colormap(1)[1] == (255, 0, 0, 255)
        assert mask.tags()["class_1"] == "bright"
        assert mask.tags()["gimseg_raster"] == "image.tif"
        assert mask.tags()["gimseg_model_fingerprint"] == brightness_model().fingerprint()
        assert mask.profile["tiled"]
    assert np.array_equal(read(done.path), image[::2, ::2] > 127.5)
    finer = predict(raster, brightness_model(), output=tmp_path / "finer.tif", resolution=0.5)
    assert np.array_equal(read(finer.path), image > 127.5)


def test_a_large_mask_has_overviews(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "image.tif", np.full((600, 1100), 9, np.uint8))
    done = predict(raster, brightness_model(), output=tmp_path / "mask.tif", window=256, block_size=512)
    with rasterio.open(done.path) as mask:
        assert mask.overviews(1) == [2, 4]


def test_what_a_person_should_know_is_said(tmp_path: Path) -> None:
    predictor = Predictor(brightness_model(resolution=0.3))
    coarse = write_raster(tmp_path / "coarse.tif", noise((20, 20)), transform=north_up(10))
    plan = predictor.plan(coarse, tmp_path / "mask.tif")
    assert any("pixels of 10 m, the model learned from 0.3 m: 33.3 times coarser" in note for note in plan.notes)
    assert "667 x 667 px" in plan.text()
    nowhere = write_raster(tmp_path / "nowhere.tif", noise((20, 20)), crs=None)
    assert any(
        "no CRS" in note or "no georeference" in note for note in predictor.plan(nowhere, tmp_path / "m.tif").notes
    )


def test_wrong_bands_and_another_dtype_are_refused_before_a_pixel_is_read(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("gimseg.rasters.RasterView.read_plain", lambda *_: pytest.fail("a pixel was read"))
    colour = model(Constant(1.0), bands=(1, 2, 3), mean=(0.0,) * 3, std=(1.0,) * 3)
    grey = write_raster(tmp_path / "grey.tif", noise((20, 20)))
    with pytest.raises(PredictionError, match="has 1 band, the model needs bands 1, 2, 3"):
        predict(grey, colour, output=tmp_path / "mask.tif")
    with pytest.raises(PredictionError, match="the model takes 1, give as many"):
        predict(grey, brightness_model(), output=tmp_path / "mask.tif", bands=(1, 2))
    deep = write_raster(tmp_path / "deep.tif", noise((20, 20), dtype="uint16"))
    with pytest.raises(PredictionError, match="holds uint16, the model learned from uint8"):
        predict(deep, brightness_model(), output=tmp_path / "mask.tif")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep.tif", "grey.tif"]


def test_other_bands_can_take_the_places_of_the_models(tmp_path: Path) -> None:
    image = noise((2, 20, 20))
    raster = write_raster(tmp_path / "image.tif", image)
    done = predict(raster, brightness_model(), output=tmp_path / "mask.tif", bands=(2,))
    assert np.array_equal(read(done.path), image[1] > 127.5)


def test_outputs_that_must_not_be_written_are_refused(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "image.tif", noise((20, 20)))
    before = raster.read_bytes()
    link = tmp_path / "link.tif"
    link.symlink_to(raster)
    for output, said in (
        (raster, "is the input"),
        (link, "is the input"),
        (tmp_path / "mask.png", "ends in .tif"),
        (tmp_path / "nowhere" / "mask.tif", "does not exist"),
    ):
        with pytest.raises(OutputError, match=said):
            predict(raster, brightness_model(), output=output, overwrite=True)
    done = predict(raster, brightness_model(), output=tmp_path / "mask.tif")
    with pytest.raises(OutputError, match="--overwrite"):
        predict(raster, brightness_model(), output=done.path)
    predict(raster, brightness_model(300.0), output=done.path, overwrite=True)
    assert read(done.path).max() == 0
    assert raster.read_bytes() == before


def test_a_full_disk_is_seen_beforehand(tmp_path: Path, monkeypatch) -> None:
    raster = write_raster(tmp_path / "image.tif", noise((20, 20)))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(OutputError, match="needs about 1 MB of disk, 0 MB are free"):
        predict(raster, brightness_model(), output=tmp_path / "mask.tif")


def test_unknown_devices_and_precisions_are_refused() -> None:
    with pytest.raises(PredictionError, match="device 'tpu9'"):
        Predictor(brightness_model(), device="tpu9")
    with pytest.raises(PredictionError, match="float16"):
        Predictor(brightness_model(), precision="float16")
    with pytest.raises(TypeError, match="blocksize"):
        Predictor(brightness_model()).plan("a.tif", "b.tif", blocksize=3)


def test_the_network_of_the_caller_is_left_as_it_is() -> None:
    given = model(Constant(1.0))
    given.network.train()
    Predictor(given)
    assert given.network.training


def broken(tmp_path: Path) -> Path:
    """A raster of which the lower half is missing."""
    path = write_raster(tmp_path / "image.tif", noise((256, 64)), tiled=True, blockxsize=16, blockysize=16)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    return path


def test_a_raster_that_cannot_be_read_is_named_and_finished_blocks_stay(tmp_path: Path) -> None:
    raster = broken(tmp_path)
    with pytest.raises(RasterError, match=r"image\.tif"):
        predict(raster, brightness_model(), output=tmp_path / "mask.tif", window=32, block_size=32)
    assert not (tmp_path / "mask.tif").exists()
    finished = list(parts_folder(tmp_path / "mask.tif").glob("block_*.tif"))
    assert 3 < len(finished) < 32


class StopAfter:
    """Progress that interrupts, as a person would."""

    def __init__(self, windows: int) -> None:
        self.left = windows

    def __call__(self, task: str, done: float, total: float, unit: str) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


def stopped(raster: Path, output: Path, **options: object) -> None:
    with pytest.raises(KeyboardInterrupt):
        predict(raster, brightness_model(), output=output, window=32, block_size=32, progress=StopAfter(30), **options)


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "image.tif", noise((150, 100)))
    (tmp_path / "other").mkdir()
    whole = predict(raster, brightness_model(), output=tmp_path / "other" / "mask.tif", window=32, block_size=32)
    output = tmp_path / "mask.tif"
    stopped(raster, output)
    assert not output.exists()
    done = predict(raster, brightness_model(), output=output, window=32, block_size=32)
    assert 5 <= done.resumed < done.blocks
    assert done.counts == whole.counts
    assert output.read_bytes() == whole.path.read_bytes()
    assert not parts_folder(output).exists()


@pytest.mark.parametrize("change", ["model", "raster", "block", "nodata", "aoi"])
def test_parts_of_another_run_are_refused_or_thrown_away(change: str, tmp_path: Path) -> None:
    raster, output = write_raster(tmp_path / "image.tif", noise((150, 100))), tmp_path / "mask.tif"
    stopped(raster, output)
    other, options = brightness_model(), {"window": 32, "block_size": 32}
    if change == "model":
        other = brightness_model(90.0)
    elif change == "raster":
        write_raster(raster, noise((150, 100), seed=1))
    elif change == "block":
        options["block_size"] = 48
    elif change == "nodata":
        options["nodata"] = 0
    else:
        left, top = north_up().c, north_up().f
        area = gpd.GeoDataFrame(geometry=[shapely.box(left, top - 50, left + 50, top)], crs="EPSG:32633")
        area.to_file(tmp_path / "aoi.gpkg")
        options["aoi"] = tmp_path / "aoi.gpkg"
    with pytest.raises(ResumeError, match=f"another run: {change}.* was .*, is .*--restart"):
        predict(raster, other, output=output, **options)
    done = predict(raster, other, output=output, restart=True, **options)
    assert done.resumed == 0
    assert not parts_folder(output).exists()


def test_two_runs_do_not_write_one_output(tmp_path: Path) -> None:
    raster, output = write_raster(tmp_path / "image.tif", noise((50, 50))), tmp_path / "mask.tif"
    with Parts(output, {"run": 1}), pytest.raises(PredictionError, match="another run is writing"):
        predict(raster, brightness_model(), output=output)


KILLED = """
    import os, sys, time
    sys.path.insert(0, {tests!r})
    from gimseg.inference import predict
    from networks_for_tests import brightness_model

    def slow(task, done, total, unit):
        print(task, done, flush=True)
        time.sleep(0.02)

    predict({raster!r}, brightness_model(), output={output!r}, window=32, block_size=32, progress=slow)
"""


@pytest.mark.slow
def test_a_killed_run_leaves_no_output_and_goes_on(tmp_path: Path) -> None:
    raster, output = write_raster(tmp_path / "image.tif", noise((400, 300))), tmp_path / "mask.tif"
    (tmp_path / "other").mkdir()
    whole = predict(raster, brightness_model(), output=tmp_path / "other" / "mask.tif", window=32, block_size=32)
    script = textwrap.dedent(KILLED).format(tests=str(Path(__file__).parent), raster=str(raster), output=str(output))
    run = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    for _ in range(50):
        assert run.stdout.readline().startswith("predict")
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    run.stdout.close()
    assert not output.exists()
    done = predict(raster, brightness_model(), output=output, window=32, block_size=32)
    assert 5 <= done.resumed < done.blocks
    assert output.read_bytes() == whole.path.read_bytes()


def test_a_model_on_disk_predicts_as_in_memory(tmp_path: Path) -> None:
    torch.manual_seed(1)
    options = {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}
    network = build_network("Unet", "mobilenet_v2", bands=1, channels=3, **options).eval()
    legend = Legend.from_dict({"classes": ["tin", "tile"]})
    made = model(network, stride=8, window=64, halo=8, mean=(128.0,), std=(70.0,), legend=legend)
    made = Model(network, made.recipe, {"name": "Unet", "encoder": "mobilenet_v2", "options": options})
    raster = write_raster(tmp_path / "image.tif", noise((70, 80)))
    one = predict(raster, made, output=tmp_path / "one.tif")
    other = predict(raster, made.save(tmp_path / "model"), output=tmp_path / "other.tif")
    assert set(np.unique(read(one.path))) <= {0, 1, 2}
    assert len(np.unique(read(one.path))) > 1
    assert np.array_equal(read(one.path), read(other.path))
    assert list(one.counts) == ["background", "tin", "tile", "no data"]
    assert "tin" in one.text()
