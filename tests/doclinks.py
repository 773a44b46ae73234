"""Tables of documents whose rows name the tests that hold them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Link(NamedTuple):
    """A link to a test: its name in words, or the name of the whole file."""

    words: str
    path: Path

    def is_right(self) -> bool:
        """Say whether there is such a test, or such a file."""
        return self.path.is_file() and self.words in {self.path.stem, *tests_of(self.path)}


def table_rows(text: str) -> Iterator[dict[str, str]]:
    """Yield each row of each table: the heads of its columns, and what stands below them."""
    for table in re.findall(r"^\|.*\n(?:\|.*\n)+", text, re.MULTILINE):
        head, _, *rows = [
            [cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines()
        ]
        yield from (dict(zip(head, row, strict=True)) for row in rows)


def links_in(text: str, *, folder: Path) -> list[Link]:
    """Return the links to tests in the text of a document that lies in ``folder``."""
    found = re.findall(r"\[([^]]+)]\((\.\./tests/[^)]+)\)", text)
    return [Link(words, (folder / path).resolve()) for words, path in found]


def tests_of(path: Path) -> set[str]:
    """Return the names of a file's tests, those of Python in words."""
    text = path.read_text("utf-8")
    if path.suffix != ".py":
        return set(re.findall(r"^ *test\('(.+)',", text, re.MULTILINE))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    names = [node.name for node in ast.parse(text).body if isinstance(node, functions)]
    return {name[5:].replace("_", " ") for name in names if name.startswith("test_")}
