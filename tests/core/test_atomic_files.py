"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tgdd_plugin import InputError
from tgdd_plugin.core.atomic_files import check_writable, sha256, sweep, whole_file, whole_folder, write_whole
from tgdd_plugin.core.locks import locked


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
    with pytest.raises(InputError, match="new' is a folder. Name a file in it"):
        check_writable(tmp_path / "new")
    write_whole(tmp_path / "plain", "a")
    with pytest.raises(InputError, match="^Cannot write '.*plain/x': '.*plain' is a file, not a folder. Choose an out"):
        check_writable(tmp_path / "plain" / "x")
    with pytest.raises(InputError, match="^Cannot write '.*plain/x': '.*plain' is a file, not a folder. Choose an out"):
        with whole_folder(tmp_path / "plain" / "x"):
            pass


def test_the_checksum_is_sha_256(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", "abc")
    assert sha256(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# Durability.


class Calls:
    """Notes, in order, what is synced and what is renamed, by real paths."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.list: list[str] = []
        self._note(monkeypatch, "fsync", lambda handle: f"sync {os.readlink(f'/proc/self/fd/{handle}')}")
        for name in ("replace", "rename"):
            self._note(monkeypatch, name, lambda source, target: f"{source} becomes {target}")

    def _note(self, monkeypatch: pytest.MonkeyPatch, name: str, words: Callable[..., str]) -> None:
        function = getattr(os, name)

        def noted(*arguments: Any) -> Any:
            self.list.append(words(*arguments))
            return function(*arguments)

        monkeypatch.setattr(os, name, noted)


def test_a_file_is_on_the_disk_before_it_appears_and_its_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch)
    with whole_file(tmp_path / "new" / "deep" / "file") as temporary:
        temporary.write_text("a")
    deep = tmp_path / "new" / "deep"
    assert calls.list == [
        f"sync {tmp_path}",  # which got "new"
        f"sync {tmp_path}/new",
        f"sync {temporary}",
        f"{temporary} becomes {deep}/file",
        f"sync {deep}",
    ]


def test_so_is_a_folder_with_all_that_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    with whole_folder(tmp_path / "folder") as temporary:
        (temporary / "class").mkdir()
        (temporary / "class" / "a.png").write_text("a")
        (temporary / "b").write_text("b")
    inside = {f"sync {temporary}{path}" for path in ("", "/class", "/class/a.png", "/b")}
    assert set(calls.list[:4]) == inside
    assert calls.list[4:] == [f"{temporary} becomes {tmp_path}/folder", f"sync {tmp_path}"]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_is_full_only_when_synced_leaves_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    write_whole(tmp_path / "file", "earlier")

    def fails(handle: int) -> None:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises(OSError, match=os.strerror(error)):
            write_whole(tmp_path / "file", "later")
    assert (tmp_path / "file").read_text() == "earlier" and names(tmp_path) == ["file"]


def test_a_file_system_that_syncs_no_folders_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fsync

    def files_only(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(handle)

    monkeypatch.setattr(os, "fsync", files_only)
    write_whole(tmp_path / "file", "a")
    assert names(tmp_path) == ["file"]


# What killed writers leave.

WRITE = """
import sys
from pathlib import Path
from tgdd_plugin.core.atomic_files import whole_file, whole_folder
path = Path(sys.argv[1])
with whole_file(path), whole_file(Path(f"{path}.yaml")), whole_folder(path.with_name("folder")) as folder:
    (folder / "half").write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_temporaries_of_killed_writers_are_swept_and_those_of_living_ones_never(tmp_path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITE, str(tmp_path / "set.beton")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert writer.stdout and writer.stdout.readline()
    others = ["..tmp", ".other.beton.abcdefgh.tmp", ".set.beton.swp", "notes.tmp"]
    for name in others:
        (tmp_path / name).touch()
    written = [name for name in names(tmp_path) if name not in others]
    written.remove(".folder.lock")
    assert len(written) == 3
    check_writable(tmp_path / "set.beton")
    sweep(tmp_path, ".folder.")
    assert names(tmp_path) == sorted([*others, *written, ".folder.lock"])
    writer.kill()
    writer.communicate()
    check_writable(tmp_path / "set.beton")  # the file's own, and its card's
    left = [name for name in written if "folder" in name]
    assert names(tmp_path) == sorted([*others, *left, ".folder.lock"])
    with whole_folder(tmp_path / "folder"):
        pass
    assert names(tmp_path) == sorted([*others, "folder"])
    sweep(tmp_path)
    assert names(tmp_path) == ["..tmp", ".set.beton.swp", "folder", "notes.tmp"]


def test_lock_files_of_killed_holders_are_swept_and_those_that_are_held_never(tmp_path: Path) -> None:
    (tmp_path / ".left.beton.lock").touch()
    with locked(tmp_path / "held.beton"):
        sweep(tmp_path)
        assert names(tmp_path) == [".held.beton.lock"]


def test_a_file_that_is_written_again_takes_along_what_a_killed_writer_left_of_it(tmp_path: Path) -> None:
    for name in (".file.abcdefgh.tmp", ".other.abcdefgh.tmp"):
        (tmp_path / name).touch()
    write_whole(tmp_path / "file", "a", swept=True)
    assert names(tmp_path) == [".file.abcdefgh.tmp", ".other.abcdefgh.tmp", "file"]
    with whole_file(tmp_path / "file"), whole_file(tmp_path / "file") as second:  # one of a living writer stays
        second.write_text("b")
        assert len(names(tmp_path)) == 4
    assert names(tmp_path) == [".other.abcdefgh.tmp", "file"]


def test_a_sweeper_never_takes_what_is_about_to_be_written(tmp_path: Path) -> None:
    """Not even between the making of a temporary and its lock."""
    code = """
import sys
from pathlib import Path
from tgdd_plugin.core.atomic_files import sweep
print("sweeping", flush=True)
while not Path(sys.argv[1], "end").exists():
    sweep(Path(sys.argv[1]))
"""
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as sweeper:
        try:
            assert sweeper.stdout and sweeper.stdout.readline()
            for number in range(80):
                write_whole(tmp_path / "file", str(number))
                with whole_folder(tmp_path / f"folder{number}"):
                    pass
                (tmp_path / f"folder{number}").rmdir()
        finally:
            (tmp_path / "end").touch()
    assert names(tmp_path) == ["end", "file"]
