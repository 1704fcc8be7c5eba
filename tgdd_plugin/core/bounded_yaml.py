"""YAML that may come from elsewhere: plain values in bounded number and depth, without aliases and tags.

An alias lets ten lines of YAML stand for billions of values, a tag asks for other types. Cards and recipes have none.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from tgdd_plugin.core.bounded_reading import MOST_LEVELS, decode, repeated

MOST_NODES = 200_000
"""Most keys and values of a YAML file; 60,000 stages have 60,000 lines in a card."""

MOST_DIGITS = 100
"""Most characters of a number: reading ``1:1:1:...``, a number to base 60 in YAML 1.1, takes time by their square."""

MOST_PLAIN = 65_536
"""Most characters of a value without quotes, which is compared with the patterns of numbers and dates."""

_DIRECTIVE = re.compile(r"(?:^|[\n\r\x85\u2028\u2029])%")  # libyaml takes time by the square of their number
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it
_TEXT_TAGS = (None, "!", "tag:yaml.org,2002:str")


class _Loader(_Base):  # type: ignore[misc]
    """A safe loader that refuses keys that stand twice, and endless numbers."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        count = len(node.value)
        found: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        if len(found) < count:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            place = repeated(keys)
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {keys[place]!r:.60} stands twice", node.value[place][0].start_mark
            )
        return found

    def construct_number(self, node: Any) -> Any:
        if len(node.value) > MOST_DIGITS:
            raise yaml.constructor.ConstructorError(
                None, None, f"a number of more than {MOST_DIGITS} digits", node.start_mark
            )
        return self.construct_yaml_int(node) if node.tag.endswith(":int") else self.construct_yaml_float(node)


for _tag in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.construct_number)


def parse_yaml(content: bytes | str) -> Any:
    """Parses one YAML document of plain values.

    Raises:
        ValueError: If it is not YAML, or has anchors, aliases, tags or directives, a key twice, more than
            :data:`MOST_NODES` keys and values, or more than :data:`tgdd_plugin.core.bounded_reading.MOST_LEVELS`
            levels. The message is one line.
    """
    text = decode(content) if isinstance(content, bytes) else content
    try:
        _check_events(text)
        return yaml.load(text, Loader=_Loader)  # a subclass of the safe loader
    except yaml.YAMLError as error:
        text = str(error).replace('"<unicode string>", ', "")  # where the file's name would stand
        raise ValueError(" ".join(text.split())) from None
    except (ArithmeticError, LookupError, RecursionError, TypeError) as error:
        raise ValueError(f"a value cannot be read ({type(error).__name__})") from None


def _check_events(text: str) -> None:
    """Refuses what would take much time or memory to build, without building anything."""
    if _DIRECTIVE.search(text):
        raise ValueError("a line begins with %, and directives are not read")
    nodes = depth = 0
    events: Any = yaml.parse(text, Loader=_Base)
    for event in events:
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if not hasattr(event, "anchor"):  # the beginning or end of something
            continue
        nodes += 1
        depth += isinstance(event, yaml.CollectionStartEvent)
        problem = ""
        if event.anchor is not None:
            problem = "an anchor or alias: write the value out in each place"
        elif getattr(event, "tag", None) not in _TEXT_TAGS:
            problem = f"a tag, {event.tag!r:.60}: write plain values"
        elif depth > MOST_LEVELS:
            problem = f"more than {MOST_LEVELS} lists and mappings within each other"
        elif isinstance(event, yaml.ScalarEvent) and event.implicit[0] and len(event.value) > MOST_PLAIN:
            problem = f"a value of more than {MOST_PLAIN:,} characters without quotes"
        elif nodes > MOST_NODES:
            problem = f"more than {MOST_NODES:,} keys and values"
        if problem:
            raise ValueError(f"line {event.start_mark.line + 1} has {problem}")
