"""Laws of outputs and progress: whole or not at all, and told in a readable way."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from gimseg.errors import OutputError
from gimseg.outputs import check_outputs, staged, write_text
from gimseg.progress import ConsoleProgress, silent, track


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    output = tmp_path / "a.txt"
    with pytest.raises(ZeroDivisionError), staged(output) as path:
        path.write_text("half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with staged(output) as path:
        path.write_text("whole")
        assert not output.exists()
    assert output.read_text() == "whole" and list(tmp_path.iterdir()) == [output]


def test_an_older_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "a.txt") as path:
        path.write_text("new")
        raise KeyboardInterrupt
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_family_moves_together_and_leaves_no_stale_member(tmp_path: Path) -> None:
    for suffix in (".shp", ".cpg", ".sbn"):
        (tmp_path / f"a{suffix}").write_text("old")
    (tmp_path / "a.txt").write_text("not of the family")
    with staged(tmp_path / "a.shp") as path:
        for suffix in (".shp", ".dbf", ".cpg"):
            path.with_suffix(suffix).write_text("new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "a.shp": "new", "a.dbf": "new", "a.cpg": "new", "a.txt": "not of the family",
    }  # fmt: skip


def test_nothing_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="was not written"), staged(tmp_path / "a.tif"):
        pass


def test_what_must_not_be_written_is_refused(tmp_path: Path) -> None:
    there, link, folder = tmp_path / "a.tif", tmp_path / "link.tif", tmp_path / "folder"
    there.write_text("x")
    link.symlink_to(there)
    folder.mkdir()
    check_outputs([tmp_path / "new.tif"], [there])
    check_outputs([there], overwrite=True)
    for outputs, inputs, overwrite, told in (
        ([there], [], False, "--overwrite"),
        ([there], [there], True, "input"),
        ([link], [there], True, "input"),
        ([folder / ".." / "a.tif"], [there], True, "input"),
        ([tmp_path / "b", folder / ".." / "b"], [], False, "one file"),
        ([folder], [], True, "folder"),
        ([tmp_path / "no" / "b"], [], False, "does not exist"),
    ):
        with pytest.raises(OutputError, match=told):
            check_outputs(outputs, inputs, overwrite=overwrite)


@pytest.mark.skipif(os.name != "posix" or not Path("/proc/self").exists(), reason="needs a folder nobody can write in")
def test_a_folder_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(OutputError, match="cannot write"):
        check_outputs(["/proc/self/a.tif"])


def test_progress_without_a_terminal_is_lines_with_rate_and_time_left() -> None:
    stream = io.StringIO()
    progress = ConsoleProgress(stream, every_s=0.0)
    for done in (0, 1, 2, 4):
        progress("predict", done, 4, "Mpx", "note")
    lines = stream.getvalue().splitlines()
    assert all("\r" not in line for line in lines)
    assert any("25%" in line and "Mpx/s" in line and "left" in line and "note" in line for line in lines)


def test_progress_in_a_terminal_is_one_line_that_ends() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    progress = ConsoleProgress(stream)
    progress._every_s = 0.0
    for done in (0, 1, 2):
        progress("train", done, 2, "steps")
    assert stream.getvalue().count("\n") == 1 and stream.getvalue().startswith("\r")


def test_track_reports_each_item() -> None:
    assert list(track([1, 2], "t", 2, "x", silent)) == [1, 2]


def test_torchvision_imports_beside_this_torch() -> None:
    from gimseg.torchvision_ops import declare_missing_operators

    declare_missing_operators()
    import torchvision

    assert declare_missing_operators() == () and "torchvision" in sys.modules and torchvision.__version__
