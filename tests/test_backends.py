"""Whatever computes a network gives the logits of the plain one, for any windows, and leaves the network alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks_for_tests import Brightness, Constant, Reach, model
from torch import nn
from worlds import north_up, write_raster

from gimseg.backends import backend_by_name, candidates, choose_backend, trial_windows
from gimseg.device_memory import memory_errors
from gimseg.errors import DeviceMemoryError, PredictionError
from gimseg.legend import Legend
from gimseg.models import Model, build_network
from gimseg.openvino_backend import OpenVinoBackend, has_bfloat16, is_installed, mosaic
from gimseg.torch_backend import fuse_norms
from gimseg.trials import Memory, Trial, cache_folder, choose, noise

CPU = torch.device("cpu")
NETWORKS: dict[str, dict[str, Any]] = {
    "Unet": {"encoder": "resnet18", "encoder_depth": 4, "decoder_channels": [32, 16, 16, 8]},
    "FPN": {"encoder": "mobilenet_v2"},
    "DeepLabV3Plus": {"encoder": "mobilenet_v2"},
    "Segformer": {"encoder": "mit_b0"},
    "FCDenseNet": {"layers": (3, 3, 3), "bottleneck": 3, "growth": 8, "first": 16},
    "AttentionUnet": {"encoder": "resnet18", "encoder_depth": 3, "decoder_channels": (32, 16, 8)},
}
PLAIN = {"Brightness": Brightness(0.2), "Constant": Constant(1.5), "Reach": Reach(4)}
HALVES = ("torch bfloat16", "openvino bfloat16")
NAMES = ("torch float32", "openvino float32", *HALVES)


@cache
def some_model(kind: str) -> Model:
    """A network with statistics that normalise, two bands in and two channels out, or a plain one."""
    if kind in PLAIN:
        return model(PLAIN[kind])
    torch.manual_seed(0)
    network = build_network(kind, bands=2, channels=3, **NETWORKS[kind])
    network.train()
    with torch.no_grad():
        for seed in range(3):
            network(torch.cat([noise(2, (64, 64), seed), noise(2, (64, 64), seed + 9)]))
    legend = Legend.from_dict({"classes": [{"name": "a"}, {"name": "b"}]})
    changes = {"bands": (1, 2), "mean": (0.0,) * 2, "std": (1.0,) * 2, "window": 128, "halo": 32, "stride": 32}
    return model(network.eval(), legend=legend, **changes)


@cache
def some_backend(kind: str, name: str) -> Any:
    if name.startswith("openvino"):
        if not is_installed():
            pytest.skip("needs openvino")
        if name.endswith("bfloat16") and not has_bfloat16():
            pytest.skip("needs a CPU with bfloat16")
    return backend_by_name(some_model(kind), CPU, name)


def images(kind: str, count: int, shape: tuple[int, int]) -> torch.Tensor:
    bands = len(some_model(kind).recipe.bands)
    return torch.cat([noise(bands, shape, seed) for seed in range(count)])


def plain_logits(network: nn.Module, given: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return network(given)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [*NETWORKS, *PLAIN])
class TestEveryBackend:
    """The contract of `gimseg.backends.Backend`. Few shapes: OpenVINO compiles the network for each."""

    @pytest.mark.parametrize(("count", "shape"), [(1, (64, 96)), (3, (96, 64))])
    def test_gives_logits_and_classes_of_the_plain_network(
        self, kind: str, name: str, count: int, shape: tuple[int, int]
    ) -> None:
        given, recipe = images(kind, count, shape), some_model(kind).recipe
        expected = plain_logits(some_model(kind).network, given)
        logits = some_backend(kind, name).logits(given)
        assert logits.dtype == torch.float32
        assert logits.shape == expected.shape
        scale = max(expected.std().item(), expected.abs().mean().item())
        assert (logits - expected).abs().mean().item() < (0.05 if name in HALVES else 1e-4) * scale
        # Weights that have learned nothing leave many pixels undecided.
        same = np.mean(recipe.classify(logits) == recipe.classify(expected))
        assert same > (0.9 if name in HALVES else 0.999)

    def test_gives_the_same_bytes_again_and_leaves_all_as_it_was(self, kind: str, name: str) -> None:
        given, network = images(kind, 1, (64, 96)), some_model(kind).network
        before = given.clone(), {key: tensor.clone() for key, tensor in network.state_dict().items()}
        modes = [(type(module), module.training) for module in network.modules()]
        gradients = [weight.requires_grad for weight in network.parameters()]
        backend = some_backend(kind, name)
        assert torch.equal(backend.logits(given), backend.logits(given))
        assert torch.equal(given, before[0])
        after = network.state_dict()
        assert before[1].keys() == after.keys()
        assert all(torch.equal(before[1][key], after[key]) for key in after)
        assert [(type(module), module.training) for module in network.modules()] == modes
        assert [weight.requires_grad for weight in network.parameters()] == gradients

    def test_is_opened_again_by_its_name(self, kind: str, name: str) -> None:
        assert some_backend(kind, name).name == name


def test_openvino_gives_an_image_the_same_whatever_is_beside_it() -> None:
    given = images("Unet", 3, (64, 64))
    backend = some_backend("Unet", "openvino float32")
    assert torch.equal(backend.logits(given)[1:2], backend.logits(given[1:2]))


@pytest.mark.parametrize("name", ["torch float32", "openvino float32"])
def test_the_caller_may_be_in_inference_mode(name: str) -> None:
    given = images("Reach", 1, (20, 28))
    with torch.inference_mode():
        logits = backend_by_name(some_model("Reach"), CPU, name).logits(given.clone())
        again = some_model("Reach").network(given)
    assert torch.allclose(logits, again, atol=1e-4)


def test_openvino_keeps_a_few_shapes_and_forgets_the_others() -> None:
    backend = OpenVinoBackend(some_model("Reach"))
    for side in (8, 12, 16, 20, 24, 8):
        given = images("Reach", 1, (side, 16))
        assert torch.allclose(backend.logits(given), plain_logits(PLAIN["Reach"], given), atol=1e-4)
    assert len(backend._requests) == 4


@pytest.mark.parametrize("kind", ["Unet", "FPN", "DeepLabV3Plus"])
def test_every_norm_behind_a_convolution_is_folded_into_it(kind: str) -> None:
    given = images(kind, 1, (64, 64))
    fused = fuse_norms(some_model(kind).network, given)
    computed = []
    for module in fused.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda *_: computed.append(1))
    fused(given)
    assert computed == []


class Twice(nn.Module):
    """One convolution, used with its norm and without."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1)
        self.norm.running_mean.fill_(5.0)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        here = self.conv(given)
        return here + self.norm(here)


def test_a_convolution_that_is_used_elsewhere_too_keeps_its_norm() -> None:
    network, given = Twice().eval(), noise(1, (16, 16))
    assert torch.allclose(fuse_norms(network, given)(given), network(given), atol=1e-6)


# Choosing


@pytest.fixture
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_folder()


def open_and_listen(megapixels: float, **changes: Any) -> tuple[str, list[str]]:
    """Name of the backend that is chosen, and those that were tried for it."""
    heard = []
    model = some_model("Unet")
    chosen = choose_backend(model, CPU, megapixels=megapixels, progress=lambda *told: heard.append(told[4:]), **changes)
    assert backend_by_name(model, CPU, chosen.name).logits(images("Unet", 1, (64, 96))).shape == (1, 3, 64, 96)
    return chosen.name, [name[0] for name in heard if name]


def test_a_choice_is_made_once_and_remembered(cache_home: Path) -> None:
    name, tried = open_and_listen(1e5)
    assert tried == list(candidates(CPU))
    assert open_and_listen(1e5) == (name, [])
    [kept] = json.loads((cache_home / "backends.json").read_text()).values()
    speeds = {trial["name"]: trial["seconds_per_mpx"] for trial in kept}
    assert speeds[name] <= speeds["torch float32"]


@pytest.mark.slow
def test_another_model_is_tried_anew(cache_home: Path) -> None:
    open_and_listen(1e5)
    heard: list[str] = []
    choose_backend(some_model("FPN"), CPU, megapixels=1e5, progress=lambda *told: heard.append(told[0]))
    assert heard


def test_a_damaged_memory_is_no_error_and_is_mended(cache_home: Path) -> None:
    path, keys = cache_home / "backends.json", ["a", "b"]
    for key in keys:
        Memory(path).keep(key, [Trial("torch float32", 1.0, 1.0)])
    for damage in (b"{", b"[]", b"\xff\xfe", json.dumps({key: [3] for key in keys}).encode()):
        path.write_bytes(damage)
        assert [Memory(path).recall(key) for key in keys] == [[], []]
    assert len(open_and_listen(1e5)[1]) == len(candidates(CPU))
    assert open_and_listen(1e5)[1] == []


def test_a_memory_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    memory = Memory(tmp_path / "file" / "gimseg" / "backends.json")
    memory.keep("a", [Trial("torch float32", 1.0, 1.0)])
    assert memory.recall("a") == []


def test_a_memory_does_not_grow_without_end(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "backends.json")
    for number in range(205):
        memory.keep(str(number), [Trial("torch float32", float(number), 1.0)])
    assert memory.recall("4") == []
    assert memory.recall("204") == [Trial("torch float32", 204.0, 1.0)]
    assert len(json.loads(memory.path.read_text())) == 200


def test_a_short_run_is_not_worth_a_trial(cache_home: Path) -> None:
    assert open_and_listen(0.1) == ("torch float32", [])
    assert not cache_home.exists()


def test_windows_too_small_to_tell_are_not_tried(cache_home: Path) -> None:
    heard: list[str] = []
    chosen = choose_backend(
        some_model("Unet"), CPU, window=(64, 96), megapixels=1e9, progress=lambda *told: heard.append(told[0])
    )
    assert (chosen.name, heard) == ("torch float32", [])


def test_nothing_slower_or_different_is_ever_chosen() -> None:
    reference = Trial("torch float32", 1.0, 1.0)
    for seconds in (0.1, 0.5, 0.94, 0.96, 1.0, 2.0, float("inf")):
        for agreement in (0.0, 0.9994, 0.9996, 1.0):
            chosen = choose([reference, Trial("other", seconds, agreement)])
            assert chosen.seconds_per_mpx <= reference.seconds_per_mpx
            assert chosen.agreement >= 0.9995


def test_a_trial_looks_at_the_windows_that_the_model_has_kept(tmp_path: Path) -> None:
    folder = tmp_path / "exemplars"
    folder.mkdir()
    for number in range(3):
        write_raster(folder / f"{number:03d}_image.tif", np.full((64, 64), 10 * number, np.uint8))
    known = model(Reach(2), window=64)
    kept = Model(known.network, known.recipe, folder=tmp_path)
    first, second = trial_windows(kept)
    assert (first == 0).all()
    assert (second == 10).all()
    assert trial_windows(known)[0].std() > 0.5


@pytest.mark.parametrize(
    ("backend", "precision", "expected"),
    [
        ("auto", "float32", "torch float32"),
        ("torch", "bfloat16", "torch bfloat16"),
        ("openvino", "auto", "openvino float32"),
        ("openvino", "bfloat16", "openvino bfloat16"),
        ("auto", "int8", "openvino int8"),
    ],
)
def test_what_is_asked_for_is_taken(backend: str, precision: str, expected: str) -> None:
    assert candidates(CPU, backend, precision) == (expected,)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"backend": "onnx"}, "auto, torch, openvino"),
        ({"precision": "float64"}, "auto, float32"),
        ({"backend": "torch", "precision": "int8"}, "OpenVINO"),
        ({"precision": "float16"}, "bfloat16"),
        ({"precision": "int8"}, "--exemplars 32"),
    ],
)
def test_what_is_not_there_is_refused_by_name(asked: dict[str, str], told: str) -> None:
    with pytest.raises(PredictionError, match=told):
        choose_backend(some_model("Reach"), CPU, **asked)


@pytest.mark.parametrize("name", ["onnx float32", "torch int8", "openvino float16", ""])
def test_a_name_that_nothing_has_is_refused(name: str) -> None:
    with pytest.raises(PredictionError):
        backend_by_name(some_model("Reach"), CPU, name)


class Undecided(nn.Module):
    """What it computes depends on what it sees, which no graph can hold."""

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return given[:, :1] * (2 if float(given.sum()) > 0 else 3)


def test_a_network_that_openvino_cannot_take_is_left_to_torch(cache_home: Path) -> None:
    undecided = model(Undecided(), window=128)
    with pytest.raises(PredictionError, match="take the backend torch"):
        backend_by_name(undecided, CPU, "openvino float32").logits(torch.ones(1, 1, 8, 8))
    assert choose_backend(undecided, CPU, megapixels=1e9).name == "torch float32"


# int8


def test_exemplars_fill_windows_of_any_shape() -> None:
    parts = [np.full((1, 4, 6), value) for value in range(5)]
    for shape in ((4, 6), (8, 12), (3, 5), (9, 7), (64, 64)):
        filled = mosaic(parts, shape)
        assert {part.shape for part in filled} == {(1, *shape)}
    assert [set(np.unique(part)) for part in mosaic(parts, (8, 6))] == [{0, 1}, {2, 3}]


@pytest.mark.slow
def test_int8_is_calibrated_on_the_exemplars_and_nearly_agrees(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    known = some_model("Unet")
    (tmp_path / "exemplars").mkdir()
    for seed in range(4):
        path = tmp_path / "exemplars" / f"{seed:03d}_image.tif"
        write_raster(path, noise(2, (128, 128), seed)[0].numpy(), transform=north_up())
    kept = Model(known.network, known.recipe, folder=tmp_path)
    given = images("Unet", 1, (128, 128))
    expected = known.recipe.classify(plain_logits(known.network, given))
    first, again = (backend_by_name(kept, CPU, "openvino int8").logits(given) for _ in range(2))
    assert torch.equal(first, again)
    assert 0.9 < np.mean(known.recipe.classify(first) == expected) < 1


# The device, and the world outside


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes."),
        RuntimeError("Exception from src/inference: std::bad_alloc"),
        MemoryError(),
    ],
)
def test_memory_that_runs_out_is_told_with_numbers(error: Exception) -> None:
    told = pytest.raises(DeviceMemoryError, match=r"4 windows of 32 x 64 px with 3 bands .* cpu")
    with told, memory_errors(torch.zeros(4, 3, 32, 64)):
        raise error


def test_another_error_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), memory_errors(torch.zeros(1, 1, 1, 1)):
        raise RuntimeError("shapes differ")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_a_window_larger_than_the_memory_is_such_an_error() -> None:
    script = """
        import resource, torch
        from gimseg.backends import backend_by_name
        from gimseg.errors import DeviceMemoryError
        from gimseg.models import Model
        backend = backend_by_name(Model.load(), torch.device("cpu"), "torch float32")
        backend.logits(torch.zeros(1, 3, 64, 64))
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
        try:
            backend.logits(torch.zeros(1, 3, 2048, 2048))
        except DeviceMemoryError as error:
            print("told:", error)
    """
    assert "told: 1 windows of 2048 x 2048 px" in run_python(script)


def test_no_library_reports_to_the_web_service_that_it_was_used(tmp_path: Path) -> None:
    script = """
        import sys, socket
        def refuse(*address):
            raise SystemExit(f"a connection to {address}")
        socket.getaddrinfo = socket.socket.connect = refuse
        import torch
        from gimseg.models import build_network
        from gimseg.openvino_backend import OpenVinoBackend
        sys.path.insert(0, "tests")
        from networks_for_tests import Reach, model
        OpenVinoBackend(model(Reach(2))).logits(torch.zeros(1, 1, 8, 8))
        print([name for name in sys.modules if name.startswith("openvino_telemetry")])
    """
    assert run_python(script, HOME=str(tmp_path)).endswith("[]\n")
    assert list(tmp_path.rglob("*openvino*")) == []


def run_python(script: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
