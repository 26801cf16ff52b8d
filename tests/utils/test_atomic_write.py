"""Atomic writes: whole or not at all, whatever interrupts them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_dpo.errors import UserError
from mlx_dpo.utils.atomic_write import append_line, atomic_write, write_new


def test_a_file_takes_the_place_of_another(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    with atomic_write(file) as partial:
        partial.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "old").write_text("old")
    with atomic_write(folder) as partial:
        partial.mkdir()
        (partial / "new").write_text("new")
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_failure_leaves_the_target_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(file) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_new_place_must_be_empty(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(UserError, match="exists already"), write_new(tmp_path / "full"):
        pass
    (tmp_path / "empty").mkdir()
    with write_new(tmp_path / "empty") as partial:
        partial.mkdir()
        (partial / "y").write_text("y")
    assert (tmp_path / "empty" / "y").read_text() == "y"


def test_a_place_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"), write_new(tmp_path / "file" / "inside") as partial:
        partial.write_text("x")


def test_lines_are_appended(tmp_path: Path) -> None:
    append_line(tmp_path / "log", "1")
    append_line(tmp_path / "log", "2")
    assert (tmp_path / "log").read_bytes() == b"1\n2\n"
