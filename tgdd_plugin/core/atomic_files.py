"""Files that appear whole or not at all, and parsed JSON that is checked before it is believed."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from tgdd_plugin.core.errors import InputError

Record = TypeVar("Record")


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; on leaving the block it takes the place of ``path``.

    An exception inside the block leaves ``path`` as it was and removes the temporary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files only their owner can read; a result should follow the user's umask.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """The same for a folder, which must be new or empty.

    Raises:
        InputError: If it has content, or is a file.
    """
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "has content" if folder.is_dir() else "is a file"
        raise InputError(f"'{folder}' {what}; name a folder that is new or empty")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        yield temporary
        # mkdtemp makes folders only their owner can read; a result should follow the user's umask.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o777 & ~mask)
        os.rename(temporary, folder)  # onto an empty folder, too
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_whole(path: Path, content: bytes | str) -> None:
    """Writes ``content`` to ``path`` at once (``os.replace``)."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def check_writable(path: Path) -> Path:
    """Returns ``path`` if a file can be written there; called before long work, so that it is not lost at its end.

    Raises:
        InputError: If ``path`` is a folder, or its folder can be neither made nor written to.
    """
    if path.is_dir():
        raise InputError(f"output '{path}' is a folder; name a file in it, for example {path / 'distilled.beton'}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        file = next((parent for parent in path.parents if parent.is_file()), None)
        reason = f"'{file}' is a file, not a folder" if file else error.strerror or error
        raise InputError(
            f"cannot write '{path}': {reason}; choose an output path in a folder you may write to"
        ) from error
    return path


def build_checked(cls: type[Record], content: dict[str, Any]) -> Record:
    """An instance of a dataclass from parsed JSON; keys that the class does not know are left out.

    Raises:
        TypeError: If a field is missing or not of its annotated type.
    """
    if not isinstance(content, dict):
        raise TypeError(f"{content!r:.40} is no mapping")
    hints = get_type_hints(cls)
    for name, hint in hints.items():
        if name in content and not _is(content[name], hint):
            raise TypeError(f"{name} is {content[name]!r:.40}; wanted {getattr(hint, '__name__', hint)}")
    return cls(**{name: content[name] for name in hints if name in content})


def _is(value: Any, hint: Any) -> bool:
    """Whether a value of parsed JSON, or a list or mapping of built instances, is of the annotated type."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return any(_is(value, option) for option in inner)
    if origin is list:
        return isinstance(value, list) and all(_is(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_is(item, inner[1]) for item in value.values())
    if hint is float:
        return type(value) in (int, float)
    return hint is Any or (value is None if hint is NoneType else type(value) is hint)


def difference(where: str, earlier: Any, now: Any) -> str | None:
    """The first difference between two nested mappings in words, or ``None``; ``where`` is the key they stand under."""
    if isinstance(earlier, dict) and isinstance(now, dict):
        found = (difference(f"{where}.{key}".strip("."), earlier.get(key), now.get(key)) for key in {**earlier, **now})
        return next(filter(None, found), None)
    return None if earlier == now else f"{where} was {earlier!r} and is now {now!r}"
