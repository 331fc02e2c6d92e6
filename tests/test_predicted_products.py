"""What a prediction can deliver: laws that hold from the raster to the files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import torch
from affine import Affine
from networks_for_tests import Constant, Reach, brightness_model, model
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rio_cogeo.cogeo import cog_validate
from worlds import TOP_LEFT, UTM, noise, north_up, ramp, write_raster

from gimseg.errors import GridError, OutputError, PredictionError, RasterError, ResumeError
from gimseg.inference import Predictor, predict
from gimseg.legend import Legend
from gimseg.products import STEPS, Products, to_shares

ROOFS = Legend.from_dict({"classes": [{"name": "tin", "value": 3}, {"name": "tile", "value": 7}]})
SOUTH_UP = Affine(1, 0, TOP_LEFT[0], 0, 1, TOP_LEFT[1])
TURNED = Affine.translation(*TOP_LEFT) @ Affine.rotation(20) @ Affine.scale(1, -1)
ALL = Products(probabilities=True, uncertainty="entropy")


class ThreeWays(torch.nn.Module):
    """Band 1 as logits of background, its negative of class 1, nothing of class 2."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([images, -images, torch.zeros_like(images)], dim=1)


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read()


def predict_all(raster: Path | list[Path], made, output: Path, **options) -> dict[str, np.ndarray]:
    """All planes of a prediction, by file."""
    done = predict(raster, made, output=output, products=ALL, **options)
    return {name: read(path) for name, path in {"mask": done.path, **ALL.files(done.path)}.items()}


# Probabilities and uncertainty


def test_probabilities_and_uncertainty_lie_beside_the_mask_and_unscale_to_shares(tmp_path: Path) -> None:
    image = noise((70, 90))
    image[:20, :20] = 0
    raster = write_raster(tmp_path / "image.tif", image, nodata=0)
    made = model(ThreeWays(), legend=ROOFS, mean=(127.0,), std=(60.0,))
    done = predict(raster, made, output=tmp_path / "mask.tif", products=ALL, block_size=32)
    logits = (torch.from_numpy(image).float() - 127) / 60
    shares = torch.stack([logits, -logits, torch.zeros_like(logits)]).softmax(dim=0).numpy()
    with rasterio.open(tmp_path / "mask_probabilities.tif") as raster_out:
        assert raster_out.descriptions == ("tin", "tile") and raster_out.nodata == 255
        assert raster_out.scales == (1 / STEPS,) * 2 and raster_out.offsets == (0.0, 0.0)
        unscaled = raster_out.read(masked=True) * raster_out.scales[0] + raster_out.offsets[0]
        assert (unscaled.mask == (image == 0)).all()
        assert np.abs(unscaled - shares[1:]).max() <= 0.5 / STEPS + 1e-6
        grid = raster_out.transform, raster_out.crs, raster_out.shape
    with rasterio.open(tmp_path / "mask_uncertainty.tif") as raster_out:
        entropy = -(shares * np.log(shares)).sum(axis=0) / np.log(3)
        found = raster_out.read(1, masked=True) * raster_out.scales[0]
        assert np.abs(found - entropy).max() <= 0.5 / STEPS + 1e-6
        assert (raster_out.transform, raster_out.crs, raster_out.shape) == grid
    with rasterio.open(done.path) as mask:
        assert (mask.transform, mask.crs, mask.shape) == grid
    classes = np.array([0, 3, 7])[shares.argmax(axis=0)]
    assert np.array_equal(read(done.path)[0], np.where(image == 0, 255, classes))


def test_planes_do_not_depend_on_blocks_and_the_mask_not_on_other_planes(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "image.tif", noise((90, 110)))
    made = model(Reach(4), mean=(127.0,), std=(70.0,))
    files = []
    for block in (16, 2048):
        (tmp_path / str(block)).mkdir()
        predict_all(raster, made, tmp_path / str(block) / "mask.tif", window=32, block_size=block)
        files.append({path.name: path.read_bytes() for path in (tmp_path / str(block)).iterdir()})
    assert files[0] == files[1]
    assert set(files[0]) == {"mask.tif", "mask.tif.aux.xml", "mask_probabilities.tif", "mask_uncertainty.tif"}
    alone = predict(raster, made, output=tmp_path / "alone.tif")
    assert np.array_equal(read(alone.path), read(tmp_path / "16" / "mask.tif"))


def test_overviews_of_shares_are_means(tmp_path: Path) -> None:
    image = ramp((600, 700), by_row=0, by_column=0.3).astype(np.uint8)
    raster = write_raster(tmp_path / "image.tif", image)
    made = brightness_model(0.0, mean=(100.0,), std=(40.0,), window=256, halo=0)
    predict(raster, made, output=tmp_path / "m.tif", products=Products(probabilities=True))
    with rasterio.open(tmp_path / "m_probabilities.tif") as dataset:
        assert dataset.overviews(1) == [2]
        half = dataset.read(1, out_shape=(300, 350), resampling=Resampling.nearest).astype(int)
        whole = dataset.read(1).astype(int)
    means = whole.reshape(300, 2, 350, 2).mean(axis=(1, 3))
    assert np.abs(half - means).max() <= 1


def test_a_threshold_moves_the_mask_and_pins_the_run(tmp_path: Path) -> None:
    image = noise((60, 60))
    raster = write_raster(tmp_path / "image.tif", image)
    made = brightness_model(0.0, mean=(127.0,), std=(40.0,))
    for level in (0.2, 0.8):
        done = predict(raster, made, output=tmp_path / f"{level}.tif", products=Products(threshold=level))
        share = 1 / (1 + np.exp((127.0 - image) / 40))
        assert np.array_equal(read(done.path)[0], share > level)
    with pytest.raises(OutputError, match=r"a_probabilities\.tif exists"):
        (tmp_path / "a_probabilities.tif").touch()
        predict(raster, made, output=tmp_path / "a.tif", products=ALL)


# Views and models that are averaged


@pytest.mark.parametrize("shape", [(72, 72), (80, 56), (61, 97)])
def test_a_flipped_or_turned_image_gives_the_flipped_or_turned_prediction(
    shape: tuple[int, int], tmp_path: Path
) -> None:
    """Also where windows are not square; to the last byte where they lie alike on both.

    A raster that is no multiple of the stride is mirrored at its lower and right edge, so those differ.
    """
    image = noise(shape)
    made = model(Reach(4, seed=3), mean=(127.0,), std=(70.0,), halo=8)
    predictor = Predictor(made, tta="symmetries")
    turns = {
        "as it is": lambda a: a,
        "flipped": lambda a: a[..., ::-1, :],
        "turned": lambda a: np.rot90(a, axes=(-2, -1)),
    }
    found = {}
    for name, turn in turns.items():
        raster = write_raster(tmp_path / f"{name}.tif", np.ascontiguousarray(turn(image)))
        done = predictor.predict(
            raster, tmp_path / f"{name} mask.tif", products=Products(probabilities=True), window=40
        )
        found[name] = read(done.path), read(tmp_path / f"{name} mask_probabilities.tif")
    for name, turn in turns.items():
        mask, shares = found[name]
        edge = 0 if shape[0] % 4 == shape[1] % 4 == 0 else 9
        inner = (..., slice(edge, shape[0] - edge), slice(edge, shape[1] - edge))
        difference = np.abs(shares.astype(int) - turn(found["as it is"][1]))
        difference = difference[inner] if name != "turned" else difference[..., *inner[:0:-1]]
        assert difference.max() <= (0 if shape == (72, 72) else 1)
        if shape == (72, 72):
            assert np.array_equal(mask, turn(found["as it is"][0]))
    single = predict(tmp_path / "as it is.tif", made, output=tmp_path / "single.tif")
    assert not np.array_equal(read(single.path), found["as it is"][0])


def test_models_are_averaged_over_their_probabilities(tmp_path: Path) -> None:
    image = noise((50, 60))
    raster = write_raster(tmp_path / "image.tif", image)
    models = [brightness_model(0.0, mean=(mean,), std=(30.0,)) for mean in (100.0, 160.0)]
    shares = [1 / (1 + np.exp(-(image - mean) / 30)) for mean in (100.0, 160.0)]
    found = predict_all(raster, models, tmp_path / "mask.tif")
    assert np.abs(to_shares(found["probabilities"])[0] - np.mean(shares, axis=0)).max() <= 0.5 / STEPS + 1e-6
    assert np.array_equal(found["mask"][0], np.mean(shares, axis=0) > 0.5)
    twice = predict_all(raster, models[::-1], tmp_path / "other.tif")
    assert all(np.array_equal(found[name], twice[name]) for name in found)


def test_other_bands_can_take_the_places_of_those_of_averaged_models(tmp_path: Path) -> None:
    image = noise((2, 30, 30))
    raster = write_raster(tmp_path / "image.tif", image)
    models = [brightness_model(0.0, mean=(mean,)) for mean in (100.0, 120.0)]
    done = predict(raster, models, output=tmp_path / "mask.tif", bands=(2,))
    assert np.array_equal(read(done.path)[0], image[1].astype(int) > 110)
    with pytest.raises(PredictionError, match="bands 1, 2, 3 were asked for: the model takes 1"):
        predict(raster, models, output=tmp_path / "m.tif", bands=(1, 2, 3))


class StopAfter:
    """Progress that interrupts, as a person would."""

    def __init__(self, blocks: int) -> None:
        self.left = blocks

    def __call__(self, task: str, done: float, total: float, unit: str) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tta": "flips"}, "model was name Brightness .*, is name Brightness, flips"),
        ({"products": Products(uncertainty="margin")}, "products was "),
        ({"products": Products(threshold=0.3)}, "products was .* thresholds .0.5., is .* thresholds .0.3."),
        ({"match_input": True}, "match_input was False, is True"),
    ],
)
def test_what_is_delivered_pins_a_run(change: dict, told: str, tmp_path: Path) -> None:
    raster, output = write_raster(tmp_path / "image.tif", noise((150, 100))), tmp_path / "mask.tif"
    with pytest.raises(KeyboardInterrupt):
        predict(raster, brightness_model(), output=output, window=32, block_size=32, progress=StopAfter(30))
    with pytest.raises(ResumeError, match=told):
        predict(raster, brightness_model(), output=output, window=32, block_size=32, **change)


def test_a_stopped_run_goes_on_with_all_its_planes(tmp_path: Path) -> None:
    raster, output = write_raster(tmp_path / "image.tif", noise((150, 100))), tmp_path / "mask.tif"
    options = {"window": 32, "block_size": 32, "products": ALL, "resolution": 1.4, "match_input": True}
    made = model(Reach(3), mean=(127.0,), std=(70.0,))
    with pytest.raises(KeyboardInterrupt):
        predict(raster, made, output=output, progress=StopAfter(15), **options)
    assert [path.name for path in tmp_path.glob("mask*")] == []
    done = predict(raster, made, output=output, **options)
    assert done.resumed > 0
    (tmp_path / "other").mkdir()
    predict(raster, made, output=tmp_path / "other" / "mask.tif", **options)
    for path in (tmp_path / "other").iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


# The grid of the input


@pytest.mark.parametrize("resolution", [0.5, 1.0, 3.1], ids=["finer", "own", "coarser"])
@pytest.mark.parametrize("transform", [north_up(), SOUTH_UP, TURNED], ids=["north-up", "south-up", "turned"])
def test_a_matched_mask_lies_on_the_pixels_of_the_input(transform: Affine, resolution: float, tmp_path: Path) -> None:
    """Slopes are brought back as they are, whatever the grid between: no shift, no border."""
    image = ramp((80, 120), by_row=1, by_column=1).clip(1, 254).astype(np.uint8)
    image[50:60, 20:40] = 0
    raster = write_raster(tmp_path / "image.tif", image, transform=transform, nodata=0)
    made = brightness_model(0.0, mean=(100.0,), std=(40.0,))
    found = predict_all(
        raster, made, tmp_path / "mask.tif", resolution=resolution, match_input=True, window=32, block_size=48
    )
    with rasterio.open(tmp_path / "mask.tif") as mask, rasterio.open(raster) as given:
        assert mask.shape == given.shape and mask.transform == given.transform and mask.crs == given.crs
    assert np.array_equal(found["mask"][0] == 255, image == 0)
    inner = image > 0
    inner[:4], inner[-4:], inner[:, :4], inner[:, -4:], inner[44:66, 14:46] = (False,) * 5
    error = np.abs(found["probabilities"][0].astype(float) - STEPS / (1 + np.exp((100.0 - image) / 40.0)))
    assert error[inner].max() < 4.5 and error[inner].mean() < 1.5
    # Classes are decided before shares are rounded.
    inner &= found["probabilities"][0] != STEPS / 2
    assert np.array_equal(found["mask"][0][inner], found["probabilities"][0][inner] > STEPS / 2)


@pytest.mark.parametrize("transform", [north_up(), TURNED], ids=["north-up", "turned"])
@pytest.mark.parametrize("resolution", [0.7, 1.3, 4.0])
def test_a_constant_network_fills_the_input_to_its_last_valid_pixel(transform, resolution, tmp_path: Path) -> None:
    image = noise((101, 77))
    image[:40, :30] = 0
    raster = write_raster(tmp_path / "image.tif", image, transform=transform, nodata=0)
    done = predict(
        raster,
        model(Constant(2.0)),
        output=tmp_path / "m.tif",
        resolution=resolution,
        match_input=True,
        window=32,
        block_size=16,
    )
    assert np.array_equal(read(done.path)[0], np.where(image == 0, 255, 1))
    assert done.counts["no data"] == (image == 0).sum() and done.shape == image.shape


def test_matching_a_raster_of_the_models_resolution_changes_no_byte(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "image.tif", noise((60, 70)))
    one = predict(raster, model(Reach(3)), output=tmp_path / "one.tif")
    other = predict(raster, model(Reach(3)), output=tmp_path / "other.tif", match_input=True)
    assert np.array_equal(read(one.path), read(other.path)) and one.counts == other.counts


def test_a_matched_mask_does_not_depend_on_blocks(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "image.tif", noise((130, 140)), transform=TURNED)
    made = model(Reach(3), mean=(127.0,), std=(70.0,))
    masks = [
        predict_all(
            raster, made, tmp_path / f"{block}.tif", resolution=1.7, match_input=True, window=32, block_size=block
        )
        for block in (16, 500)
    ]
    assert all(np.array_equal(masks[0][name], masks[1][name]) for name in masks[0])


def test_a_raster_without_a_grid_of_its_own_cannot_be_matched(tmp_path: Path) -> None:
    gcps = [
        rasterio.control.GroundControlPoint(row, col, TOP_LEFT[0] + col, TOP_LEFT[1] - row)
        for row in (0, 40) for col in (0, 50)
    ]  # fmt: skip
    raster = write_raster(tmp_path / "image.tif", noise((40, 50)), gcps=gcps)
    with pytest.raises(GridError, match="no grid on the ground"):
        predict(raster, brightness_model(), output=tmp_path / "m.tif", match_input=True)


# Several rasters, VRTs, COGs


@pytest.mark.parametrize("resolution", [1.0, 0.8, 1.7])
def test_tiles_of_an_image_are_predicted_as_the_image(resolution: float, tmp_path: Path) -> None:
    image = noise((97, 110))
    made = model(Reach(4), mean=(127.0,), std=(70.0,))
    whole = predict_all(
        write_raster(tmp_path / "whole.tif", image), made, tmp_path / "w.tif", resolution=resolution, window=32
    )
    tiles = [
        write_raster(
            tmp_path / f"{top}_{left}.tif",
            image[top : top + 33, left : left + 47],
            transform=north_up(left=TOP_LEFT[0] + left, top=TOP_LEFT[1] - top),
        )
        for top in range(0, 97, 33)
        for left in range(0, 110, 47)
    ]
    mosaic = predict_all(tiles[::-1], made, tmp_path / "m.tif", resolution=resolution, window=32, block_size=32)
    assert all(np.array_equal(whole[name], mosaic[name]) for name in whole)


def test_a_vrt_is_read_only_when_it_is_allowed(tmp_path: Path) -> None:
    image = noise((40, 50))
    source = write_raster(tmp_path / "image.tif", image)
    vrt = tmp_path / "image.vrt"
    rasterio.shutil.copy(source, vrt, driver="VRT")
    virtual = f"/vsizip/{tmp_path / 'images.zip'}/image.tif"
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.write(source, "image.tif")
    for path in (vrt, virtual):
        with pytest.raises(RasterError, match="--allow-vrt"):
            predict(path, brightness_model(), output=tmp_path / "mask.tif", overwrite=True)
        done = predict(path, brightness_model(), output=tmp_path / "mask.tif", allow_vrt=True, overwrite=True)
        assert np.array_equal(read(done.path)[0], image > 127.5)


def test_a_virtual_path_is_no_way_around_the_drivers(tmp_path: Path) -> None:
    """A file in an archive that is no raster of ours is refused, whatever GDAL could make of it."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.tif", "ncols 2\nnrows 2\nxllcorner 0\nyllcorner 0\ncellsize 1\n1 2\n3 4\n")
    with pytest.raises(RasterError, match="cannot be opened as GTiff or"):
        predict(f"/vsizip/{tmp_path}/a.zip/a.tif", brightness_model(), output=tmp_path / "m.tif", allow_vrt=True)


def test_a_file_that_a_vrt_names_pins_the_run(tmp_path: Path) -> None:
    source = write_raster(tmp_path / "image.tif", noise((150, 100)))
    vrt, output = tmp_path / "image.vrt", tmp_path / "mask.tif"
    rasterio.shutil.copy(source, vrt, driver="VRT")
    options = {"window": 32, "block_size": 32, "allow_vrt": True}
    with pytest.raises(KeyboardInterrupt):
        predict(vrt, brightness_model(), output=output, progress=StopAfter(30), **options)
    write_raster(source, noise((150, 100), seed=1))
    with pytest.raises(ResumeError, match="raster was"):
        predict(vrt, brightness_model(), output=output, **options)


@pytest.mark.parametrize("shape", [(40, 50), (700, 1200)])
def test_cogs_are_valid_and_the_same_pixels(shape: tuple[int, int], tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "image.tif", noise(shape))
    made = brightness_model(0.0, mean=(127.0,), std=(70.0,), window=256, halo=0)
    plain = predict_all(raster, made, tmp_path / "plain.tif")
    (tmp_path / "again").mkdir()
    cogs = predict_all(raster, made, tmp_path / "cog.tif", cog=True)
    predict_all(raster, made, tmp_path / "again" / "cog.tif", cog=True, block_size=256)
    for name, path in {"mask": tmp_path / "cog.tif", **ALL.files(tmp_path / "cog.tif")}.items():
        assert np.array_equal(plain[name], cogs[name])
        valid, errors, warnings = cog_validate(path, quiet=True)
        assert valid and not errors and not warnings
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
        with rasterio.open(path) as one, rasterio.open(tmp_path / path.name.replace("cog", "plain")) as other:
            assert (one.scales, one.descriptions, one.nodata) == (other.scales, other.descriptions, other.nodata)
            assert one.overviews(1) == other.overviews(1)
            if name == "mask":
                assert one.colormap(1) == other.colormap(1)
    assert not list(tmp_path.glob(".*"))


# Arrays


@pytest.mark.parametrize("match", [False, True])
@pytest.mark.parametrize("transform", [north_up(), TURNED], ids=["north-up", "turned"])
def test_an_array_is_predicted_as_its_file_is(transform: Affine, match: bool, tmp_path: Path) -> None:
    image = noise((2, 70, 90))
    image[:, :20, :30] = 0
    made = model(Reach(3), bands=(2,), mean=(127.0,), std=(70.0,), resolution=1.4)
    raster = write_raster(tmp_path / "image.tif", image, transform=transform, nodata=0)
    files = predict_all(raster, made, tmp_path / "mask.tif", match_input=match)
    geobox = GeoBox(image.shape[1:], transform, UTM)
    found = Predictor(made).predict_array(image, geobox, nodata=0, products=ALL, match_input=match)
    assert np.array_equal(found.classes, files["mask"][0])
    assert np.array_equal(found.probabilities, to_shares(files["probabilities"]), equal_nan=True)
    assert np.array_equal(found.uncertainty, to_shares(files["uncertainty"])[0], equal_nan=True)
    with rasterio.open(tmp_path / "mask.tif") as mask:
        assert tuple(found.geobox.affine)[:6] == pytest.approx(tuple(mask.transform)[:6])
    assert (found.geobox == geobox) == match


def test_an_xarray_object_is_predicted_as_its_array_is() -> None:
    odc_xr = pytest.importorskip("odc.geo.xr", reason="needs dask")

    geobox = GeoBox((40, 50), north_up(), UTM)
    image = noise((40, 50))
    image[:10] = 0
    predictor = Predictor(brightness_model(0.0, mean=(127.0,), std=(70.0,)))
    one = predictor.predict_array(image, geobox, nodata=0, products=ALL)
    other = predictor.predict_array(odc_xr.wrap_xr(image, geobox, nodata=0), products=ALL)
    assert np.array_equal(one.classes, other.classes) and (one.classes[:10] == 255).all()
    found = other.to_xarray()
    assert found.odc.geobox == geobox and list(found["class"].values) == ["bright"]
    assert np.array_equal(found["probabilities"].values, one.probabilities, equal_nan=True)


def test_arrays_that_do_not_suit_the_model_are_refused() -> None:
    predictor, geobox = Predictor(brightness_model()), GeoBox((4, 5), north_up(), UTM)
    with pytest.raises(PredictionError, match="float64, the model learned from uint8"):
        predictor.predict_array(np.zeros((1, 4, 5)), geobox)
    with pytest.raises(PredictionError, match="needs a geobox"):
        predictor.predict_array(np.zeros((1, 4, 5), np.uint8))


@pytest.mark.slow
@pytest.mark.real_data
def test_tiles_of_a_real_image_are_predicted_as_the_image(real_data: Path, tmp_path: Path) -> None:
    """Twice as fine as the model, with a mask: resampling and validity across the tiles' edges."""
    source = real_data / "buildings" / "banepa_np_00.tif"
    tiles = []
    with rasterio.open(source) as image:
        for row, col in ((0, 0), (0, 517), (400, 0), (400, 517), (800, 0), (800, 517)):
            window = rasterio.windows.Window(col, row, min(517, 1024 - col), min(400, 1024 - row))
            place = {"crs": image.crs, "transform": image.window_transform(window)}
            mask = image.dataset_mask(window=window) > 0
            tiles.append(write_raster(tmp_path / f"{row}_{col}.tif", image.read(window=window), mask=mask, **place))
    predictor = Predictor()
    found = []
    for name, raster in (("whole", source), ("mosaic", tiles)):
        done = predictor.predict(raster, tmp_path / f"{name}.tif", products=ALL, match_input=True)
        found.append([read(path) for path in (done.path, *ALL.files(done.path).values())])
    assert found[0][0].shape == (1, 1024, 1024) and 0.1 < (found[0][0] == 1).mean() < 0.5
    assert all(np.array_equal(one, other) for one, other in zip(*found, strict=True))
