"""Imports point one way: a module of gimseg imports only from those above its own in this list."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "gimseg"

LAYERS = (
    "errors",
    "torchvision_ops",
    "outputs",
    "deployments",
    "progress",
    "crew",
    "freed_memory",
    "depthwise",
    "legend",
    "raster_files",
    "resampling",
    "raster_views",
    "raster_output",
    "rasters",
    "origins",
    "mosaics",
    "levelling",
    "arrays",
    "vector_formats",
    "vector_geometry",
    "geojson_output",
    "vector_output",
    "geopackages",
    "vectors",
    "ground",
    "layouts",
    "painting",
    "scenes",
    "labelled_scenes",
    "labelled_windows",
    "leakage",
    "datasets",
    "folds",
    "sampling",
    "holdouts",
    "point_labels",
    "radiometry",
    "class_weights",
    "balance",
    "colours",
    "augmentation",
    "labelled_logits",
    "hardness",
    "distance_maps",
    "pixel_losses",
    "overlap_losses",
    "distance_losses",
    "topology_losses",
    "losses",
    "batch_parts",
    "deep_supervision",
    "metrics",
    "probability_scores",
    "boundary_scores",
    "object_scores",
    "intervals",
    "tiling",
    "stitching",
    "probability_filters",
    "necks",
    "morphology",
    "refinement_steps",
    "refinement",
    "tiramisu",
    "attention_unet",
    "networks",
    "recipes",
    "reach",
    "models",
    "window_choice",
    "averaging",
    "device_memory",
    "torch_backend",
    "openvino_backend",
    "trials",
    "backends",
    "optimisers",
    "settings",
    "settings_files",
    "training_ground",
    "fitting",
    "trainers",
    "training_state",
    "exemplars",
    "training",
    "rate_finder",
    "products",
    "matching",
    "refined_planes",
    "parts",
    "renewal",
    "imagery",
    "preflight",
    "assembly",
    "loading",
    "computing",
    "pipeline",
    "running",
    "workers",
    "inference",
    "styles",
    "raster_styles",
    "qgis",
    "result_projects",
    "outlines",
    "runs",
    "tracing",
    "coverage",
    "instances",
    "right_angles",
    "round_corners",
    "cleaning",
    "mask_legends",
    "masks",
    "confidence",
    "attributes",
    "regions",
    "earlier",
    "vectorization",
    "footprints",
    "stac",
    "jobs",
    "delivery",
    "charts",
    "report",
    "pictures",
    "sample_windows",
    "object_matching",
    "scene_predictions",
    "scene_scores",
    "score_tables",
    "sample_lists",
    "score_pages",
    "evaluation",
    "comparison",
    "sweeps",
    "info",
    "correction",
    "export",
    "cluster",
    "demo_pictures",
    "demo_correction",
    "demo",
    "review",
    "training_options",
    "prediction_options",
    "command_options",
    "option_files",
    "correct_commands",
    "cli",
    "__main__",
)
"""Top to bottom. Names without a file are rooms that are not built yet."""

LATE_IMPORTERS = ("cli", "command_options", "correct_commands", "option_files")
"""Modules that may import others of gimseg inside a function."""


class Import(NamedTuple):
    """One import of a module of gimseg; `target` is its first name below gimseg, "" for gimseg itself."""

    target: str
    line: int
    inside_function: bool


def find_imports(source: str, module: str = "module") -> Iterator[Import]:
    """Every import of gimseg in a source text, wherever it stands."""
    tree = ast.parse(source)
    late = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        for dotted in _imported(node, module):
            first, _, rest = dotted.partition(".")
            if first == "gimseg":
                yield Import(rest.partition(".")[0], node.lineno, id(node) in late)  # type: ignore[attr-defined]


def _imported(node: ast.AST, module: str) -> list[str]:
    """Dotted names that an import statement reaches; [] for any other node."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    origin = node.module or ""
    if node.level:
        package = ["gimseg", *module.split(".")][: -node.level]
        origin = ".".join([*package, *([node.module] if node.module else [])])
    if origin != "gimseg":
        return [origin]
    return ["gimseg" if alias.name == "__version__" else f"gimseg.{alias.name}" for alias in node.names]


def faults(module: str, source: str) -> list[str]:
    """What is wrong with the imports of a module, one line each.

    Args:
        module: dotted name below gimseg, such as ``models`` or ``correction.gate``.
        source: its text.
    """
    layer = module.partition(".")[0]
    if layer not in LAYERS:
        return [f"gimseg/{layer}: not in the list of layers: give it its place"]
    found = []
    for target, line, inside_function in find_imports(source, module):
        where = f"gimseg.{module}, line {line}"
        if inside_function and layer not in LATE_IMPORTERS:
            found.append(f"{where}: imports gimseg.{target} inside a function")
        if target and target not in LAYERS:
            found.append(f"{where}: gimseg.{target} is no module: import from the module that defines it")
        elif target and target != layer and LAYERS.index(target) > LAYERS.index(layer):
            found.append(f"{where}: imports gimseg.{target}, which lies below it")
    return found


def modules() -> list[tuple[str, Path]]:
    """Dotted name below gimseg and path of every module, but for gimseg/__init__.py itself."""
    listed = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts != ("__init__",):
            listed.append((".".join(parts), path))
    return listed


@pytest.mark.parametrize(("module", "path"), modules(), ids=[name for name, _ in modules()])
def test_module_imports_only_from_above(module: str, path: Path) -> None:
    assert faults(module, path.read_text(encoding="utf-8")) == []


def test_list_names_every_layer_once() -> None:
    assert len(set(LAYERS)) == len(LAYERS)


def test_the_page_on_architecture_has_the_same_list() -> None:
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    told = re.findall(r"^  (\w+) +\S", page.partition("```text\ngimseg/\n")[2].partition("```")[0], re.M)
    built = [name for name in LAYERS if (PACKAGE / f"{name}.py").exists() or (PACKAGE / name).is_dir()]
    assert told == ["__init__", *(name for name in built if name != "__main__")]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("legend", "from gimseg.training import train"),
        ("legend", "import gimseg.rasters"),
        ("legend", "from gimseg import rasters"),
        ("legend", "from .rasters import open_raster"),
        ("legend", "from . import cli"),
        ("correction.gate", "from ..review import serve"),
        ("training", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from gimseg.demo import run_demo"),
        ("training", "def train():\n    from gimseg.demo import run_demo"),
        ("training", "def train():\n    from gimseg.legend import Legend"),
        ("training", "from gimseg import Dataset"),
        ("helpers", "import numpy"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str) -> None:
    assert len(faults(module, source)) >= 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("training", "from gimseg import __version__\nfrom gimseg.legend import Legend\nimport torch"),
        ("correction.gate", "from .drawing import read\nfrom ..metrics import Confusion"),
        ("cli", "def train():\n    from gimseg.training import train"),
    ],
)
def test_a_right_import_passes(module: str, source: str) -> None:
    assert faults(module, source) == []
