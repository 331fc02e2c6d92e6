"""gimseg in the Processing toolbox of QGIS 3.22 and later: one file, dropped into QGIS.

Copy it to the folder that *Processing > Toolbox > Scripts > Open existing script...* shows
(``processing/scripts`` in the active profile). The toolbox then has a group *gimseg*.

QGIS's own Python has no torch, so each algorithm runs gimseg as a child process of its
own environment. Which one is told, in this order, by the parameter *gimseg command*, by the
environment variable ``GIMSEG``, by the setting ``gimseg/command``, else ``gimseg`` is looked for on
the PATH. ``/home/me/.venv/bin/gimseg`` and ``/home/me/.venv/bin/python -m gimseg`` both do.

To add a command of gimseg, add a ``Verb`` to ``VERBS``.
"""
# ruff: noqa: N802 (methods have the names that QGIS calls them by)

from __future__ import annotations

import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

from qgis.core import (
    QgsApplication,
    QgsProcessing,
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingLayerPostProcessorInterface,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterEnum,
    QgsProcessingParameterFile,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterDestination,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
    QgsProcessingParameterVectorDestination,
    QgsProcessingParameterVectorLayer,
    QgsProcessingProvider,
    QgsProject,
    QgsProviderRegistry,
    QgsSettings,
)

COMMAND, EXTRA = "COMMAND", "EXTRA"
DEVICES = ("auto", "cpu", "cuda")
GRACE_S = 20.0
# QGIS points these at its own libraries, which those in gimseg's environment must not load.
NOT_FOR_CHILDREN = (
    "PYTHONPATH",
    "PYTHONHOME",
    "GDAL_DATA",
    "GDAL_DRIVER_PATH",
    "PROJ_LIB",
    "PROJ_DATA",
    "LD_LIBRARY_PATH",
)

PROGRESS = re.compile(r"(?P<task>\S.*?) +(?P<share>\d{1,3})%  ")  # as in "predict  45%  3/7 Mpx  12 s left"

Parameters = dict[str, Any]


# --- what the algorithms are ------------------------------------------------------------------------------------------


class Option(NamedTuple):
    """One parameter of an algorithm, and how it is given to gimseg.

    Args:
        make: builds QGIS's definition of the parameter, anew for each algorithm.
        flag: "" for a plain argument, else as on the command line.
        advanced: hidden at first.
    """

    make: Callable[[], QgsProcessingParameterDefinition]
    flag: str = ""
    advanced: bool = False


class Verb(NamedTuple):
    """One command of gimseg as an algorithm; plain arguments first.

    Args:
        name: as on the command line; ``correct start`` too.
        text: what it does, for the dialog.
        options: in the order of the dialog; those of :data:`COMMON` follow.
        layers: of files that it leaves beside its outputs, to be put on the map: (file, name of the layer), the
            topmost last; names of parameters in braces stand for their values.
    """

    name: str
    text: str
    options: tuple[Option, ...]
    layers: tuple[tuple[str, str], ...] = ()


def number(name: str, label: str, flag: str, *, advanced: bool = False) -> Option:
    """A number above 0, or nothing."""
    kind = QgsProcessingParameterNumber.Double
    return Option(
        lambda: QgsProcessingParameterNumber(name, label, kind, None, optional=True, minValue=0.0), flag, advanced
    )


def text(name: str, label: str, flag: str, *, advanced: bool = False) -> Option:
    """A text, or nothing."""
    return Option(lambda: QgsProcessingParameterString(name, label, optional=True), flag, advanced)


def switch(name: str, label: str, flag: str, *, advanced: bool = False) -> Option:
    """On or off, off at first."""
    return Option(lambda: QgsProcessingParameterBoolean(name, label, False), flag, advanced)


def raster(name: str, label: str) -> Option:
    """A raster layer, as a plain argument."""
    return Option(lambda: QgsProcessingParameterRasterLayer(name, label))


def file(name: str, label: str, flag: str, *, folder: bool = False, advanced: bool = False) -> Option:
    """A file or a folder, or nothing."""
    kind = QgsProcessingParameterFile.Folder if folder else QgsProcessingParameterFile.File
    return Option(lambda: QgsProcessingParameterFile(name, label, kind, optional=True), flag, advanced)


def areas(name: str, label: str, flag: str, *, optional: bool = True) -> Option:
    """A layer of polygons."""
    kinds = [QgsProcessing.TypeVectorPolygon]
    return Option(lambda: QgsProcessingParameterVectorLayer(name, label, kinds, optional=optional), flag)


SHAPING = (
    number("MIN_AREA", "Drop polygons below this area (m²)", "--min-area"),
    number("SIMPLIFY", "Simplify polygons within this tolerance (m)", "--simplify"),
)
POLYGONS = Option(
    lambda: QgsProcessingParameterVectorDestination("POLYGONS", "Polygons", QgsProcessing.TypeVectorPolygon), "--output"
)
OVERWRITE = switch("OVERWRITE", "Replace outputs that exist", "--overwrite", advanced=True)
DEVICE = Option(lambda: QgsProcessingParameterEnum("DEVICE", "Device", DEVICES, False, 0), "--device", True)
NODATA = text("NODATA", "Value without data, or auto for a border that nothing declares", "--nodata", advanced=True)
BANDS = text("BANDS", "Bands, as 1,2,3 (none: those of the model)", "--bands", advanced=True)
MODEL = file("MODEL", "Model folder (none: the built-in one)", "--model", folder=True)
CORRECTED = file(
    "MODEL", "Model folder (none: the project's, or the built-in one)", "--model", folder=True, advanced=True
)
ID = Option(lambda: QgsProcessingParameterString("ID", "Name of the correction"))
PROJECT = Option(
    lambda: QgsProcessingParameterFile(
        "PROJECT",
        "Folder of the project, which holds corrections/",
        QgsProcessingParameterFile.Folder,
        defaultValue=QgsProject.instance().homePath() or None,
    ),
    "--project",
)
COMMON = (
    text(EXTRA, "More options, as on the command line", "", advanced=True),
    Option(lambda: QgsProcessingParameterString(COMMAND, "gimseg command", find_command(), optional=True), "", True),
)
VERBS = (
    Verb(
        "predict",
        "Segments a raster with a model: a mask and its polygons. A run that was cancelled goes on where it stopped "
        "when it is started again with the same parameters and the same outputs; give these names, since temporary "
        "files have new ones in each run.",
        (
            raster("RASTER", "Raster"),
            MODEL,
            areas("AOI", "Area of interest", "--aoi"),
            *SHAPING,
            NODATA,
            BANDS,
            number("RESOLUTION", "Metres per pixel (none: the model's)", "--resolution", advanced=True),
            DEVICE,
            OVERWRITE,
            switch("RESTART", "Throw away finished blocks of an earlier run", "--restart", advanced=True),
            Option(
                lambda: QgsProcessingParameterRasterDestination("MASK", "Mask", optional=True, createByDefault=False),
                "--output",
            ),
            POLYGONS,
        ),
    ),
    Verb(
        "vectorize",
        "Polygons of the classes of a mask, as gimseg or another tool has written it.",
        (raster("RASTER", "Mask"), *SHAPING, OVERWRITE, POLYGONS),
    ),
    Verb(
        "correct suggest",
        "Areas of a raster that are worth drawing: where the model doubts, and some at random.",
        (
            raster("RASTER", "Raster"),
            MODEL,
            Option(
                lambda: QgsProcessingParameterNumber("COUNT", "Areas", QgsProcessingParameterNumber.Integer, 10),
                "--count",
            ),
            file("OLDER", "An older layer: where the prediction differs from it", "--older", advanced=True),
            number("SIDE", "Side of an area, m (none: what is drawn in minutes)", "--side", advanced=True),
            NODATA,
            BANDS,
            DEVICE,
            OVERWRITE,
            Option(
                lambda: QgsProcessingParameterVectorDestination("AREAS", "Areas", QgsProcessing.TypeVectorPolygon),
                "--output",
            ),
        ),
    ),
    Verb(
        "correct start",
        "Begins a correction: predicts in the areas of interest and lays the objects out to be made right. What "
        "is drawn means: inside an area of interest everything is drawn, and the rest is background. "
        "corrections/NAME/correction.qgz is a project to draw in, with a list of classes and snapping.",
        (
            ID,
            Option(lambda: QgsProcessingParameterRasterLayer("RASTER", "Raster"), "--raster"),
            areas("AOI", "Areas of interest", "--aoi", optional=False),
            PROJECT,
            CORRECTED,
            NODATA,
            BANDS,
            DEVICE,
        ),
        tuple(("{PROJECT}/corrections/{ID}/correction.gpkg", layer) for layer in ("aoi", "objects", "points")),
    ),
    Verb(
        "correct check",
        "Tells what in a correction would mislead a training, each with its place, and what it labels. Fails if there "
        "are errors.",
        (ID, PROJECT, CORRECTED, switch("FIX", "Mend first what can be mended without a guess", "--fix")),
    ),
    Verb(
        "correct train",
        "Retrains the model on a correction; half of each batch is what it learned before. The deployed model is not "
        "touched. A training that was cancelled goes on when it is started again in the same way.",
        (
            ID,
            PROJECT,
            file("REPLAY", "Dataset file of what the model learned first (none: windows that it keeps)", "--replay"),
            CORRECTED,
            DEVICE,
            switch("RESTART", "Throw away the state of a training that did not end", "--restart", advanced=True),
        ),
    ),
    Verb(
        "correct report",
        "Compares the models before and after a correction, and asks the gate: report.html in the folder of the "
        "correction. The objects that appeared and vanished come onto the map.",
        (
            ID,
            PROJECT,
            file("TEST", "Dataset file of what was learned before (none: the model's own test windows)", "--test"),
            DEVICE,
        ),
        tuple(("{PROJECT}/corrections/{ID}/diff.gpkg", layer) for layer in ("vanished", "appeared")),
    ),
    Verb(
        "correct accept",
        "Makes the model of a correction that of the project, and brings the delivered mask and polygons up to it. "
        "Give the options that shape polygons as they were given to predict.",
        (
            ID,
            PROJECT,
            *SHAPING,
            switch("EVERYWHERE", "Predict the whole raster again", "--everywhere"),
            switch("FORCE", "Even though the gate holds the new model back", "--force", advanced=True),
            DEVICE,
        ),
    ),
    Verb(
        "correct rollback",
        "Undoes the last acceptance: its model, and the files that it changed.",
        (PROJECT, switch("FORCE", "Even though a file was changed since", "--force", advanced=True)),
    ),
)


# --- gimseg as a child process ----------------------------------------------------------------------------------------


def find_command() -> str:
    """How gimseg is called where the dialog does not say: see the head of this file."""
    return os.environ.get("GIMSEG") or QgsSettings().value("gimseg/command", "") or shutil.which("gimseg") or "gimseg"


def split_command(command: str) -> list[str]:
    """A command as a list of words; a file may have blanks in its name."""
    return [command] if os.path.isfile(command) else shlex.split(command)


def start(command: list[str], feedback: QgsProcessingFeedback) -> subprocess.Popen[str]:
    """Start gimseg in a process group of its own, with both outputs in one."""
    feedback.pushCommandInfo(shlex.join(command))
    environment = {name: value for name, value in os.environ.items() if name not in NOT_FOR_CHILDREN}
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=environment | {"PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
    except OSError as error:
        raise QgsProcessingException(
            f"gimseg cannot be started as {command[0]!r} ({error.strerror}): give its place in the advanced parameter "
            "'gimseg command', or in the environment variable GIMSEG (Settings > Options > System)"
        ) from error


def read_lines(process: subprocess.Popen[str]) -> Iterator[str | None]:
    """Lines as they come, None in between, so that the caller can look at other things."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in process.stdout or ():
            lines.put(line.rstrip())
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=0.2)
        except queue.Empty:
            yield None
            continue
        if line is None:
            return
        yield line


def stop(process: subprocess.Popen[str]) -> None:
    """Interrupt the whole group, as Ctrl+C does, so that what is finished is kept; insist if that takes too long."""
    for sign in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            return
        until = time.monotonic() + GRACE_S
        while process.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        if process.poll() is not None:
            return


def run(command: list[str], feedback: QgsProcessingFeedback) -> bool:
    """Run gimseg to its end, showing what it says; False if a person cancelled it.

    Raises:
        QgsProcessingException: it failed; the message is its own.
    """
    last: deque[str] = deque(maxlen=20)
    task = ""
    with start(command, feedback) as process:
        try:
            for line in read_lines(process):
                if feedback.isCanceled():
                    stop(process)
                    feedback.pushInfo("Cancelled. Finished parts are kept: run it again in the same way to go on.")
                    return False
                if line is None:
                    continue
                found = PROGRESS.match(line)
                if found:
                    if found["task"] != task:
                        task = found["task"]
                        feedback.setProgressText(task)
                    feedback.setProgress(float(found["share"]))
                last.append(line)
                feedback.pushConsoleInfo(line)
        except BaseException:
            stop(process)
            raise
    if process.returncode:
        told = [line for line in last if line.startswith("Error: ")] or list(last)
        raise QgsProcessingException("\n".join(told) or f"gimseg ended with status {process.returncode}")
    return True


# --- what QGIS sees ---------------------------------------------------------------------------------------------------


class Styled(QgsProcessingLayerPostProcessorInterface):
    """Gives a layer the style that gimseg left with it, whatever style the toolbox has for new layers."""

    # QGIS does not keep Python's side of a post-processor alive.
    alive: list[Styled] = []  # noqa: RUF012

    def postProcessLayer(self, layer: Any, context: Any, feedback: Any) -> None:
        """Called by QGIS once the layer is on the map."""
        layer.loadDefaultStyle()
        layer.triggerRepaint()


class Gimseg(QgsProcessingProvider):
    """The group of algorithms in the toolbox."""

    # Inside, where QGIS does not find it: of a script it would take one algorithm and leave the others.
    class Algorithm(QgsProcessingAlgorithm):
        """A verb of gimseg as QGIS calls it."""

        def __init__(self, verb: Verb) -> None:
            super().__init__()
            self.verb = verb

        def createInstance(self) -> QgsProcessingAlgorithm:
            return type(self)(self.verb)

        def name(self) -> str:
            return self.verb.name.replace(" ", "_")

        def displayName(self) -> str:
            return f"gimseg: {self.verb.name}"

        def shortHelpString(self) -> str:
            return self.verb.text

        @property
        def options(self) -> tuple[Option, ...]:
            """Those of the verb, and those that all have."""
            return (*self.verb.options, *COMMON)

        def initAlgorithm(self, configuration: Any = None) -> None:
            for option in self.options:
                definition = option.make()
                if option.advanced:
                    definition.setFlags(definition.flags() | QgsProcessingParameterDefinition.FlagAdvanced)
                self.addParameter(definition)

        def processAlgorithm(
            self, parameters: Parameters, context: QgsProcessingContext, feedback: QgsProcessingFeedback
        ) -> dict[str, Any]:
            given = self.parameterAsString(parameters, COMMAND, context) or find_command()
            command = [*split_command(given), *self.verb.name.split()]
            outputs: dict[str, str] = {}
            for option, definition in zip(self.options, self.parameterDefinitions()):  # noqa: B905 (Python 3.9)
                if definition.name() in (COMMAND, EXTRA):
                    continue
                value = self.value(definition, parameters, context, feedback)
                if value is None:
                    continue
                if definition.isDestination():
                    outputs[definition.name()] = str(value)
                command += [option.flag] if value is True else [option.flag, value] if option.flag else [value]
            command += shlex.split(self.parameterAsString(parameters, EXTRA, context))
            if not run(command, feedback):
                return {}
            Styled.alive.clear()
            self.style(outputs, context)
            self.show(parameters, context)
            return outputs

        def value(
            self,
            definition: QgsProcessingParameterDefinition,
            parameters: Parameters,
            context: QgsProcessingContext,
            feedback: QgsProcessingFeedback,
        ) -> str | bool | None:
            """What gimseg is given for a parameter; None: nothing."""
            name, kind = definition.name(), definition.type()
            if kind == "boolean":
                return self.parameterAsBool(parameters, name, context) or None
            if parameters.get(name) in (None, ""):
                return None
            if kind == "enum":
                return definition.options()[self.parameterAsEnum(parameters, name, context)]
            if kind == "number":
                return f"{self.parameterAsDouble(parameters, name, context):.15g}"
            if kind == "raster":
                layer = self.parameterAsRasterLayer(parameters, name, context)
                if layer is None or layer.providerType() != "gdal":
                    raise QgsProcessingException(f"{definition.description()}: a raster in a file is needed")
                return QgsProviderRegistry.instance().decodeUri("gdal", layer.source())["path"]
            if kind == "vector":
                # Layers in memory, filtered ones, and one of several in a GeoPackage go through a file of their own.
                return self.parameterAsCompatibleSourceLayerPath(
                    parameters, name, context, ["shp", "geojson", "fgb"], "gpkg", feedback
                )
            if definition.isDestination():
                return self.parameterAsOutputLayer(parameters, name, context)
            return self.parameterAsString(parameters, name, context)

        def style(self, outputs: dict[str, str], context: QgsProcessingContext) -> None:
            """Have the layers that QGIS will put on the map styled."""
            for path in outputs.values():
                if context.willLoadLayerOnCompletion(path):
                    Styled.alive.append(Styled())
                    context.layerToLoadOnCompletionDetails(path).setPostProcessor(Styled.alive[-1])

        def show(self, parameters: Parameters, context: QgsProcessingContext) -> None:
            """Have the layers that lie beside the outputs put on the map, too."""
            names = [definition.name() for definition in self.parameterDefinitions()]
            told = {name: self.parameterAsString(parameters, name, context) for name in names}
            for place, layer in self.verb.layers:
                path = place.format(**told)
                if not os.path.exists(path):
                    continue
                source = f"{path}|layername={layer}"
                details = QgsProcessingContext.LayerDetails(layer, context.project(), layer)
                Styled.alive.append(Styled())
                details.setPostProcessor(Styled.alive[-1])
                context.addLayerToLoadOnCompletion(source, details)

    def id(self) -> str:
        return "gimseg"

    def name(self) -> str:
        return "gimseg"

    def loadAlgorithms(self) -> None:
        self.kept = [self.Algorithm(verb) for verb in VERBS]
        for algorithm in self.kept:
            self.addAlgorithm(algorithm)

    def supportedOutputVectorLayerExtensions(self) -> list[str]:
        return ["gpkg", "shp", "fgb", "geojson", "parquet"]

    def supportedOutputRasterLayerExtensions(self) -> list[str]:
        return ["tif"]

    def defaultVectorFileExtension(self, hasGeometry: bool = True) -> str:
        return "gpkg"

    def supportsNonFileBasedOutput(self) -> bool:
        return False


def register() -> None:
    """Put gimseg into the toolbox; QGIS reads its scripts again and again."""
    registry = QgsApplication.processingRegistry()
    if registry.providerById("gimseg"):
        registry.removeProvider("gimseg")
    provider = Gimseg()
    registry.addProvider(provider)
    # QGIS keeps neither this module nor Python's side of the provider alive; what stands in sys.modules stays.
    sys.modules.setdefault("gimseg_in_qgis", ModuleType("gimseg_in_qgis")).provider = provider


register()
