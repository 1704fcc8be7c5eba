"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tgdd_plugin import InputError
from tgdd_plugin.core.atomic_files import check_writable, sha256, whole_file, whole_folder, write_whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_at_the_end_of_the_block(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"
    write_whole(path, "earlier")
    with whole_file(path) as temporary:
        temporary.write_text("later")
        assert path.read_text() == "earlier"
    assert path.read_text() == "later" and names(path.parent) == ["file.json"]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_an_error_leaves_the_earlier_file_and_nothing_else(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", b"earlier")
    with pytest.raises(RuntimeError), whole_file(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert (tmp_path / "file").read_bytes() == b"earlier" and names(tmp_path) == ["file"]
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "folder") as temporary:
        (temporary / "half").touch()
        raise RuntimeError
    assert names(tmp_path) == ["file"]


def test_a_folder_must_be_new_or_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new"):
        with whole_folder(tmp_path / name) as temporary:
            (temporary / "a").write_text("a")
        assert names(tmp_path / name) == ["a"]
    with pytest.raises(InputError, match="new' has content. Name a folder that is new or empty."):
        with whole_folder(tmp_path / "new"):
            pass
    with pytest.raises(InputError, match="a' is a file. Name a folder that is new or empty."):
        with whole_folder(tmp_path / "new" / "a"):
            pass


def test_what_cannot_be_written_is_found_out_first(tmp_path: Path) -> None:
    assert check_writable(tmp_path / "new" / "file") == tmp_path / "new" / "file"
    assert names(tmp_path / "new") == []
    with pytest.raises(InputError, match="new' is a folder. Name a file in it, for example .*new/distilled.beton"):
        check_writable(tmp_path / "new")
    write_whole(tmp_path / "plain", "a")
    with pytest.raises(InputError, match="^Cannot write '.*plain/x': '.*plain' is a file, not a folder. Choose an out"):
        check_writable(tmp_path / "plain" / "x")


def test_the_checksum_is_sha_256(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", "abc")
    assert sha256(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
