"""Fixtures of all tests, and the versions of the compiled libraries in pytest's header."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from in_qgis import has_qgis

# The networks of the tests are small: with one thread each they are as quick, and side by side (-n 2) far quicker.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real imagery beside the checkout; tests that need it skip without it."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the real imagery of {SHARED_DATA.parent.name}/data beside the checkout")
    return SHARED_DATA


@pytest.fixture(scope="session")
def qgis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the settings of QGIS; tests that need it skip without its Python module."""
    if not has_qgis():
        pytest.skip("needs QGIS and its Python module")
    return tmp_path_factory.mktemp("profile")


def pytest_report_header() -> str:
    import fiona
    import pyogrio
    import pyproj
    import rasterio
    import torch

    return (
        f"torch {torch.__version__}, rasterio {rasterio.__version__} (GDAL {rasterio.__gdal_version__}), "
        f"pyogrio {pyogrio.__version__} (GDAL {pyogrio.__gdal_version_string__}), fiona {fiona.__version__}, "
        f"PROJ {pyproj.proj_version_str}"
    )
