"""Files from elsewhere: whatever they are, reading them ends at once, in little memory, with one clear line."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tgdd_plugin.core.bounded_reading import MOST_LEVELS, open_regular, parse_json, read_bounded
from tgdd_plugin.core.bounded_yaml import MOST_NODES, parse_yaml
from tgdd_plugin.core.errors import InputError, printable, shown

MOST_MEMORY = 512 * 2**20


def limited(code: str, *arguments: str | Path) -> str:
    """Runs code in a process of its own, which must end within the limits of this package; returns what it printed."""
    # Not by getrusage(), which counts what the process was forked from.
    program = f"{textwrap.dedent(code)}\nprint(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    *lines, peak = done.stdout.splitlines()
    assert int(peak) * 1024 < MOST_MEMORY, f"{int(peak) // 1024} MiB"
    return "\n".join(lines)


# Regular files of a limited size.


def pipe(path: Path) -> None:
    os.mkfifo(path)


def bound_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path.name)  # its name is short, a path of pytest's may not be


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (pipe, "a named pipe"),
        (bound_socket, "a socket"),
        (Path.mkdir, "a folder"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
    ],
)
def test_only_regular_files_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "x")
    with pytest.raises(InputError, match=f"^'.*/x' must be a regular file, got {kind}. Name a file.$"):
        open_regular(tmp_path / "x")


def test_files_up_to_a_limit_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for size in (0, 1, 100):
        path.write_bytes(b"a" * size)
        assert read_bounded(path, 100, "card") == b"a" * size
    (tmp_path / "link").symlink_to(path)
    assert read_bounded(tmp_path / "link", 100, "card") == b"a" * 100
    path.write_bytes(b"a" * 101)
    with pytest.raises(InputError, match="^The card '.*/x' must have at most .* MiB, got more"):
        read_bounded(path, 100, "card")
    with pytest.raises(FileNotFoundError):
        read_bounded(tmp_path / "none", 100, "card")
    assert read_bounded("/proc/self/status", 2**20, "file").startswith(b"Name:")  # whose size is said to be 0


# YAML.


@pytest.mark.parametrize(
    "value",
    [{"a": [1, 2.5, "x", None, True], "b": {"c": [[]]}}, ["0x10", "1e3", "2024"], "é 猫", [], None, {"": {1: 2}}],
)
def test_yaml_is_read_as_pyyaml_reads_it(value: Any) -> None:
    text = yaml.safe_dump(value, allow_unicode=True)
    assert parse_yaml(text) == parse_yaml(text.encode()) == yaml.safe_load(text) == value


def test_yaml_of_a_recipe_of_this_repository() -> None:
    text = (Path(__file__).parents[2] / "recipes/own_data.yaml").read_text()
    assert parse_yaml(text) == yaml.safe_load(text)


def bomb(levels: int = 9) -> str:
    names = [f"x{i}" for i in range(levels)]
    first = f"x0: &x0 [{', '.join(['lol'] * 9)}]"
    return "\n".join(
        [first, *(f"{n}: &{n} [{', '.join([f'*{m}'] * 9)}]" for m, n in zip(names, names[1:], strict=False))]
    )


YAML = {
    "alias bomb": (bomb(), "line 1 has an anchor or alias: write the value out"),
    "two million items": ("- 1\n" * 2_000_000, f"line {MOST_NODES} has more than {MOST_NODES:,} keys and values"),
    "two million items in a line": ("[" + "1," * 2_000_000 + "1]", "keys and values"),
    "deep lists": ("[" * 100_000, f"line 1 has more than {MOST_LEVELS} lists and mappings within each other"),
    "deep lists of dashes": ("- " * 100_000, f"more than {MOST_LEVELS} lists"),
    "deep mappings": ("{a: " * 100_000, f"more than {MOST_LEVELS} lists"),
    "a number to base 60": ("1" + ":1" * 30_000, "a number of more than 100 digits"),
    "many such numbers": (("- 1" + ":1" * 30_000 + "\n") * 16, "a number of more than 100 digits"),
    "many directives": ("".join(f"%TAG !{i}! tag:x\n" for i in range(30_000)) + "---\na: 1", "begins with %"),
    "a long word": ("a" * 2**20, "more than 65,536 characters without quotes"),
    "a key twice": ("a: 1\nb: 2\na: 3", "the key 'a' stands twice in line 3, column 1"),
    "a key twice within": ("b: 1\na:\n  b: 1\n  c: 2\n  'b': 3", "the key 'b' stands twice in line 5, column 3"),
    "a tag": ("a: !!python/object/apply:os.system [touch /tmp/x]", "line 1 has a tag, .*write plain values"),
    "a tag of another type": ("a: !!binary aGk=", "line 1 has a tag"),
    "no date": ("a: 2001-99-99", "month must be in 1..12"),
    "no number": ("a: 0b_", "invalid literal"),
    "a list as a key": ("? [1]\n: 2", "unhashable key"),
    "not UTF-8": (b"a: \xff", "it is not UTF-8 text: invalid start byte at byte 3"),
    "a control character": ("a: \x1b[2J", "control characters are not allowed"),
    "nothing at all like it": ("a: [", "did not find expected node"),
}


@pytest.mark.parametrize("case", YAML)
def test_yaml_that_is_refused(case: str) -> None:
    text, reason = YAML[case]
    with pytest.raises(ValueError, match=reason) as error:
        parse_yaml(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_the_largest_yaml_is_read_within_the_limits() -> None:
    code = f"""
        from tgdd_plugin.core.bounded_yaml import parse_yaml
        for text in ("- 1.5\\n" * {MOST_NODES - 1}, "- {{a: 1}}\\n" * {MOST_NODES // 3 - 1}):
            parse_yaml(text)
    """
    limited(code)


def test_the_key_that_stands_twice_is_found_among_as_many_as_there_may_be() -> None:
    """Comparing each with each took minutes."""
    code = f"""
        from tgdd_plugin.core.bounded_reading import parse_json
        from tgdd_plugin.core.bounded_yaml import parse_yaml
        keys = [f'"k{{number}}": 0' for number in range({MOST_NODES // 2 - 2})]
        keys.append(keys[-1])
        for parse, text in ((parse_yaml, "\\n".join(keys)), (parse_json, "{{" + ",".join(keys) + "}}")):
            try:
                parse(text)
            except ValueError as error:
                print(error)
    """
    last = MOST_NODES // 2 - 3
    told = [f"the key 'k{last}' stands twice{where}" for where in (f" in line {last + 2}, column 1", "")]
    assert limited(code) == "\n".join(told)


# JSON.


def test_json_is_read_as_the_standard_library_reads_it() -> None:
    value = {"a": [1, 2.5, "é 猫", None, True, {"b": []}], "c": {}}
    assert parse_json(json.dumps(value)) == parse_json(json.dumps(value).encode()) == value
    assert parse_json(b"\xef\xbb\xbf[NaN, Infinity]")[1] == float("inf")


JSON = {
    "deep lists": ("[" * 100_000 + "]" * 100_000, f"more than {MOST_LEVELS} lists and mappings within each other"),
    "less deep lists": ("[" * 33 + "]" * 33, f"more than {MOST_LEVELS} lists"),
    "deep mappings": ('{"a":' * 100_000 + "1" + "}" * 100_000, f"more than {MOST_LEVELS} lists"),
    "many values": ("[" + "[]," * 5_000_000 + "1]", "more than 2,000,000 values"),
    "a key twice": ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' stands twice"),
    "a long number": ("1" * 5000, "Exceeds the limit"),
    "not UTF-8": (b'"\xff"', "it is not UTF-8 text"),
    "nothing at all like it": ("{", "Expecting property name"),
}


@pytest.mark.parametrize("case", JSON)
def test_json_that_is_refused(case: str) -> None:
    text, reason = JSON[case]
    with pytest.raises(ValueError, match=reason) as error:
        parse_json(text)
    assert "\n" not in str(error.value)


# Text on a terminal.


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("é 猫 ß a\\b \U0001f469\u200d\U0001f52c", None),
        ("\x1b]0;title\x07\r\n", r"\x1b]0;title\x07\x0d\x0a"),
        ("\x7f\x9b\u202egnp.exe\u2066\u200f", r"\x7f\x9b\u202egnp.exe\u2066\u200f"),
        ("\u2028\u2029\ufeff\ud800\U000e0041", r"\u2028\u2029\ufeff\ud800\U000e0041"),
    ],
)
def test_control_characters_are_escaped_and_letters_are_not(text: str, wanted: str | None) -> None:
    assert printable(text) == (text if wanted is None else wanted)
    assert printable(printable(text)) == printable(text)
    printable(text).encode()


def test_errors_are_one_line_without_control_characters() -> None:
    assert str(InputError("The class '\x1b[2Jcat'\n   is\r no\ncat")) == r"The class '\x1b[2Jcat' is\x0d no cat"


def test_long_message_keeps_its_ends() -> None:
    message = str(InputError(f"`data.train` must be a path, got {'x' * 100_000}. Correct it there."))
    assert message.startswith("`data.train` must be a path, got xxx")
    assert message.endswith("xxx. Correct it there.")
    assert "xxx ... xxx" in message
    assert len(message) == 2005
    assert shown("x" * 100) == "x" * 77 + "..." and shown(["\x1b"]) == r"['\x1b']" and shown(None) == "None"
