"""Makes torchvision importable beside a CPU build of torch.

torchvision's wheel is built against CUDA torch. Beside a CPU build of torch its
compiled operators do not load, and ``import torchvision`` (so also
segmentation-models-pytorch, timm and lightning) dies with ``operator
torchvision::nms does not exist``. gimseg uses none of these operators: it is
enough that their names are declared.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
# Kept for the life of the process: declarations vanish with their library.
_declared: list = []


def declare_missing_operators() -> tuple[str, ...]:
    """Declare torchvision's operators if, and only if, they are missing.

    Call it before the first import of torchvision. Where torchvision's own
    operators load, nothing is declared.

    Returns:
        names of the operators that were declared, empty if none was missing.
    """
    import torch

    if _compiled_operators_load():
        return ()
    missing = tuple(name for name in _SCHEMAS if not hasattr(torch.ops.torchvision, name))
    if missing:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in missing:
            library.define(_SCHEMAS[name])
        _declared.append(library)
    return missing


def _compiled_operators_load() -> bool:
    """Load torchvision's extension as torchvision would; say whether it loads."""
    import torch

    package = importlib.util.find_spec("torchvision")
    if package is None or not package.submodule_search_locations:
        return False
    finder = importlib.machinery.FileFinder(
        next(iter(package.submodule_search_locations)),
        (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES),
    )
    extension = finder.find_spec("_C")
    if extension is None or extension.origin is None:
        return False
    try:
        torch.ops.load_library(extension.origin)
    except (OSError, RuntimeError):
        return False
    return True
