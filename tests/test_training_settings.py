"""Laws of what a training can be told: averages, steps, what is frozen, logs, radiometry, files of settings."""

from __future__ import annotations

import copy
import csv
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from test_training import QUICK, squares_world
from torch import nn
from torch.utils.data import DistributedSampler
from worlds import TOP_LEFT, north_up, write_raster

from gimseg import Dataset, Model, Predictor, train
from gimseg.datasets import Datasets
from gimseg.deep_supervision import deep_loss
from gimseg.errors import TrainingError
from gimseg.fitting import Fit, looked_at_here
from gimseg.legend import UNLABELLED
from gimseg.losses import parse_loss
from gimseg.progress import silent
from gimseg.radiometry import levels
from gimseg.rate_finder import RateScan, find_rate
from gimseg.sampling import covering_windows, survey
from gimseg.settings import Settings
from gimseg.settings_files import gather_settings
from gimseg.trainers import Callback, LightningDataModule, run_training
from gimseg.training import TrainingWindows, begin, fit_network, training_windows
from gimseg.training_ground import survey_ground


class Batches(LightningDataModule):
    """The same batches in every epoch."""

    def __init__(self, batches: list[dict[str, torch.Tensor]]) -> None:
        super().__init__()
        self.batches = batches

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(self.batches, batch_size=None)

    def val_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(self.batches[:1], batch_size=None)


class Keep(Callback):
    """The weights after each step."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Any, fit: Any, *args: Any) -> None:
        self.seen.append(fit.network.weight.detach().flatten().clone())


def batches(count: int, size: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count * size, 3, 8, 8, generator=generator)
    labels = (images.sum(1) > 0).to(torch.uint8)
    return [
        {"image": image, "labels": label} for image, label in zip(images.split(size), labels.split(size), strict=True)
    ]


def fitted(folder: Path, given: list[dict[str, torch.Tensor]], network: nn.Module | None = None, **changes: Any):
    """A single convolution fitted with plain SGD; the fit, and its weights after each batch."""
    torch.manual_seed(0)
    size = len(given[0]["image"])
    settings = Settings(
        loss="ce", optimiser="sgd", schedule="constant", warmup=0.0, weight_decay=0.0, learning_rate=0.1, averaging=0.0,
        epochs=1, windows_per_epoch=len(given) * size, batch=size, precision="float32",
    )  # fmt: skip
    settings = replace(settings, **changes)
    steps = settings.epochs * settings.steps_per_epoch
    folder.mkdir(exist_ok=True)
    fit = Fit(network or nn.Conv2d(3, 1, 3, padding=1), parse_loss("ce"), settings, steps, 2, folder / "metrics.csv")
    keep = Keep()
    run_training(fit, Batches(given), folder, "cpu", [keep] if network is None else [])
    return fit, keep.seen


def test_two_batches_accumulated_are_one_batch_of_twice_the_size(tmp_path: Path) -> None:
    large, _ = fitted(tmp_path / "a", batches(3, 8))
    small, seen = fitted(tmp_path / "b", batches(6, 4), accumulate=2)
    assert small.global_step == large.global_step == 3
    assert not torch.equal(seen[0], seen[1]) and torch.equal(seen[1], seen[2])
    assert torch.allclose(small.network.weight, large.network.weight, atol=1e-6)


def test_parts_of_a_batch_weigh_alike_however_much_of_each_is_labelled(tmp_path: Path) -> None:
    """A step on both is the mean of a step on each; without parts the click would drown."""
    (batch,) = batches(1, 8)
    batch["part"] = torch.tensor([0, 1] * 4)
    batch["labels"][0::2] = 255
    batch["labels"][2, 4, 4] = 1
    halves = [{name: plane[number::2] for name, plane in batch.items()} for number in (0, 1)]
    one, other = (fitted(tmp_path / f"{number}", [half])[1][0] for number, half in enumerate(halves))
    both = fitted(tmp_path / "both", [batch])[1][0]
    assert torch.allclose(both, (one + other) / 2, atol=1e-6)
    drowned = fitted(tmp_path / "drowned", [{**batch, "part": torch.zeros(8, dtype=torch.int64)}])[1][0]
    assert not torch.allclose(drowned, both, atol=1e-3)


def test_a_part_without_labels_takes_no_weight_from_the_other(tmp_path: Path) -> None:
    (batch,) = batches(1, 8)
    batch["labels"][1::2] = 255
    alone = fitted(tmp_path / "alone", [{name: plane[0::2] for name, plane in batch.items()}])[1][0]
    beside = fitted(tmp_path / "beside", [{**batch, "part": torch.tensor([0, 1] * 4)}])[1][0]
    assert torch.allclose(alone, beside, atol=1e-6)


def test_stochastic_weight_averaging_is_the_mean_of_the_last_stretch(tmp_path: Path) -> None:
    fit, seen = fitted(tmp_path, batches(8, 4), swa=0.5)
    # Steps 4 to 8 have half of the training behind them or more.
    assert torch.allclose(fit.best_network.weight.flatten(), torch.stack(seen[3:]).mean(0), atol=1e-6)
    assert not torch.allclose(fit.best_network.weight, fit.network.weight, atol=1e-4)


def test_before_its_stretch_the_average_is_the_network(tmp_path: Path) -> None:
    fit, seen = fitted(tmp_path, batches(8, 4), swa=0.01)
    assert torch.equal(fit.best_network.weight.flatten(), seen[-1])


class WithEncoder(nn.Module):
    """An encoder with a norm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.head = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(images))


@pytest.mark.parametrize("what", ["frozen_encoder", "frozen_statistics"])
def test_what_is_frozen_stays(tmp_path: Path, what: str) -> None:
    network = WithEncoder()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fitted(tmp_path, batches(4, 4), network, epochs=2, weight_decay=0.1, **{what: True})
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    statistics = {name for name in before if "running" in name or "tracked" in name}
    frozen = {name for name in before if name.startswith("encoder")} if what == "frozen_encoder" else statistics
    assert moved and not moved & frozen
    if what == "frozen_encoder":
        assert statistics - frozen <= moved
    else:
        assert "encoder.0.weight" in moved


def test_deep_supervision_of_one_scale_is_the_loss(tmp_path: Path) -> None:
    loss, logits, labels = parse_loss("ce + dice"), torch.randn(2, 1, 8, 8), torch.randint(0, 2, (2, 8, 8))
    assert float(deep_loss(loss, logits, labels)[0]) == float(loss(logits, labels))
    assert float(deep_loss(loss, [logits, logits, logits], labels)[0]) == pytest.approx(float(loss(logits, labels)))
    network = nn.Conv2d(3, 1, 1)

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = network

        def forward(self, images: torch.Tensor) -> Any:
            logits = self.one(images)
            return [logits, 0.5 * logits] if self.training else logits

    before = network.weight.detach().clone()
    fit, _ = fitted(tmp_path, batches(4, 4), Deep())
    assert not torch.equal(network.weight, before) and fit.history[0]["val_iou"] >= 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("FCDenseNet", {"layers": (2, 2), "bottleneck": 2, "growth": 8, "first": 16}),
        ("AttentionUnet", {"encoder_depth": 3, "decoder_channels": (32, 16, 8), "deep_supervision": True}),
    ],
)
def test_networks_of_our_own_learn_save_load_and_predict(tmp_path: Path, network: str, options: dict) -> None:
    settings = replace(QUICK, network=network, network_options=options, windows_per_epoch=32, epochs=3)
    world = squares_world(tmp_path)
    model = train(world, tmp_path / "m", settings=settings)
    assert model.scores["val"]["iou"] > 0.3
    assert Model.load(tmp_path / "m").fingerprint() == model.fingerprint()
    assert not model.recipe.blend and model.recipe.halo % model.recipe.stride == 0
    card = (tmp_path / "m" / "README.md").read_text(encoding="utf-8")
    assert "Model.load" in card and "from_pretrained" not in card
    # Blocks of another size, the same classes: nothing looks further than the halo.
    masks, predictor = [], Predictor(model, device="cpu", backend="torch", precision="float32")
    for size in (128, 512):
        predictor.predict(world.images[0], tmp_path / f"{size}.tif", block_size=size)
        with rasterio.open(tmp_path / f"{size}.tif") as mask:
            masks.append(mask.read(1))
    assert np.array_equal(*masks) and masks[0].any()


def test_tensorboard_gets_what_the_table_gets(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    fit, _ = fitted(tmp_path, batches(2, 4), tensorboard=True, epochs=2)
    assert len(fit.history) == 2
    (events,) = (tmp_path / "tensorboard").glob("events*")
    content = events.read_bytes()
    assert all(name.encode() in content for name in ("val_iou", "train_loss", "val_misses"))


def test_tensorboard_that_is_not_installed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TrainingError, match=r"gimseg\[tensorboard\]"):
        fitted(tmp_path, batches(2, 4), tensorboard=True)


def glaring_world(folder: Path) -> Dataset:
    """Values about 100 ± 10, and one pixel in a hundred at 60 000."""
    rng = np.random.default_rng(0)
    image = rng.normal(100, 10, (2, 256, 256))
    image[:, rng.random((256, 256)) < 0.01] = 60_000
    path = write_raster(folder / "glaring.tif", np.clip(image, 0, 65535).astype(np.uint16))
    return Dataset("glaring", 1.0, [path], split="train")


def test_percentiles_do_not_mind_a_few_glaring_pixels(tmp_path: Path) -> None:
    items = [survey(scene) for scene in glaring_world(tmp_path).scenes()]
    centre, half = levels(items, "percentile")
    assert np.allclose(centre, 100, atol=1) and np.allclose(half, 10 * 2.05, atol=2)
    assert levels(items, "model")[0][0] > 500
    assert levels(items, "none") == ((0.0, 0.0), (1.0, 1.0))


@pytest.mark.parametrize("normalise", ["model", "percentile", "none"])
def test_prediction_normalises_as_training_did(tmp_path: Path, normalise: str) -> None:
    world = squares_world(tmp_path)
    settings = replace(QUICK, epochs=1, windows_per_epoch=16, normalise=normalise, exemplars=0, precision="float32")
    model = train(world, tmp_path / "m", settings=settings)
    items = [survey(scene) for scene in world.scenes()]
    if normalise != "model":
        assert (model.recipe.mean, model.recipe.std) == levels(items, normalise)
    image = np.random.default_rng(1).integers(1, 255, (3, 64, 64)).astype(np.uint8)
    path = write_raster(tmp_path / "x.tif", image, transform=north_up(left=TOP_LEFT[0]))
    Predictor(model, device="cpu", backend="torch", precision="float32").predict(path, tmp_path / "y.tif")
    mean, std = (np.reshape(values, (3, 1, 1)) for values in (model.recipe.mean, model.recipe.std))
    with torch.inference_mode():
        wanted = model.recipe.classify(model.network(torch.from_numpy((image - mean) / std)[None].float())[0])
    with rasterio.open(tmp_path / "y.tif") as mask:
        assert np.mean(mask.read(1) != wanted) < 1e-3


def test_windows_are_shown_at_each_resolution(tmp_path: Path) -> None:
    world = squares_world(tmp_path)
    beginning = begin(Datasets((world,)), QUICK)
    prepare = training_windows(beginning.recipe, None, (0.5, 1.0, 2.0))
    zooms = [prepare(np.random.default_rng(seed))[0].zooms for seed in range(60)]
    assert set(zooms) == {(2.0, 2.0), (1.0, 1.0), (0.5, 0.5)}
    windows = TrainingWindows(beginning.recipe, beginning.ground, replace(QUICK, resolutions=(0.5, 2.0)))
    shares = [float((sample["labels"] == 1).float().mean()) for sample in windows.train_dataloader().dataset]
    assert len(shares) == QUICK.windows_per_epoch and max(shares) > 0


def test_what_was_hard_is_known_after_going_on(tmp_path: Path) -> None:
    settings = replace(QUICK, epochs=1, windows_per_epoch=16, hard_share=0.5, workers=0)
    beginning = begin(Datasets((squares_world(tmp_path),)), settings)
    first = TrainingWindows(beginning.recipe, beginning.ground, settings)
    fit_network(copy.deepcopy(beginning.network), first, tmp_path, "cpu", silent)
    known = first.hardness.to_tensors()
    assert all(plane.isfinite().any() for plane in known)
    more = replace(settings, epochs=2)
    second = TrainingWindows(beginning.recipe, beginning.ground, more)
    seen: list[Any] = []

    class Watched(type(second.sampler)):  # type: ignore[misc]
        def draw(self, count: int, seed: int, hardness: Any = None) -> Any:
            seen.append(hardness)
            return super().draw(count, seed, hardness)

    sampler = second.sampler
    second.sampler = Watched(**{item.name: getattr(sampler, item.name) for item in fields(sampler)})
    fit_network(beginning.network, second, tmp_path, "cpu", silent)
    hardness = seen[-1]
    assert all(
        np.allclose(drawn[plane.isfinite()], plane[plane.isfinite()])
        for drawn, plane in zip(hardness, known, strict=True)
    )


@pytest.mark.slow
def test_a_training_from_points_scores_on_dense_ground(tmp_path: Path) -> None:
    settings = replace(QUICK, points=40, points_by="class", loss="partial_ce", epochs=6, exemplars=0)
    model = train(squares_world(tmp_path), tmp_path / "m", settings=settings)
    assert model.scores["val"]["iou"] > 0.5


@pytest.mark.slow
def test_the_rate_is_found_before_the_loss_goes_to_pieces(tmp_path: Path) -> None:
    settings = replace(QUICK, optimiser="sgd", batch=4, precision="float32")
    scan = find_rate(
        squares_world(tmp_path),
        settings=settings,
        steps=40,
        plot=tmp_path / "r.png",
        table=tmp_path / "r.csv",
        device="cpu",
    )
    assert len(scan.rates) == len(scan.losses) >= 10 and 1e-6 < scan.suggestion < 1
    assert scan.losses[int(np.argmin(scan.losses))] < scan.losses[0]
    assert list(scan.rates) == sorted(scan.rates)
    assert (tmp_path / "r.png").stat().st_size > 1000
    rows = list(csv.DictReader((tmp_path / "r.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == len(scan.rates)
    assert {path.name for path in tmp_path.iterdir()} == {"image0.tif", "truth0.gpkg", "r.png", "r.csv"}
    with pytest.raises(TrainingError, match="after 2 steps"):
        RateScan((1e-6, 1e-5), (1.0, 2.0))


def test_settings_come_from_the_dataset_file_then_a_file_then_options(tmp_path: Path) -> None:
    data, own = tmp_path / "data.toml", tmp_path / "own.toml"
    data.write_text('[[dataset]]\ntag = "a"\n[training]\nepochs = 5\nbatch = 2\nwindow = 64\nresolutions = [1, 2]\n')
    own.write_text("[training]\nbatch = 3\n[training.augmentation]\nflips = false\nscale = [1.0, 1.5]\n")
    found = gather_settings(data, own, None, given={"window": 32, "epochs": None})
    assert (found.epochs, found.batch, found.window, found.resolutions) == (5, 3, 32, (1.0, 2.0))
    assert found.augmentation is not None and found.augmentation.scale == (1.0, 1.5) and not found.augmentation.flips
    assert gather_settings(None) == Settings()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[training]\nepoch = 5", "did you mean 'epochs'"),
        ("[trainning]\nepochs = 5", "did you mean 'training'"),
        ("[training]\nepochs = 'five'", "wrong kind"),
        ("[training]\naugmentation = { flip = true }", "wrong kind"),
        ("[training]\nempty_share = 1.5", "empty_share is 1.5: it must be 0 to 1"),
        ("[training]\nresolutions = [0.5, 0]", "resolutions is 0.0: it must be above 0"),
        ("[training]\nfold = '6/5'", "as 1/5 to 5/5"),
        ("[training]\nnormalise = 'image'", "give one of model, dataset, percentile, none"),
        ("[training]\nhard_share = 0.5\ndevices = 2", "hard_share needs one device"),
        ("[training", "cannot be read as TOML"),
    ],
)
def test_settings_that_are_wrong_are_told(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "data.toml"
    path.write_text(text)
    with pytest.raises(TrainingError, match=match):
        gather_settings(path)


@pytest.mark.parametrize("devices", [1, 2, 3, 4])
@pytest.mark.parametrize("windows", [1, 2, 5, 8, 17])
def test_each_window_to_score_on_counts_on_one_device(devices: int, windows: int) -> None:
    counted: list[int] = []
    for rank in range(devices):
        given = torch.tensor(list(DistributedSampler(range(windows), devices, rank, shuffle=False)))  # type: ignore[arg-type]
        assert len(given) == -(-windows // devices)
        counted += given[looked_at_here(given, rank, devices)].tolist()
    assert sorted(counted) == list(range(windows))


SCRIPT = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
from dataclasses import fields, replace
from pathlib import Path
from test_training import QUICK
from gimseg import Dataset, train
from gimseg.fitting import Fit, looked_at_here
from gimseg.legend import UNLABELLED
if __name__ == "__main__":
    folder = Path({folder!r})
    world = Dataset("w0", 1.0, [folder / "image0.tif"], [folder / "truth0.gpkg"])
    of_all = Fit._of_all_devices
    def told(fit, confusion):
        found = of_all(fit, confusion)
        if fit.trainer.is_global_zero:
            print("counted", found.total)
        return found
    Fit._of_all_devices = told
    settings = replace(QUICK, devices=2, epochs=2, workers=0, seed={seed})
    model = train(world, folder / "model", settings=settings, device="cpu", restart=True)
    print("ended", model.provenance["epochs"])
"""


@pytest.mark.slow
def test_two_processes_learn_side_by_side_and_leave_one_model(tmp_path: Path) -> None:
    """On the CPU: what holds for several GPUs too, but for their speed."""
    seed = 3
    ground = survey_ground(Datasets((squares_world(tmp_path),)), replace(QUICK, seed=seed))
    assert len(covering_windows(ground.val, QUICK.window)) % 2 == 1, "the windows cannot be divided evenly"
    script = tmp_path / "script.py"
    script.write_text(
        SCRIPT.format(
            tests=str(Path(__file__).parent), root=str(Path(__file__).parents[1]), folder=str(tmp_path), seed=seed
        )
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ended 2") == 1
    pixels = sum(int(item.counts[:UNLABELLED].sum()) for item in ground.val)
    assert done.stdout.count(f"counted {pixels}\n") == done.stdout.count("counted") == 2
    rows = list(csv.DictReader((tmp_path / "model" / "metrics.csv").read_text(encoding="utf-8").splitlines()))
    assert [int(row["epoch"]) for row in rows] == [1, 2]
    assert Model.load(tmp_path / "model").scores["val"]["iou"] > 0
