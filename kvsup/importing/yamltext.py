"""A YAML text as values that know their lines. Nothing in it can run, grow or loop.

PyYAML composes the nodes, of which only plain values are made here: a tag of someone's own counts
as none, so no object is built; aliases are followed, but not beyond a number of values.
"""

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import yaml

from kvsup.errors import ConfigError, Problem

MAX_CHARACTERS = 1 << 18
MAX_VALUES = 50_000
MAX_DEPTH = 50

_TAG = "tag:yaml.org,2002:"
_PLAIN = frozenset({f"{_TAG}{kind}" for kind in ("null", "bool", "int", "float")})


@dataclass(frozen=True, slots=True)
class Located:
    """A value and where it stands; ``value`` is a scalar, a list or a dict of such."""

    value: "Scalar | list[Located] | dict[str, Located]"
    text: str
    """A scalar as it is written; empty for others."""
    line: int
    """From 1; of a member of a mapping that of its key."""
    end: int
    """Line behind its last one."""

    @property
    def mapping(self) -> "dict[str, Located]":
        """Its members; none where it is no mapping."""
        return self.value if isinstance(self.value, dict) else {}

    @property
    def items(self) -> "list[Located]":
        """Its items; none where it is no list."""
        return self.value if isinstance(self.value, list) else []

    @property
    def plain(self) -> Any:
        """The value without lines."""
        if isinstance(self.value, dict):
            return {key: member.plain for key, member in self.value.items()}
        if isinstance(self.value, list):
            return [item.plain for item in self.value]
        return self.value


Scalar: TypeAlias = "str | int | float | bool | None"


def read_yaml(text: str, source: str) -> Located:
    """Return the document in ``text``.

    Raises:
        ConfigError: it is no YAML, or more than a configuration can be.
    """
    if len(text) > MAX_CHARACTERS:
        raise _problem(source, None, f"is longer than {MAX_CHARACTERS} characters")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            raise _problem(source, None, "is empty")
        located = _Reader(loader, source).located(node, 0)
    except RecursionError as error:
        raise _problem(source, None, "nests too deep") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an int or a character out of range
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error)
        raise _problem(source, mark.line + 1 if mark else None, f"is no YAML: {what}") from error
    loader.dispose()
    return located


@dataclass(slots=True)
class _Reader:
    loader: yaml.SafeLoader
    source: str
    n_values: int = 0

    def located(self, node: yaml.Node, depth: int) -> Located:
        """Return a node as a value; an alias is read again wherever it stands."""
        self.n_values += 1
        line, end = node.start_mark.line + 1, node.end_mark.line + 1
        if self.n_values > MAX_VALUES or depth > MAX_DEPTH:
            what = "holds more values than a configuration can" if depth <= MAX_DEPTH else None
            raise _problem(self.source, line, what or "nests too deep")
        if isinstance(node, yaml.MappingNode):
            return Located(self._members(node, depth), "", line, end)
        if isinstance(node, yaml.SequenceNode):
            items = [self.located(item, depth + 1) for item in node.value]
            return Located(items, "", line, end)
        text = str(node.value)
        value = self.loader.construct_object(node) if node.tag in _PLAIN else text
        return Located(value, text, line, end)

    def _members(self, node: yaml.MappingNode, depth: int) -> dict[str, Located]:
        merged: dict[str, Located] = {}
        own: dict[str, Located] = {}
        for key, value in node.value:
            if key.tag == f"{_TAG}merge":
                below = self.located(value, depth + 1)
                for layer in reversed(below.items or [below]):
                    merged |= layer.mapping
            elif isinstance(key, yaml.ScalarNode):
                member = self.located(value, depth + 1)
                own[str(key.value)] = replace(member, line=key.start_mark.line + 1)
            else:
                raise _problem(self.source, key.start_mark.line + 1, "has a key that is no text")
        return {**merged, **own}


def _problem(source: str, line: int | None, message: str) -> ConfigError:
    return ConfigError((Problem(source, line, "", message),))
