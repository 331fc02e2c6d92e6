"""A model: a network and the recipe that turns rasters into its input and its output into classes.

On disk a model is a folder of plain data. Nothing in it is ever unpickled.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from gimseg import __version__
from gimseg.deployments import deployed_model
from gimseg.errors import LegendError, ModelError, OutputError
from gimseg.networks import OWN, build_network, check_window, network_names, network_stride
from gimseg.outputs import check_writable, write_text
from gimseg.reach import measure_reach
from gimseg.recipes import Recipe

__all__ = [
    "Model",
    "Recipe",
    "build_network",
    "check_model_output",
    "check_window",
    "measure_reach",
    "network_names",
    "network_stride",
    "render_card",
]

FORMAT = 1
_WEIGHTS, _CONFIG, _VALUES, _CARD = "model.safetensors", "config.json", "gimseg.json", "README.md"
_PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")
_HALF_MAX = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class Model:
    """A network and its recipe.

    Args:
        network: (N, bands, rows, cols) normalised images to (N, channels, rows, cols) logits.
        recipe: what surrounds it.
        architecture: ``{"name", "encoder", "options"}`` for :func:`gimseg.networks.build_network`;
            needed for saving only.
        provenance: where it comes from: data, fingerprints, parent model, time.
        scores: by split or site.
        folder: that it was loaded from.
    """

    network: nn.Module
    recipe: Recipe
    architecture: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """As people read it."""
        if self.provenance.get("name"):
            return str(self.provenance["name"])
        architecture = self.architecture or {"name": type(self.network).__name__, "encoder": ""}
        return " ".join(filter(None, (str(architecture["name"]), str(architecture["encoder"]))))

    def fingerprint(self) -> str:
        """Changes with each weight and each value of the recipe: 16 hexadecimal digits."""
        digest = hashlib.sha256(json.dumps(self.recipe.to_dict(), sort_keys=True).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]

    def save(
        self, folder: str | os.PathLike[str], *, overwrite: bool = False, half: bool = False, card: str | None = None
    ) -> Path:
        """Write the model's folder, whole or not at all.

        Args:
            folder: to be made; its parent exists.
            overwrite: an older model there may be replaced; what else lies in its folder stays.
            half: keep weights as float16, half the size; they load back to float32.
            card: text of the model card; None: rendered from the values.

        Returns:
            the folder.

        Raises:
            ModelError: the architecture is not known, or weights are not finite.
            OutputError: the folder exists or cannot be written.
        """
        folder = Path(folder)
        if self.architecture is None:
            raise ModelError("a network without its architecture cannot be saved: give name, encoder and options")
        check_model_output(folder, overwrite=overwrite)
        tensors = {name: _stored(name, tensor, half) for name, tensor in self.network.state_dict().items()}
        stage = folder.parent / f".{folder.name}.{os.getpid()}.partial"
        shutil.rmtree(stage, ignore_errors=True)
        try:
            stage.mkdir()
            save_file(tensors, stage / _WEIGHTS, metadata={"format": "pt"})
            _write_json(stage / _CONFIG, self._config())
            # safetensors makes files that nobody else may read.
            (stage / _WEIGHTS).chmod((stage / _CONFIG).stat().st_mode)
            _write_json(stage / _VALUES, self._values())
            (stage / _CARD).write_text(card or render_card(self), encoding="utf-8")
            load_file(stage / _WEIGHTS)
            _move(stage, folder)
        except (OSError, SafetensorError) as error:
            raise OutputError(f"model folder {folder} was not written ({error}): is the disk full?") from error
        finally:
            shutil.rmtree(stage, ignore_errors=True)
        return folder

    def check_keeps_threshold(self) -> None:
        """Refuse a model in which no other threshold can be kept.

        Raises:
            ModelError: the model has no folder of its own, or several classes.
            OutputError: the folder cannot be written.
        """
        if self.folder is None or self.folder == _builtin_folder() or not self.recipe.legend.is_binary:
            held = f"{self.name} of {', '.join(self.recipe.legend.names)} in {self.folder or 'memory'}"
            raise ModelError(f"{held}: a threshold is kept in a folder of your own that holds a model of one class")
        check_writable(self.folder)

    def keep_threshold(self, threshold: float, reason: str) -> Model:
        """Another threshold, written into the model's folder too; weights and all else there stay as they are.

        Args:
            threshold: a pixel is of the class above this probability.
            reason: why, for the model's provenance.

        Raises:
            ModelError: the model has no folder of its own, or several classes.
            OutputError: the folder cannot be written.
        """
        self.check_keeps_threshold()
        assert self.folder is not None
        told = {**self.provenance, "threshold": reason}
        changed = replace(self, recipe=replace(self.recipe, threshold=threshold), provenance=told)
        values = _read_json(self.folder / _VALUES)
        values["recipe"]["threshold"], values["provenance"] = threshold, told
        card = self.folder / _CARD
        # A card that somebody wrote is theirs.
        if card.is_file() and card.read_text(encoding="utf-8") == render_card(self):
            write_text(card, render_card(changed))
        write_text(self.folder / _VALUES, _to_json(values))
        return changed

    def _config(self) -> dict[str, Any]:
        """What segmentation-models-pytorch's `from_pretrained` reads."""
        config = dict(getattr(self.network, "config", {}))
        # Or the reader would fetch the encoder's first weights, to overwrite them at once.
        config["encoder_weights"] = None
        return {**config, "_model_class": type(self.network).__name__}

    def _values(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "gimseg": __version__,
            "recipe": self.recipe.to_dict(),
            "architecture": dict(self.architecture or {}),
            "provenance": dict(self.provenance),
            "scores": dict(self.scores),
        }

    @classmethod
    def load(cls, folder: str | os.PathLike[str] = "builtin") -> Model:
        """Read a model's folder; ``"builtin"`` is the one in the package.

        Returns:
            the model on the CPU, in evaluation mode, float32.

        Raises:
            ModelError: no model there, a pickled checkpoint, or files that do not fit together.
        """
        path = find_model(folder)
        values = _read_json(path / _VALUES)
        if values.get("format") != FORMAT:
            raise ModelError(
                f"{path / _VALUES} has format {values.get('format')!r}, this gimseg {__version__} reads {FORMAT}: "
                "update gimseg or train again"
            )
        try:
            recipe = Recipe.from_dict(values["recipe"])
            architecture = values["architecture"]
            network = build_network(
                architecture["name"],
                architecture["encoder"],
                bands=len(recipe.bands),
                channels=recipe.legend.n_channels,
                **architecture["options"],
            )
        except (KeyError, TypeError, LegendError) as error:
            raise ModelError(f"{path / _VALUES} is not a model's ({error!r}): was it edited?") from error
        _load_weights(network, path / _WEIGHTS)
        if network_stride(network) != recipe.stride:
            raise ModelError(
                f"{path}: the recipe's stride is {recipe.stride} px, the network's {network_stride(network)}"
            )
        provenance, scores = values.get("provenance", {}), values.get("scores", {})
        if not (isinstance(provenance, dict) and isinstance(scores, dict)):
            raise ModelError(f"{path / _VALUES}: provenance and scores are no tables: was it edited?")
        return cls(network.eval(), recipe, architecture, provenance, scores, path)


def check_model_output(folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Refuse, before any training, a folder where a model cannot or must not be written.

    Raises:
        OutputError: it exists, is no model's folder, or its parent cannot be written.
    """
    folder = Path(folder)
    if folder.exists():
        empty = folder.is_dir() and not any(folder.iterdir())
        if not empty and not (folder / _VALUES).is_file():
            raise OutputError(f"{folder} exists and is no model's folder: give another name")
        if not empty and not overwrite:
            raise OutputError(f"{folder} holds a model: give another name or --overwrite")
    if not folder.absolute().parent.is_dir():
        raise OutputError(f"{folder}: the folder {folder.absolute().parent} does not exist: make it first")
    check_writable(folder.absolute().parent)


def render_card(model: Model) -> str:
    """The model card, Markdown with the front matter of the Hugging Face hub."""
    recipe, legend = model.recipe, model.recipe.legend
    unit = "m" if recipe.crs_unit == "metre" else recipe.crs_unit
    lines = [
        "---", f"library_name: {'gimseg' if _is_own(model) else 'segmentation-models-pytorch'}",
        "pipeline_tag: image-segmentation",
        "tags: [gimseg, geospatial, semantic-segmentation]", "---", "",
        f"# {model.name}", "",
        f"Segments {', '.join(legend.names)} in georeferenced images. Made with gimseg {__version__}.", "",
        "| | |", "|---|---|",
        f"| Input | bands {', '.join(map(str, recipe.bands))}, {recipe.dtype}, {recipe.resolution:g} {unit} a pixel |",
        f"| Classes | {', '.join(f'{item.name} = {item.value}' for item in legend.classes)}; background = 0 |",
        f"| Window | {recipe.window} px, of which {recipe.halo} px on each side are thrown away |",
        *([f"| Threshold | {recipe.threshold:g} |"] if legend.is_binary else []),
        f"| Weights | {sum(weight.numel() for weight in model.network.parameters()):,} |", "",
    ]  # fmt: skip
    for title, table in (("Scores", model.scores), ("Where it comes from", model.provenance)):
        if table:
            lines += [f"## {title}", "", *(f"- {key}: {_short(value)}" for key, value in table.items()), ""]
    lines += ["## Use", "", "```sh", "gimseg predict image.tif --model this-folder", "```", ""]
    lines += ["The network alone, for normalised images:", "", "```python", *_how_to_load(model), "```", ""]
    return "\n".join(lines)


def _is_own(model: Model) -> bool:
    """Whether its network is one that segmentation-models-pytorch does not have."""
    return str((model.architecture or {}).get("name", "")).lower() in OWN


def _how_to_load(model: Model) -> list[str]:
    if _is_own(model):
        return ["from gimseg import Model", 'network = Model.load("this-folder").network']
    return ["import segmentation_models_pytorch as smp", 'network = smp.from_pretrained("this-folder")']


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_short(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_short, value))
    return str(value)


def _stored(name: str, tensor: torch.Tensor, half: bool) -> torch.Tensor:
    tensor = tensor.detach().cpu().contiguous().clone()
    if not tensor.is_floating_point():
        return tensor
    if not tensor.isfinite().all():
        raise ModelError(f"weights {name} are not finite: the training diverged, lower the learning rate")
    # A running variance may be beyond float16's range: such a tensor stays as it is.
    return tensor.half() if half and tensor.abs().amax() < _HALF_MAX else tensor


def _to_json(table: Mapping[str, Any]) -> str:
    return json.dumps(table, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _write_json(path: Path, table: Mapping[str, Any]) -> None:
    path.write_text(_to_json(table), encoding="utf-8")


def _builtin_folder() -> Path:
    return Path(str(importlib.resources.files("gimseg"))) / "builtin" / "buildings"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}): copy the whole model folder again") from error
    if not isinstance(table, dict):
        raise ModelError(f"{path} is not a model's")
    return table


def _move(stage: Path, folder: Path) -> None:
    """Put the new files in place, the one that makes the folder a model's last."""
    if not folder.exists():
        os.replace(stage, folder)
        return
    (folder / _VALUES).unlink(missing_ok=True)
    for name in (_WEIGHTS, _CONFIG, _CARD, _VALUES):
        os.replace(stage / name, folder / name)


def find_model(folder: str | os.PathLike[str]) -> Path:
    """The folder of a model; ``"builtin"`` is the one in the package, a project's folder names its deployed one.

    Raises:
        ModelError: no model lies there, or a pickled checkpoint.
        CorrectionError: the file of a project is damaged.
    """
    if not (Path(folder) / _VALUES).is_file():
        folder = deployed_model(folder) or folder
    if str(folder) == "builtin":
        path = _builtin_folder()
        if not (path / _VALUES).is_file():
            raise ModelError("this installation has no built-in model: give a model's folder with --model")
        return path
    path = Path(folder)
    if path.is_file():
        pickled = path.suffix.lower() in _PICKLES
        why = "is a pickled checkpoint, which can run any code when it is opened" if pickled else "is a file"
        raise ModelError(f"{path} {why}: give the folder of a gimseg model")
    missing = [name for name in (_VALUES, _WEIGHTS) if not (path / name).is_file()]
    if missing:
        pickles = [file.name for file in path.glob("*") if file.suffix.lower() in _PICKLES] if path.is_dir() else []
        also = f"; pickled checkpoints ({', '.join(pickles[:3])}) are never opened" if pickles else ""
        what = f"has no {' and no '.join(missing)}" if path.is_dir() else "does not exist"
        raise ModelError(f"{path} {what}: give the folder of a gimseg model{also}")
    return path


def _load_weights(network: nn.Module, path: Path) -> None:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read ({error}): copy the whole model folder again") from error
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = [name for name in sorted({*wanted, *given}) if wanted.get(name) != given.get(name)]
    if wrong:
        first = f"{wrong[0]} is {given.get(wrong[0], 'missing')}, the network has {wanted.get(wrong[0], 'no such')}"
        raise ModelError(f"{path} does not fit its network in {len(wrong)} of {len(wanted)} tensors: {first}")
    network.load_state_dict(tensors)
