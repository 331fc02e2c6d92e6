"""Open a raster and layers in QGIS, without a window, and render them to a picture.

Runs under the Python that QGIS was installed for, not under gimseg's own:

    QT_QPA_PLATFORM=offscreen python3 examples/render_in_qgis.py picture.png big.tif big_segments.shp
"""

from __future__ import annotations

import sys

from qgis.core import (
    QgsApplication,
    QgsMapRendererParallelJob,
    QgsMapSettings,
    QgsRasterLayer,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QSize


def main(picture: str, paths: list[str]) -> None:
    """Render layers, the first at the bottom, each with the style beside it."""
    application = QgsApplication([], False)
    application.initQgis()
    layers = []
    for path in paths:
        raster = path.lower().endswith((".tif", ".tiff", ".vrt"))
        layer = QgsRasterLayer(path, path) if raster else QgsVectorLayer(path, path, "ogr")
        if not layer.isValid():
            sys.exit(f"QGIS cannot open {path}")
        told = "" if raster else f", {layer.featureCount()} features, {layer.renderer().type()}"
        print(f"{path}: {layer.crs().authid() or layer.crs().description()}{told}")
        layers.append(layer)
    settings = QgsMapSettings()
    settings.setLayers(layers[::-1])
    settings.setDestinationCrs(layers[0].crs())
    settings.setExtent(layers[0].extent())
    settings.setOutputSize(QSize(1600, round(1600 * layers[0].extent().height() / layers[0].extent().width())))
    job = QgsMapRendererParallelJob(settings)
    job.start()
    job.waitForFinished()
    job.renderedImage().save(picture)
    application.exitQgis()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
