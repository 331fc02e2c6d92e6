"""QGIS projects (.qgz), written without QGIS: layers in their order, styles, groups, the view, editing.

A project refers to its layers by paths relative to itself, so that the folder can move.
The same project has the same bytes. Read by QGIS 3.22 and later; what an element means
was learned by comparing with projects that QGIS itself had written.
"""

from __future__ import annotations

import io
import os
import re
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import pyproj

from gimseg.errors import GridError, OutputError
from gimseg.legend import Legend
from gimseg.outputs import staged

PROJECT_ENDING = ".qgz"

Kind = Literal["raster", "vector"]
Bounds = tuple[float, float, float, float]

_PROVIDERS = {"raster": "gdal", "vector": "ogr"}
_STYLE_ATTRIBUTES = ("labelsEnabled",)
_NAMESPACE = uuid.UUID("6d9c6e0e-3a0f-5b5a-9f4e-7a1f4a6b8c21")
_CHECKED = {True: "Qt::Checked", False: "Qt::Unchecked"}
_ALWAYS = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip file can tell


@dataclass(frozen=True)
class ValueMap:
    """A drop-down list of the values that an attribute may have.

    Args:
        entries: (what is shown, what is written), in order.
        default: what is written for a new feature; None: nothing, until it is chosen.

    Raises:
        OutputError: no entry, one of them shown twice, or a default that is none of them.

    Example:
        >>> ValueMap.of_names(Legend.from_dict({"classes": ["tin", "tile"]})).entries
        (('tin', 'tin'), ('tile', 'tile'))
    """

    entries: tuple[tuple[str, str], ...]
    default: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "entries", tuple((str(label), str(value)) for label, value in self.entries))
        labels = [label for label, _ in self.entries]
        if not labels or len(set(labels)) != len(labels):
            raise OutputError(f"a drop-down list shows {labels}: give one entry at least, each of its own name")
        if self.default is not None and self.default not in (value for _, value in self.entries):
            raise OutputError(f"a drop-down list of {labels} has the default {self.default!r}: give one of them")

    @classmethod
    def of_names(cls, legend: Legend) -> ValueMap:
        """For the attribute that holds the name of the class."""
        return cls(tuple((name, name) for name in legend.names))


@dataclass(frozen=True)
class Snapping:
    """How vertices catch on those of layers that can be edited.

    Args:
        tolerance_px: on the screen.
        topological: an edge that two polygons share stays shared when one of them is edited.
    """

    tolerance_px: float = 12.0
    topological: bool = True


@dataclass(frozen=True)
class ProjectLayer:
    """One layer of a project.

    Args:
        path: the file.
        name: in the layer list.
        kind: ``"raster"`` or ``"vector"``.
        crs: what :class:`pyproj.CRS` understands; None if there is none.
        style: content of a ``.qml``, see :mod:`gimseg.styles`; "": QGIS decides.
        table: the layer of a GeoPackage; "": the file has but one.
        group: of the layer list; "": none. Layers of a group stand together.
        visible: shown at first.
        editable: can be edited; else QGIS refuses.
        widgets: attribute -> how its value is entered; all others are left to QGIS.

    Raises:
        OutputError: no name, an unknown kind, or a raster that is to be edited,
            or a style that is no XML.
        GridError: a CRS that is none.
    """

    path: str | os.PathLike[str]
    name: str
    kind: Kind
    crs: Any = None
    style: str = ""
    table: str = ""
    group: str = ""
    visible: bool = True
    editable: bool = False
    widgets: Mapping[str, ValueMap] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind) or not self.name.strip():
            raise OutputError(
                f"{self.path}: name {self.name!r}, kind {self.kind!r}: a name, raster or vector is needed"
            )
        if self.kind == "raster" and (self.editable or self.widgets):
            raise OutputError(f"{self.path} is a raster: only vector layers are edited")
        if self.style:
            try:
                ElementTree.fromstring(self.style)
            except ElementTree.ParseError as error:
                raise OutputError(f"the style of {self.path} is no .qml ({error}): give another, or none") from error
        object.__setattr__(self, "crs", _to_crs(self.crs, str(self.path)))
        object.__setattr__(self, "widgets", MappingProxyType(dict(self.widgets)))


@dataclass(frozen=True)
class Project:
    """What a person sees who opens a project.

    Args:
        layers: the topmost first.
        crs: of the map.
        extent: (left, bottom, right, top) of the first view, in `crs`.
        title: of the window.
        snapping: where layers are edited; None: none.

    Raises:
        OutputError: no layer.
        GridError: an extent without area, or a CRS that is none.
    """

    layers: tuple[ProjectLayer, ...]
    crs: Any
    extent: Bounds
    title: str
    snapping: Snapping | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "crs", _to_crs(self.crs, f"project {self.title!r}"))
        if not self.layers:
            raise OutputError(f"project {self.title!r} has no layers: give one at least")
        left, bottom, right, top = self.extent
        if not (left < right and bottom < top):
            raise GridError(f"project {self.title!r}: extent {self.extent}: left < right and bottom < top are needed")


def write_project(path: str | os.PathLike[str], project: Project) -> Path:
    """Write a project, replacing what was there; its layers are not touched.

    Args:
        path: ends in ``.qgz``.
        project: what to write.

    Returns:
        the file.

    Raises:
        OutputError: another ending, or the file cannot be written.
    """
    path = Path(path)
    if not is_project(path):
        raise OutputError(f"{path} ends in {path.suffix or 'nothing'!r}: a QGIS project ends in {PROJECT_ENDING}")
    text = project_xml(project, path.parent)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        entry = zipfile.ZipInfo(f"{path.stem}.qgs", _ALWAYS)
        entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
        archive.writestr(entry, text)
    with staged(path) as part:
        part.write_bytes(packed.getvalue())
    return path


def is_project(path: str | os.PathLike[str]) -> bool:
    """Whether a name means a QGIS project.

    Example:
        >>> is_project("out/town.qgz"), is_project("out/town.gpkg")
        (True, False)
    """
    return Path(path).suffix.lower() == PROJECT_ENDING


def project_xml(project: Project, folder: str | os.PathLike[str]) -> str:
    """The ``.qgs`` of a project.

    Args:
        project: what to describe.
        folder: where the project will lie: paths of layers are relative to it.
    """
    places = [_Place(layer, _identifier(order, layer), _source(layer, folder)) for order, layer in _numbered(project)]
    root = Element("qgis", version="3.22.0", projectname=project.title)
    SubElement(root, "homePath", path="")
    _text(root, "title", project.title)
    SubElement(root, "projectCrs").append(_spatial_reference(project.crs))
    root.append(_layer_tree(places))
    if project.snapping is not None:
        root.append(_snapping(project.snapping, places))
    root.append(_canvas(project))
    layers = SubElement(root, "projectlayers")
    layers.extend(_map_layer(place) for place in places)
    root.append(_properties(project))
    view = SubElement(root, "ProjectViewSettings", UseProjectScales="0", rotation="0")
    full = dict(zip(("xmin", "ymin", "xmax", "ymax"), map(_number, project.extent), strict=True))
    SubElement(view, "DefaultViewExtent", full).append(_spatial_reference(project.crs))
    ElementTree.indent(root)
    head = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
    return head + ElementTree.tostring(root, encoding="unicode") + "\n"


@dataclass(frozen=True)
class _Place:
    """A layer with the identifier and the source that the parts of a project name it by."""

    layer: ProjectLayer
    identifier: str
    source: str

    @property
    def provider(self) -> str:
        return _PROVIDERS[self.layer.kind]


def _numbered(project: Project) -> Iterator[tuple[int, ProjectLayer]]:
    return enumerate(project.layers, 1)


def _identifier(order: int, layer: ProjectLayer) -> str:
    # Shaped like those of QGIS, which replaces one of ten characters or fewer, and loses the layer's place with it.
    unique = str(uuid.uuid5(_NAMESPACE, f"{order} {layer.name}")).replace("-", "_")
    return f"{re.sub(r'[^a-z0-9]+', '_', layer.name.lower()).strip('_') or layer.kind}_{unique}"


def _source(layer: ProjectLayer, folder: str | os.PathLike[str]) -> str:
    relative = Path(os.path.relpath(layer.path, folder)).as_posix()
    relative = relative if relative.startswith("../") else f"./{relative}"
    return f"{relative}|layername={layer.table}" if layer.table else relative


def _to_crs(given: Any, where: str) -> pyproj.CRS | None:
    if given is None:
        return None
    try:
        return pyproj.CRS.from_user_input(given)
    except pyproj.exceptions.CRSError as error:
        raise GridError(f"{where}: {given!r} is no CRS: give one such as EPSG:32633") from error


def _spatial_reference(crs: pyproj.CRS | None) -> Element:
    """A CRS by its name in a registry, which QGIS prefers, and by its definition; empty if there is none."""
    reference = Element("spatialrefsys")
    if crs is not None:
        authority = crs.to_authority(min_confidence=100)
        _text(reference, "wkt", crs.to_wkt("WKT2_2019"))
        _text(reference, "authid", ":".join(authority) if authority else "")
        _text(reference, "description", crs.name)
        _text(reference, "geographicflag", str(crs.is_geographic).lower())
    return reference


def _layer_tree(places: list[_Place]) -> Element:
    """The layer list; layers of one group that follow each other share its entry."""
    root = Element("layer-tree-group")
    for name, members in groupby(places, key=lambda place: place.layer.group):
        held = list(members)
        parent = root
        if name:
            shown = any(place.layer.visible for place in held)
            parent = SubElement(root, "layer-tree-group", name=name, checked=_CHECKED[True], expanded=str(int(shown)))
        for place in held:
            SubElement(
                parent,
                "layer-tree-layer",
                id=place.identifier,
                name=place.layer.name,
                source=place.source,
                providerKey=place.provider,
                checked=_CHECKED[place.layer.visible],
                expanded=str(int(place.layer.kind == "vector")),
            )
    return root


def _snapping(snapping: Snapping, places: list[_Place]) -> Element:
    # mode 3: layer by layer; type 3: vertices and segments; unit 1: pixels of the screen.
    common = {"tolerance": _number(snapping.tolerance_px), "type": "3", "minScale": "0", "maxScale": "0"}
    switches = {"enabled": "1", "mode": "3", "unit": "1", "intersection-snapping": "0", "self-snapping": "0"}
    settings = Element("snapping-settings", {**switches, **common, "scaleDependencyMode": "0"})
    each = SubElement(settings, "individual-layer-settings")
    for place in places:
        if place.layer.kind == "vector":
            enabled = str(int(place.layer.editable))
            SubElement(each, "layer-setting", {"id": place.identifier, "enabled": enabled, "units": "1", **common})
    return settings


def _canvas(project: Project) -> Element:
    """The first view; QGIS knows the map of its window by this name."""
    canvas = Element("mapcanvas", name="theMapCanvas", annotationsVisible="1")
    extent = SubElement(canvas, "extent")
    for name, value in zip(("xmin", "ymin", "xmax", "ymax"), project.extent, strict=True):
        _text(extent, name, _number(value))
    _text(canvas, "rotation", "0")
    SubElement(canvas, "destinationsrs").append(_spatial_reference(project.crs))
    return canvas


def _map_layer(place: _Place) -> Element:
    layer = place.layer
    found = Element("maplayer", type=layer.kind, styleCategories="AllStyleCategories")
    _text(found, "id", place.identifier)
    _text(found, "datasource", place.source)
    _text(found, "layername", layer.name)
    SubElement(found, "srs").append(_spatial_reference(layer.crs))
    provider = _text(found, "provider", place.provider)
    if layer.kind == "vector":
        provider.set("encoding", "UTF-8")
        found.set("readOnly", str(int(not layer.editable)))
    if layer.widgets:
        found.append(_fields(layer.widgets))
        found.append(_defaults(layer.widgets))
    if layer.style:
        style = ElementTree.fromstring(layer.style)
        found.attrib |= {name: style.attrib[name] for name in _STYLE_ATTRIBUTES if name in style.attrib}
        # A style for both kinds has a part for each, of which QGIS takes its own. One that QGIS
        # saved whole has fields too: those given here come first.
        found.extend(part for part in style if found.find(part.tag) is None)
    return found


def _fields(widgets: Mapping[str, ValueMap]) -> Element:
    configuration = Element("fieldConfiguration")
    for name, widget in widgets.items():
        attribute = SubElement(configuration, "field", name=name, configurationFlags="None")
        config = SubElement(SubElement(attribute, "editWidget", type="ValueMap"), "config")
        # A list, since a map would be sorted by name.
        entries = SubElement(SubElement(config, "Option", type="Map"), "Option", type="List", name="map")
        for label, value in widget.entries:
            entry = SubElement(entries, "Option", type="Map")
            SubElement(entry, "Option", type="QString", name=label, value=value)
    return configuration


def _defaults(widgets: Mapping[str, ValueMap]) -> Element:
    """What new features have, as expressions of QGIS."""
    defaults = Element("defaults")
    for name, widget in widgets.items():
        if widget.default is not None:
            text = widget.default.replace("\\", "\\\\").replace("'", "''")
            SubElement(defaults, "default", field=name, expression=f"'{text}'", applyOnUpdate="0")
    return defaults


def _properties(project: Project) -> Element:
    topological = project.snapping is not None and project.snapping.topological
    settings = (
        ("Digitizing", "TopologicalEditing", "int", str(int(topological))),
        ("Paths", "Absolute", "bool", "false"),
        ("SpatialRefSys", "ProjectionsEnabled", "int", str(int(project.crs is not None))),
    )
    properties = Element("properties")
    for scope, name, kind, value in settings:
        _text(SubElement(properties, scope), name, value).set("type", kind)
    return properties


def _text(parent: Element, name: str, text: str) -> Element:
    child = SubElement(parent, name)
    child.text = text
    return child


def _number(value: float) -> str:
    # In full: a view cut to fewer digits would not be that of the raster.
    return repr(float(value)).removesuffix(".0")
