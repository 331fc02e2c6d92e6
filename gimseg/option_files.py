"""Options of commands as TOML: a table for each command, in any file that is named, or in the dataset file.

``[evaluate]`` with ``refine = "open(1 m)"`` says what ``gimseg evaluate --refine "open(1 m)"`` says;
``[correct.train]`` is for ``gimseg correct train``. What is given on the command line wins.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from gimseg.command_options import Decorator, LayerPath
from gimseg.training_options import SettingOption

_DATA_TABLES = ("legend", "dataset", "training")

_NOT_IN_FILES = ("help", "version", "config")


def config_option(group: click.Group) -> click.Group:
    """``--config`` of the group of all commands."""
    option = click.Option(
        ["--config"],
        type=click.Path(exists=True, dir_okay=False),
        expose_value=False,
        is_eager=True,
        callback=_take_all,
        help="TOML file with options of commands: a table [predict], [evaluate], [correct.train]…",
    )
    group.params.insert(0, option)
    return group


def options_from(argument: str) -> Decorator:
    """An argument that is a dataset file, whose table of the command's name holds options of it."""
    return click.argument(argument, type=click.Path(exists=True, dir_okay=False), is_eager=True, callback=_take_own)


def read_options(path: str | os.PathLike[str], group: click.Group) -> dict[str, Any]:
    """What a file says of all commands of a group, as click takes defaults: nested, by the names of parameters.

    Paths are relative to the file. Lists are for options that can be given several times, or that
    take several values with commas between them.

    Raises:
        click.UsageError: the file is no TOML, or a table, an option or a value is none that there is.
    """
    content = _read(Path(path))
    found = _of_group({name: table for name, table in content.items() if name not in _DATA_TABLES}, group, Path(path))
    if "training" in content and "train" in group.commands:
        # The settings of a training have a table of their own, which goes through a reader of its own.
        found.setdefault("train", {}).setdefault("settings", os.fspath(path))
    return found


def _take_all(ctx: click.Context, _: click.Parameter, path: str | None) -> None:
    if path is not None and isinstance(ctx.command, click.Group):
        ctx.default_map = read_options(path, ctx.command)


def _take_own(ctx: click.Context, _: click.Parameter, path: str) -> str:
    """The options of one command in its dataset file; those of ``--config`` win."""
    from gimseg.legend import did_you_mean

    name, root = str(ctx.info_name), ctx.find_root().command
    try:
        content = _read(Path(path))
    except (click.UsageError, TypeError):
        # What reads the datasets says better what is wrong with it.
        return path
    known = [*_DATA_TABLES, *(root.commands if isinstance(root, click.Group) else [name])]
    for table in content:
        if table not in known:
            raise click.UsageError(f"{path} has a table or key {table!r}{did_you_mean(table, known)}")
    if name in content:
        own = _of_command(content[name], ctx.command, Path(path), name)
        ctx.default_map = {**own, **(ctx.default_map or {})}
    return path


def _read(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        # Editors of Windows begin a file with a mark of its encoding.
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise click.UsageError(f"{path} cannot be read as TOML: {error}") from error


def _of_group(content: Mapping[str, Any], group: click.Group, path: Path, above: str = "") -> dict[str, Any]:
    from gimseg.legend import did_you_mean

    found: dict[str, Any] = {}
    for name, table in content.items():
        command, full = group.commands.get(name), f"{above}{name}"
        if command is None and above and not isinstance(table, Mapping):
            raise click.UsageError(f"{path}: {full} is no table: options are those of a command, as in [{above}train]")
        if command is None:
            raise click.UsageError(f"{path}: no command [{full}]{did_you_mean(name, list(group.commands))}")
        if isinstance(command, click.Group):
            found[name] = _of_group(_table(table, path, full), command, path, f"{full}.")
        else:
            found[name] = _of_command(table, command, path, full)
    return found


def _of_command(table: Any, command: click.Command, path: Path, full: str) -> dict[str, Any]:
    from gimseg.legend import did_you_mean

    options: dict[str, click.Parameter] = {}
    for option in command.params:
        if isinstance(option, click.Option) and option.name not in _NOT_IN_FILES:
            # As on the command line, or as in Python.
            names = [text[2:].replace("-", "_") for text in option.opts if text.startswith("--")]
            options |= dict.fromkeys([*names, str(option.name)], option)
    found: dict[str, Any] = {}
    for key, value in _table(table, path, full).items():
        spelt = key.replace("-", "_")
        if spelt not in options:
            near = did_you_mean(spelt, list(options))
            raise click.UsageError(f"{path}: [{full}] has {key!r}, which is no option of it{near}")
        if isinstance(options[spelt], SettingOption):
            raise click.UsageError(f"{path}: [{full}] has {key!r}, a setting of the training: write it in [training]")
        if str(options[spelt].name) in found:
            raise click.UsageError(f"{path}: [{full}] says {key!r} twice, in two spellings: leave one out")
        found[str(options[spelt].name)] = _value(value, options[spelt], command, path, f"[{full}] {key}")
    return found


def _table(table: Any, path: Path, full: str) -> Mapping[str, Any]:
    if not isinstance(table, Mapping):
        raise click.UsageError(f"{path}: {full} is {table!r}: write a table [{full}]")
    return table


def _value(value: Any, option: click.Parameter, command: click.Command, path: Path, where: str) -> Any:
    """As it would be typed, checked as if it had been."""
    parts = value if isinstance(value, list) else [value]
    flag = isinstance(option.type, click.types.BoolParamType)
    wanted = "true or false" if flag else "a number, a text, or a list of them"
    if not parts or not all(_can_be_typed(part, flag) for part in parts) or (flag and isinstance(value, list)):
        raise click.UsageError(f"{path}: {where} is {value!r}: give {wanted}")
    if flag:
        return value
    typed = [_beside(str(part), option, path.parent) for part in parts]
    several = option.multiple if isinstance(option, click.Option) else False
    # Several values of one option have commas between them, as 1,2,3.
    given: Any = typed if several else ",".join(typed)
    try:
        option.process_value(click.Context(command), given)
    except click.BadParameter as error:
        raise click.UsageError(f"{path}: {where} is {value!r}: {error.message}") from error
    except (ValueError, OverflowError) as error:
        raise click.UsageError(f"{path}: {where} is {value!r}: {error}") from error
    return given


def _can_be_typed(part: Any, flag: bool) -> bool:
    if flag or isinstance(part, bool):
        return flag and isinstance(part, bool)
    return isinstance(part, int | float) or (isinstance(part, str) and part.isprintable())


def _beside(part: str, option: click.Parameter, folder: Path) -> str:
    """Paths are relative to the file; a model may be a name, too."""
    beside = os.path.join(folder, part)
    if option.name == "model":
        return beside if os.path.exists(beside) else part
    return beside if part and isinstance(option.type, (click.Path, LayerPath)) else part
