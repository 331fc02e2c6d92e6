"""Open a QGIS project, or a raster and layers, in QGIS without a window, and render them to a picture.

Runs under the Python that QGIS was installed for, not under gimseg's own:

    QT_QPA_PLATFORM=offscreen python3 examples/render_in_qgis.py picture.png town.qgz
    QT_QPA_PLATFORM=offscreen python3 examples/render_in_qgis.py picture.png big.tif big_segments.shp

With --zoom 2 only the middle half of the width and height is shown, with --width 800 the picture is 800 px wide.
"""

from __future__ import annotations

import argparse
import sys

from qgis.core import (
    QgsApplication,
    QgsMapLayer,
    QgsMapRendererSequentialJob,
    QgsMapSettings,
    QgsProject,
    QgsRasterLayer,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QSize


def open_project(path: str) -> list[QgsMapLayer]:
    """The layers that a project shows, the topmost first."""
    project = QgsProject.instance()
    if not project.read(path):
        sys.exit(f"QGIS cannot open {path}: {project.error()}")
    tree = project.layerTreeRoot()
    return [layer for layer in tree.layerOrder() if tree.findLayer(layer).isVisible()]


def open_layers(paths: list[str]) -> list[QgsMapLayer]:
    """Each file with the style beside it; the first given is the lowest."""
    rasters = (".tif", ".tiff", ".vrt")
    layers = [
        QgsRasterLayer(path, path) if path.lower().endswith(rasters) else QgsVectorLayer(path, path, "ogr")
        for path in reversed(paths)
    ]
    # The project takes them over, and lets them go before QGIS ends.
    return QgsProject.instance().addMapLayers(layers, False)


def main(picture: str, paths: list[str], zoom: float, width: int) -> None:
    """Render what the paths show, over the whole of the lowest layer or its middle."""
    application = QgsApplication([], False)
    application.initQgis()
    layers = open_project(paths[0]) if paths[0].lower().endswith(".qgz") else open_layers(paths)
    for layer in layers:
        if not layer.isValid():
            sys.exit(f"QGIS cannot open {layer.source()}")
        told = f", {layer.featureCount()} features" if isinstance(layer, QgsVectorLayer) else ""
        crs = layer.crs().authid() or layer.crs().description()
        print(f"{layer.name()}: {crs}{told}, {layer.renderer().type()}")
    settings = QgsMapSettings()
    settings.setLayers(layers)
    settings.setDestinationCrs(layers[-1].crs())
    extent = layers[-1].extent()
    extent.scale(1 / zoom)
    settings.setExtent(extent)
    settings.setOutputSize(QSize(width, round(width * extent.height() / extent.width())))
    job = QgsMapRendererSequentialJob(settings)
    job.start()
    job.waitForFinished()
    job.renderedImage().save(picture)
    QgsProject.instance().clear()
    application.exitQgis()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture")
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--zoom", type=float, default=1.0)
    parser.add_argument("--width", type=int, default=1600)
    given = parser.parse_args()
    main(given.picture, given.paths, given.zoom, given.width)
