"""What is checked of a ``.pt`` before and after ``torch.load(weights_only=True)``: it runs no code, but believes sizes.

A few bytes can ask for any memory: a compressed entry of the zip archive, a storage that is not in the file, a tensor
that repeats one number (stride 0), a text that is encoded again and again. What is read here takes as much memory as
the file is large, and a little more.
"""

from __future__ import annotations

import codecs
import io
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from tgdd_plugin.core.bounded_reading import open_regular
from tgdd_plugin.core.errors import InputError, shown

PICKLE_SIZE = 2**20
"""Most bytes of what a ``.pt`` says of its tensors: 300 of two tensors, 10,000 with the accuracies of DC's files."""

ZIP_ENTRIES = 10_000

_LEGACY = 0x1950A86A20F9469CFC6C  # torch.save's first number before torch 1.6
_NEEDED = re.compile(
    r"torch (\w+Storage|Size|bool|b?float\d+|u?int\d+|complex\d+)|torch\.storage UntypedStorage"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|tensor_v3|parameter|sparse_tensor|meta_tensor_no_storage)"
    r"|torch\.serialization _get_layout|collections OrderedDict|_codecs encode"
    r"|numpy(\._?core\.multiarray)? (scalar|dtype)"
)


class NotPlainError(Exception):
    """A ``.pt`` holds an object that is not a tensor, a container or a number; the message is its name."""


def is_zip(path: Path) -> bool:
    """Checks a ``.pt`` before it is read, and returns whether it is a zip archive; if not, it is of torch before 1.6.

    Raises:
        InputError: If it is not a regular file.
        NotPlainError: If it holds other objects than tensors, containers and numbers.
        OSError: If it cannot be read.
        ValueError: If torch.save did not write it, or it asks for more than it holds; the message is one line.
    """
    with open_regular(path) as file:
        if file.read(4) == b"PK\x03\x04":
            _check_pickle(_zip_pickle(file))
            return True
        file.seek(0)
        head = io.BytesIO(file.read(PICKLE_SIZE))
    for number in range(5):  # a magic number, the version, the machine, the content, the keys of the storages
        first = _check_pickle(head)
        if number == 0 and first != _LEGACY:
            raise ValueError("torch.save did not write it")
    return False


def _zip_pickle(file: BinaryIO) -> io.BytesIO:
    """The content of a zip archive without its tensors, whose entries are checked: none may be compressed."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - 22))
    if int.from_bytes(file.read(22)[10:12], "little") > ZIP_ENTRIES:
        raise ValueError(f"it has more than {ZIP_ENTRIES:,} entries")
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError("its entries are compressed, which torch.save does not do")
            if sum(max(entry.file_size, entry.compress_size) for entry in entries) > size:
                raise ValueError("its entries are larger than the file")
            named = [entry for entry in entries if entry.filename.endswith("data.pkl")]
            if len(named) != 1 or named[0].file_size > PICKLE_SIZE:
                raise ValueError(f"it must have one data.pkl of at most {PICKLE_SIZE // 2**10} KiB")
            return io.BytesIO(archive.read(named[0]))
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        raise ValueError(f"it is not a zip archive: {error}") from None


def _check_pickle(stream: io.BytesIO) -> Any:
    """Reads one pickle without building anything, and returns its first value."""
    first, texts, encodes = None, [], False
    for operation, argument, _ in pickletools.genops(stream):
        if first is None and argument is not None and operation.name != "PROTO":
            first = argument
        if operation.name in ("GLOBAL", "INST", "STACK_GLOBAL"):
            if not _NEEDED.fullmatch(str(argument)):
                raise NotPlainError(shown(str(argument).replace(" ", ".")))
            encodes |= argument == "_codecs encode"
        elif isinstance(argument, str) and len(argument) < 40:
            texts.append(argument)
    # Bytes of numpy's numbers are written as text, encoded by latin1. Others could be made longer and longer.
    if encodes and not all(map(_is_latin_or_none, set(texts))):
        raise NotPlainError("_codecs.encode")
    return first


def _is_latin_or_none(text: str) -> bool:
    try:
        return codecs.lookup(text).name in ("iso8859-1", "ascii", "utf-8")
    except (LookupError, ValueError):
        return True


def check_memory(content: Any, path: Path) -> None:
    """Checks that the tensors in loaded content take no more memory than the file has bytes.

    Raises:
        InputError: If a tensor repeats its numbers, or says that it has more than the file holds.
    """
    size = path.stat().st_size
    storages: dict[int, int] = {}
    level, seen = [content], set()
    while level:
        inner: list[Any] = []
        for value in level:
            if isinstance(value, torch.Tensor) and value.layout is torch.strided and value.device.type == "cpu":
                storage = value.untyped_storage()
                storages[storage.data_ptr()] = max(storages.get(storage.data_ptr(), 0), storage.nbytes())
                if value.numel() * value.element_size() > storage.nbytes() or sum(storages.values()) > size:
                    raise InputError(
                        f"The file '{path}' must hold each number of its tensors, got {tuple(value.shape)} of "
                        f"{size} bytes. Save them again by torch.save([images.clone(), labels.clone()], ...)."
                    )
            elif isinstance(value, list | tuple | dict) and id(value) not in seen:
                seen.add(id(value))
                inner.extend(value.values() if isinstance(value, dict) else value)
        level = inner
