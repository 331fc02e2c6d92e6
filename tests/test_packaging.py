"""The package as a whole: public names, what an import loads, and documents that must keep up with the code."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest

import gimseg
from gimseg import correct
from gimseg.cli import cli
from gimseg.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "torchvision", "lightning", "timm", "rasterio", "osgeo", "fiona", "pyogrio", "geopandas", "pyproj")
MODULES = sorted(
    ".".join(("gimseg", *path.relative_to(ROOT / "gimseg").with_suffix("").parts)).removesuffix(".__init__")
    for path in (ROOT / "gimseg").rglob("*.py")
)


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a new interpreter has loaded after some code."""
    report = "import sys; print('\\n' + ' '.join({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_all_is_exact() -> None:
    assert gimseg.__all__ == sorted(set(gimseg.__all__))
    assert set(gimseg.__all__) == {*gimseg._HOMES, *gimseg._MODULES}


@pytest.mark.parametrize("name", gimseg._MODULES)
def test_public_module_goes_by_its_name_and_has_verbs(name: str) -> None:
    module = getattr(gimseg, name)
    assert module is importlib.import_module(f"gimseg.{gimseg._MODULES[name]}")
    assert all(callable(getattr(module, verb)) for verb in module.__all__)


@pytest.mark.parametrize("name", gimseg._HOMES)
def test_public_name_resolves_to_the_object_of_its_module(name: str) -> None:
    home = importlib.import_module(f"gimseg.{gimseg._HOMES[name]}")
    assert getattr(gimseg, name) is getattr(home, name)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        gimseg.no_such_name  # noqa: B018


def test_no_public_name_hides_a_module() -> None:
    assert not {f"gimseg.{name}" for name in gimseg.__all__} & set(MODULES)


@pytest.mark.parametrize(
    "code",
    [
        "import gimseg; gimseg.__version__",
        "from gimseg.cli import main; main(['--help'])",
        "from gimseg.cli import main; main(['train', '--help'])",
        "from gimseg.cli import main; main(['--version'])",
    ],
)
def test_neither_torch_nor_gdal_is_loaded_by(code: str) -> None:
    assert loaded_by(code) & set(HEAVY) == set()


def test_heavy_modules_would_be_seen() -> None:
    assert "rasterio" in loaded_by("import gimseg.rasters")


def test_head_of_the_changelog_is_the_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heads = re.findall(r"^## \[(.+?)\]", text, flags=re.MULTILINE)
    assert heads[0] == gimseg.__version__


def test_every_command_has_its_page_and_every_page_its_command() -> None:
    pages = {path.stem for path in (ROOT / "docs" / "commands").glob("*.md")} - {"index"}
    assert pages == set(cli.commands)


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_page_shows_the_options_and_is_listed(name: str) -> None:
    page = (ROOT / "docs" / "commands" / f"{name}.md").read_text(encoding="utf-8")
    index = (ROOT / "docs" / "commands" / "index.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {name}: ")
    assert f".. click:: gimseg.cli:{name}\n   :prog: gimseg {name}\n" in page
    assert f"({name}.md)" in index
    assert f"\n{name}\n" in index


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_option_is_explained(name: str) -> None:
    command = cli.commands[name]
    for each in (command, *getattr(command, "commands", {}).values()):
        assert each.help
        assert [option.opts for option in each.params if isinstance(option, click.Option) and not option.help] == []


def test_the_page_of_train_names_every_setting_that_is_no_option() -> None:
    page = (ROOT / "docs" / "commands" / "train.md").read_text(encoding="utf-8")
    options = {option.name: option for option in cli.commands["train"].params if isinstance(option, click.Option)}
    known = {item.name: item for item in fields(Settings)}
    table = page[page.index("| setting | where it can be said |") :].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)`", table, re.M) == [name for name in known if name not in options]
    # Those that are flags cannot say no.
    flags = [f"`--{name.replace('_', '-')}`" for name in known if name in options and options[name].is_flag]
    assert f"{', '.join(flags[:-1])} and {flags[-1]} are flags" in page
    assert set(options) - set(known) == {"device", "find_rate", "output", "overwrite", "quiet", "restart", "settings"}


def test_readme_and_pages_give_options_that_exist() -> None:
    wrong = []
    for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for line in path.read_text(encoding="utf-8").splitlines():
            found = re.match(r"\s*(?:\S*/)?gimseg (\w+)(.*)", line)
            if found and found[1] in cli.commands:
                command = cli.commands[found[1]]
                # Of a group the word after it names the command.
                inner = getattr(command, "commands", {}).get((found[2].split() or [""])[0], command)
                known = {text for option in inner.params for text in option.opts} | {"--help"}
                given = re.findall(r"(?<=\s)(--?[a-z][a-z-]*)", found[2].partition(" #")[0])
                wrong += [f"{path.name}: gimseg {found[1]} {option}" for option in given if option not in known]
    assert wrong == []


def test_every_module_is_in_the_api_reference() -> None:
    listed = re.findall(r"^ {3}(gimseg\.[a-z_.]+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.M)
    assert sorted(listed) == [name for name in MODULES if name not in ("gimseg", "gimseg.__main__")]


def test_every_verb_of_the_loop_is_named_once_in_the_api_reference() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `correct\.(\w+)` \| \{func\}`([\w.]+)` \|$", page, re.M)
    homes = {name: getattr(correct, name) for name in correct.__all__}
    assert sorted(named) == sorted((name, f"{verb.__module__}.{verb.__name__}") for name, verb in homes.items())


def _public_objects(module_name: str) -> Iterator[tuple[str, object]]:
    """Public classes and functions that a module defines, and the public methods of the former."""
    module = importlib.import_module(module_name)
    for name, item in vars(module).items():
        if name.startswith("_") or getattr(item, "__module__", None) != module_name:
            continue
        if inspect.isclass(item):
            yield f"{module_name}.{name}", item
            for key, member in vars(item).items():
                if isinstance(member, (classmethod, staticmethod)):
                    member = member.__func__
                if not key.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                    yield f"{module_name}.{name}.{key}", inspect.getattr_static(item, key)
        elif inspect.isfunction(item):
            yield f"{module_name}.{name}", item


def _is_inherited(qualified: str, module_name: str) -> bool:
    """Whether a method stands in for one of a base class, which explains it."""
    parts = qualified.removeprefix(f"{module_name}.").split(".")
    if len(parts) != 2:
        return False
    owner = getattr(importlib.import_module(module_name), parts[0])
    return any(hasattr(base, parts[1]) for base in owner.__mro__[1:])


@pytest.mark.parametrize("module_name", MODULES)
def test_everything_public_has_a_docstring(module_name: str) -> None:
    assert importlib.import_module(module_name).__doc__
    bare = [
        name
        for name, item in _public_objects(module_name)
        if not (item.__doc__ or "").strip() and not _is_inherited(name, module_name)
    ]
    assert bare == []


def test_constraints_pin_one_version_each_from_the_registry() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line)] == []
    names = [line.partition("==")[0].lower() for line in lines]
    assert len(set(names)) == len(names)
