"""Several files written together: all of them, or none."""

from pathlib import Path

import pytest

from kvsup.errors import ConfigError
from kvsup.runtime.newfiles import write_files

TEXTS = {"a.toml": "a = 1\n", "b.toml": "b = 2\n"}


def contents(folder: Path) -> dict[str, str]:
    """Return every file of a folder, hidden ones too."""
    return {path.name: path.read_text("utf-8") for path in folder.iterdir()}


def test_files_are_written_into_a_folder_that_is_made(tmp_path: Path) -> None:
    """Nothing else is left in it."""
    folder = tmp_path / "new" / "configs"

    write_files(folder, TEXTS, replaces=False)

    assert contents(folder) == TEXTS


def test_file_that_is_there_keeps_all_from_being_written(tmp_path: Path) -> None:
    """Each that is in the way is named."""
    (tmp_path / "b.toml").write_text("mine")

    with pytest.raises(
        ConfigError, match=r"b\.toml: there already; move them away, or use --force"
    ):
        write_files(tmp_path, TEXTS, replaces=False)

    assert contents(tmp_path) == {"b.toml": "mine"}


def test_file_that_is_there_is_replaced_if_wanted(tmp_path: Path) -> None:
    """Others stay."""
    (tmp_path / "b.toml").write_text("mine")
    (tmp_path / "c.toml").write_text("mine")

    write_files(tmp_path, TEXTS, replaces=True)

    assert contents(tmp_path) == {**TEXTS, "c.toml": "mine"}


def test_file_that_cannot_be_replaced_leaves_all_as_it_was(tmp_path: Path) -> None:
    """Those that had been replaced before it are what they were, and new ones are gone."""
    (tmp_path / "a.toml").write_text("mine")
    (tmp_path / "c.toml").mkdir()
    texts = {**TEXTS, "c.toml": "c = 3\n"}

    with pytest.raises(ConfigError, match="nothing was changed"):
        write_files(tmp_path, texts, replaces=True)

    (tmp_path / "c.toml").rmdir()
    assert contents(tmp_path) == {"a.toml": "mine"}


def test_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """With its name."""
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match="file cannot be written"):
        write_files(tmp_path / "file", TEXTS, replaces=False)
