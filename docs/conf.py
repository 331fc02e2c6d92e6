"""Sphinx configuration: pages in Markdown, options from the commands, the API from docstrings."""

from __future__ import annotations

import warnings

from gimseg import __version__
from gimseg.torchvision_ops import declare_missing_operators

declare_missing_operators()
warnings.filterwarnings("ignore")

project = "gimseg"
author = "the gimseg developers"
project_copyright = "the gimseg developers, Apache-2.0"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_click",
]
# Tables that scripts write, shown inside other pages.
exclude_patterns = ["_build", "studies"]
templates_path = ["_templates"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = f"gimseg {__version__}"
html_static_path: list[str] = []
