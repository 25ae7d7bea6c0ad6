"""YAML with the line of every key, and without YAML 1.1's traps.

PyYAML reads `no` as False, `010` as 8, `1:30` as 90, `1e-3` as a string, and lets the last of two equal
keys win. A config that is silently misread wastes hours of GPU time, so this loader keeps to YAML 1.2's
core rules (https://yaml.org/spec/1.2.2/#103-core-schema), refuses duplicate keys, and remembers where each
value was written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

Place = tuple[str | int, ...]
"""A place in settings: `("tasks", 0, "lengths")` is tasks[0].lengths."""

MOST_CHARACTERS = 1 << 20
"""Of a document. The largest config that people write holds a few thousand."""
_MOST_VALUES = 100_000
"""With every alias written out."""
_MOST_DEPTH = 100
_MOST_DIGITS = 40
"""Of a whole number: more than any key takes, and far fewer than take long to read."""


class YamlError(ValueError):
    """The text isn't YAML that a config may hold.

    Args:
        message: What is wrong and what to do.
        line: Line of the text, from 1.
        path: The key it stands at, () when unknown.
    """

    def __init__(self, message: str, line: int, path: Place = ()) -> None:
        self.message, self.line, self.path = message, line, path
        super().__init__(message)


class _Loader(yaml.SafeLoader):
    """SafeLoader with the resolvers of YAML 1.2's core schema instead of YAML 1.1's."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  (PyYAML's own form)


_RESOLVERS = (
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    # No leading zeros: 010 is 8 in YAML 1.1 and 10 in 1.2, so it is neither here.
    ("tag:yaml.org,2002:int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("tag:yaml.org,2002:merge", r"<<", "<"),
)
for _tag, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), list(_first))


_CORE = "tag:yaml.org,2002:"
_TAGS = {_CORE + kind for kind in ("bool", "float", "int", "map", "null", "seq", "str")}
_WRITTEN = {
    _CORE + "bool": "true or false",
    _CORE + "float": "a number",
    _CORE + "int": "a whole number",
    _CORE + "null": "null",
}


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    """Read `1e-3` and `.inf` (PyYAML's own constructor knows sexagesimal numbers too)."""
    text = str(loader.construct_scalar(node)).lower().replace(".inf", "inf").replace(".nan", "nan")
    return float(text)


_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def parse_yaml(text: str, *, number_keys: bool = False) -> tuple[Any, dict[Place, int]]:
    """Read one YAML document.

    Args:
        text: The document.
        number_keys: Take whole numbers as keys too, as their text.

    Returns:
        The data (dicts with string keys, lists, scalars) and the line, from 1, of every key and list entry.

    Raises:
        YamlError: Not YAML, two documents, a key given twice, a key that isn't text, a tag such as
            `!!python`, or more than a config can be (nesting, values behind aliases, digits).

    Example:
        >>> parse_yaml("name: demo")
        ({'name': 'demo'}, {(): 1, ('name',): 1})
    """
    if len(text) > MOST_CHARACTERS:
        raise YamlError(f"{len(text):,} characters, at most {MOST_CHARACTERS:,} are read", 1)
    loader = None
    try:
        check_shape(text)
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, {(): 1}
        building = _Building(loader, number_keys)
        building.lines[()] = node.start_mark.line + 1
        return building.build(node, (), frozenset()), building.lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        problem = error.problem or "cannot be read"
        if problem.startswith("found character '\\t'"):
            problem = "a tab at the start of a word: YAML indents with spaces"
        raise YamlError(f"not valid YAML: {problem}", line) from None
    except yaml.YAMLError as error:  # a control character, say: no mark
        raise YamlError(f"not valid YAML: {str(error).splitlines()[0]}", 1) from None
    finally:
        if loader is not None:
            loader.dispose()


def check_shape(text: str) -> None:
    """Count nesting and values before anything is built: events come one by one, a tree recurses.

    Raises:
        YamlError: More than a config can be.
        yaml.YAMLError: Not YAML.
    """
    depth = values = 0
    loader = _Loader(text)
    try:
        while loader.check_event():
            event = loader.get_event()
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            values += isinstance(event, yaml.NodeEvent)
            if depth > _MOST_DEPTH:
                line = event.start_mark.line + 1
                raise YamlError(f"nested more than {_MOST_DEPTH} deep: no key of a config is", line)
            if values > _MOST_VALUES:
                raise YamlError(f"more than {_MOST_VALUES:,} values", event.start_mark.line + 1)
    finally:
        loader.dispose()


@dataclass(slots=True)
class _Building:
    """From nodes to data."""

    loader: _Loader
    number_keys: bool
    lines: dict[Place, int] = field(default_factory=dict)
    values: int = 0
    """Values built so far, those behind aliases each time anew."""

    def build(self, node: yaml.Node, path: Place, inside: frozenset[int]) -> Any:  # noqa: ANN401  (any YAML value)
        """Turn a node into data, noting lines; `inside`: the nodes around it, which no alias may name."""
        line = node.start_mark.line + 1
        self.values += 1
        if self.values > _MOST_VALUES:
            outermost = self.lines.get(path[:1], line)  # its own may be far above
            raise YamlError(f"more than {_MOST_VALUES:,} values with its aliases written out", outermost)
        if id(node) in inside:
            raise YamlError("an alias that holds itself", line, path)
        inside |= {id(node)}
        if node.tag not in _TAGS:
            text = f"the tag {node.tag} isn't allowed in a config: write a plain value"
            raise YamlError(text, line, path)
        if isinstance(node, yaml.SequenceNode):
            for i, child in enumerate(node.value):
                self.lines[(*path, i)] = child.start_mark.line + 1
            return [self.build(child, (*path, i), inside) for i, child in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, inside)
        self._check_written(node, line, path)
        return self.loader.construct_object(node)

    def _check_written(self, node: yaml.Node, line: int, path: Place) -> None:
        """Refuse a value that its tag says is what it isn't written as, and numbers beyond all keys.

        Raises:
            YamlError: `!!int abc`, `!!bool yes`, `!!int 010`.
        """
        plain = self.loader.resolve(yaml.ScalarNode, node.value, (True, False))
        fits = plain == node.tag or (node.tag, plain) == (_CORE + "float", _CORE + "int")
        if node.tag in _WRITTEN and not fits:
            text = f"not {_WRITTEN[node.tag]}, as its tag says: {node.value[:80]!r}"
            raise YamlError(text, line, path)
        if node.tag == _CORE + "int" and len(node.value) > _MOST_DIGITS:
            raise YamlError(f"a number of {len(node.value):,} digits", line, path)

    def _mapping(self, node: yaml.MappingNode, path: Place, inside: frozenset[int]) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        merges = [pair for pair in node.value if pair[0].tag == "tag:yaml.org,2002:merge"]
        for key_node, value_node in merges:  # before our own keys, whose lines then stand
            sources = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
            for source in sources:
                values = self.build(source, path, inside)
                if not isinstance(values, dict):
                    raise YamlError("<< merges mappings only", key_node.start_mark.line + 1, path)
                merged = {**values, **merged}  # the first of several sources wins
        for key_node, value_node in (pair for pair in node.value if pair not in merges):
            line = key_node.start_mark.line + 1
            key = self._key(key_node)
            if key is None:
                shown = getattr(key_node, "value", key)
                raise YamlError(
                    f"keys are words; put quotes round {str(shown)[:80]!r} if it is one", line, path
                )
            if key in own:
                first = self.lines[(*path, key)]
                raise YamlError(f"given twice (first on line {first}): keep one", line, (*path, key))
            self.lines[(*path, key)] = line
            own[key] = self.build(value_node, (*path, key), inside)
        return {**merged, **own}

    def _key(self, node: yaml.Node) -> str | None:
        """A key's text, or None where it may be none."""
        if not isinstance(node, yaml.ScalarNode):
            return None
        if self.number_keys and node.tag == "tag:yaml.org,2002:int":
            return str(node.value)
        return str(node.value) if node.tag == _CORE + "str" else None
