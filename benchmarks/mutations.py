"""Damage to files, drawn at random: to their bytes, their text, and what their text says."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from typing import Any

ESCAPES = ["\x1b[31mred", "\x1b]0;title\x07", "a\rb", "a\nb", "\x00", "\x9b2J", "\u202eabc", "\ud800", "é" * 50]
NUMBERS: list[Any] = [0, 1, -1, 2, 3, 255, 2**31, 2**32, 2**63, 2**64, 10**12, 10**30, 0.0, -0.0, 0.5, 1e-300, 1e308]
NUMBERS += [float("nan"), float("inf"), float("-inf")]
TEXTS = ["", "x", "../x", "/etc/passwd", "a\\b", "a/b", "con", "1", "1e5", "true", "null", "~", "x" * 5000, "%s%n{0}"]
TEXTS += ["os:system", "benchmarks.canary:touch", "canary:touch", "builtins:exec", "stage-ep0-ba0.safetensors", "."]
NESTED: list[Any] = [[], {}, [[]], [{}], {"a": {}}, [[[[[[[[]]]]]]]], {"a": 1, "b": [1, 2]}, [0] * 1000, ["x"] * 300]
VALUES: list[Any] = [None, True, False, *NUMBERS, *TEXTS, *ESCAPES, *NESTED]
"""What may take the place of any value."""


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every list or mapping in a tree with every key or index of it."""
    found: list[tuple[Any, Any]] = []
    stack = [tree]
    while stack:
        node = stack.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else []
        for key in keys:
            found.append((node, key))
            stack.append(node[key])
    return found


def mutate_tree(rng: random.Random, tree: Any) -> Any:
    """A copy of parsed JSON or YAML with one to three changes: of a value, a key, or the number of either."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        found = places(tree)
        if not found:
            return rng.choice(VALUES)
        node, key = rng.choice(found)
        value, kind = node[key], rng.randrange(10)
        if kind < 4:
            node[key] = copy.deepcopy(rng.choice(VALUES))
        elif kind == 4:
            del node[key]
        elif kind == 5:
            node[key] = _near(rng, value)
        elif kind == 6 and isinstance(node, dict):
            node[rng.choice([*TEXTS, *ESCAPES, *map(str, NUMBERS)])] = node.pop(key)
        elif kind == 7:
            if isinstance(node, list):
                node[key:key] = [copy.deepcopy(value)] * rng.choice([1, 2, 50])
            else:
                node[f"{key}2"] = copy.deepcopy(value)
        elif kind == 8:
            other, place = rng.choice(found)
            with suppress(KeyError, IndexError):  # another change may have removed it
                node[key] = copy.deepcopy(other[place])
        else:
            node[key] = rng.choice([[value], {"a": value}, str(value)])
    return tree


def _near(rng: random.Random, value: Any) -> Any:
    """A value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([value + 1, value - 1, -value, value * 10**9, rng.choice(NUMBERS)])
    if isinstance(value, float):
        return rng.choice([-value, value * 1e6, value * 1e-6, rng.choice(NUMBERS)])
    if isinstance(value, str):
        return rng.choice([value[::-1], value * 3, value[:-1], value + rng.choice(ESCAPES), value.upper()])
    if isinstance(value, list):
        return rng.choice([value[::-1], value[:-1], value * 2, sorted(value, key=repr)])
    return value


def mutate_text(rng: random.Random, data: bytes, dialect: str) -> bytes:
    """Text with a change that no tree has: YAML's own means, deep nesting, repeated keys, splices.

    Args:
        rng: Draws.
        data: The text.
        dialect: ``'yaml'`` or ``'json'``.
    """
    text = data.decode(errors="replace")
    lines = text.splitlines(keepends=True) or [""]
    at = rng.randrange(len(lines))
    indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
    comma = "," if dialect == "json" else ""
    kind = rng.randrange(9)
    if kind == 0:  # a line twice: a repeated key
        lines.insert(at, lines[at])
    elif kind == 1:
        del lines[at : at + rng.choice([1, 2, 5])]
    elif kind == 2:
        deep = rng.choice([10, 40, 500, 5000, 100_000])
        opening, closing = rng.choice([("[", "]"), ('{"a":', "}")])
        return (opening * deep + rng.choice(["", "1" + closing * deep])).encode()
    elif kind == 3:
        many = rng.choice([100, 10_000, 200_000])
        lines[at] = f'{indent}"{rng.choice(["classes", "stages", "x"])}": [{"1," * many}1]{comma}\n'
    elif kind == 4 and dialect == "yaml":
        lines[at] = indent + rng.choice(_YAML) + "\n"
    elif kind == 5 and dialect == "yaml":
        return _alias_bomb(rng) + data
    elif kind == 6:
        lines[at] = lines[at].replace(":", rng.choice(["", "::", ": :", "=", ": ? "]), 1)
    elif kind == 7:
        number = rng.choice(["9" * 400, "9" * 5000, "1e999", "-0", "0x1F", "0o17", "1_000", "NaN", ".nan", "1:30:00"])
        head, colon, _ = lines[at].partition(":")
        lines[at] = f"{head}{colon} {number}{comma}\n"
    else:
        other = rng.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    return "".join(lines).encode(errors="surrogatepass")


_YAML = [
    "!!python/object/apply:os.system ['touch canary']",
    "x: !!python/name:os.system",
    "x: !!python/object/new:subprocess.Popen [['touch', 'canary']]",
    "x: !!binary |\n   R0lGODlhDAAMAIQAAP",
    "x: !!set {a, b}",
    "x: &a [*a]",
    "<<: {classes: [a]}",
    "x: 2020-01-01",
    "? [a, b]\n: c",
    "--- \nx: 1",
    "%YAML 9.9\n---",
    "x: |\n  text\n\tmore",
    "x: !<tag:yaml.org,2002:js/undefined> ''",
    "x: 'a\\u0000b'",
    'x: "\\e[31m"',
    "\tx: 1",
    "x: @y",
]


def _alias_bomb(rng: random.Random) -> bytes:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(1, rng.choice([2, 9, 20])):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]")
    return ("\n".join(lines) + "\n").encode()


def mutate_bytes(rng: random.Random, data: bytes, hot: list[tuple[int, int]] | None = None) -> bytes:
    """Bytes with one to four changes: flipped, set to extremes, cut, moved, or added.

    Args:
        rng: Draws.
        data: The bytes.
        hot: Parts (from, to) that most changes fall into. Default: all alike.
    """
    content = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        low, high = rng.choice(hot) if hot and rng.random() < 0.9 else (0, len(content))
        low, high = min(low, len(content)), min(high, len(content))
        at = rng.randrange(low, high) if high > low else low
        kind = rng.randrange(8)
        if kind < 3 and content:
            at = min(at, len(content) - 1)
            content[at] ^= 1 << rng.randrange(8)
        elif kind == 3:
            size = rng.choice([1, 2, 4, 8])
            number = rng.choice([0, 1, 255, 2**31 - 1, 2**63, 2**64 - 1, len(data)])
            content[at : at + size] = number.to_bytes(8, "little")[:size]
        elif kind == 4:
            del content[at : at + rng.choice([1, 8, 100, len(content)])]
        elif kind == 5:
            content[at:at] = rng.randbytes(rng.choice([1, 8, 100]))
        elif kind == 6:
            begin = rng.randrange(max(1, len(content)))
            piece = content[begin : begin + rng.choice([4, 16, 64])]
            content[at : at + len(piece)] = piece
        else:
            content[at : at + 8] = struct.pack("<d", rng.choice([float("nan"), float("inf"), -1.0, 1e308]))
    return bytes(content)


def mutate_document(rng: random.Random, tree: Any, dump: Callable[[Any], str], dialect: str) -> bytes:
    """A JSON or YAML file whose content, text or bytes are damaged; one in eight has two kinds of damage."""
    try:
        data = dump(mutate_tree(rng, tree) if rng.random() < 0.7 else tree).encode(errors="surrogatepass")
    except (ValueError, TypeError, OverflowError):  # what no such file can hold
        data = dump(tree).encode()
    kind = rng.random()
    if kind < 0.25:
        data = mutate_text(rng, data, dialect)
    if 0.2 < kind < 0.35:
        data = mutate_bytes(rng, data)
    return data


def mutate_lines(rng: random.Random, lines: list[bytes]) -> bytes:
    """A file of a JSON text in each line with a damaged line, two lines that changed places, or damaged bytes."""
    changed, at = list(lines), rng.randrange(len(lines))
    if rng.random() < 0.7:
        with suppress(ValueError):
            changed[at] = json.dumps(mutate_tree(rng, json.loads(changed[at]))).encode(errors="surrogatepass")
    elif rng.random() < 0.5:
        other = rng.randrange(len(changed))
        changed[at], changed[other] = changed[other], changed[at]
    data = b"\n".join(changed) + b"\n"
    return mutate_bytes(rng, data) if rng.random() < 0.3 else data


def mutate_safetensors(rng: random.Random, data: bytes) -> bytes:
    """A safetensors file with a damaged header, its sizes made right again or not, or damaged bytes."""
    size = int.from_bytes(data[:8], "little")
    kind = rng.random()
    if kind < 0.3:
        return mutate_bytes(rng, data, [(0, 8), (8, 8 + size), (8 + size, len(data))])
    header = json.loads(data[8 : 8 + size])
    with suppress(ValueError, TypeError):
        text = json.dumps(mutate_tree(rng, header)).encode(errors="surrogatepass")
        if kind > 0.9:
            text = mutate_text(rng, text, "json")
        length = len(text) if rng.random() < 0.9 else rng.choice([0, 1, 2**31, 2**63, 2**64 - 1])
        return length.to_bytes(8, "little") + text + data[8 + size :]
    return data[: rng.randrange(len(data))]


_PICKLES = [
    b"cos\nsystem\n(S'touch canary'\ntR.",
    b'c__builtin__\neval\n(S\'open("canary","w")\'\ntR.',
    b"csubprocess\nPopen\n(S'touch canary'\ntR.",
    b"ctorch._utils\n_rebuild_tensor_v2\n(tR.",
    b"cnumpy.core.multiarray\nscalar\n(tR.",
    b"cnumpy\ndtype\n(S'f8'\ntR.",
    b"\x80\x02]" + b"]" * 5000 + b".",
    b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch canary\x85R.",
]


def mutate_pt(rng: random.Random, data: bytes) -> bytes:
    """What ``torch.save`` wrote with damaged bytes, or a damaged or foreign pickle in a zip file that is whole."""
    kind = rng.random()
    if kind < 0.5 or not zipfile.is_zipfile(io.BytesIO(data)):
        return mutate_bytes(rng, data, [(0, 200), (max(0, len(data) - 400), len(data))])
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                draw = rng.random()
                content = mutate_bytes(rng, content) if draw < 0.7 else rng.choice(_PICKLES)
            elif rng.random() < 0.1:
                content = mutate_bytes(rng, content) if content else b"x"
            elif rng.random() < 0.05:
                continue
            bomb = rng.random() < 0.002 and "/data/" in name
            method = zipfile.ZIP_DEFLATED if bomb or rng.random() < 0.05 else zipfile.ZIP_STORED
            new.writestr(zipfile.ZipInfo(name), bytes(2**30) if bomb else content, compress_type=method)
    return file.getvalue()
