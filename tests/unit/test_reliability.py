"""docs/reliability.md held to the code: a row for each failure, its tests, and the numbers."""

import re
from pathlib import Path
from typing import get_args

import pytest

from kvsup.api.survival import MAX_BREAKS
from kvsup.llama.resume import MAX_FRUITLESS, MAX_REPLAY_S, Mode
from kvsup.runtime.docket import MAX_COMPANY_DEATHS, REMEMBERED_S
from tests.doclinks import links_in, table_rows

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
TEXT = DOCUMENT.read_text("utf-8")
MAX_LINES = 203

FAILURES = [f"F{number}" for number in (*range(1, 48), *range(49, 55))]
"""F48 is of what fetches llama-servers, which is a script."""

ROWS = [row for row in table_rows(TEXT) if "Held by" in row]


def test_failures_each_have_one_row() -> None:
    """In order, so that one is found, and none is passed over."""
    assert [row[""] for row in ROWS] == FAILURES


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[""])
def test_row_is_held_by_tests_or_says_why_not(row: dict[str, str]) -> None:
    """The words of each link are the name of a test in that file."""
    links = links_in(row["Held by"], folder=DOCUMENT.parent)

    assert all(row.values())
    assert links or row["Held by"].startswith("Not: ")
    assert [link for link in links if not link.is_right() or link.words == link.path.stem] == []


def test_links_elsewhere_lead_to_tests() -> None:
    """Below other headings, too."""
    assert [link for link in links_in(TEXT, folder=DOCUMENT.parent) if not link.is_right()] == []


def test_modes_of_resume_are_those_of_the_code() -> None:
    """Each has one row."""
    told = [row["`resume`"] for row in table_rows(TEXT) if "`resume`" in row]

    assert told == [f"`{mode}`" for mode in get_args(Mode)]


def test_numbers_are_those_of_the_code() -> None:
    """What a reader may count on is not another number there."""
    words = re.sub(r"\s+", " ", TEXT)

    assert f"if the replay would take more than {MAX_REPLAY_S:g} s" in words
    assert f"if {MAX_FRUITLESS} in a row died before anything new" in words
    assert f"After {MAX_COMPANY_DEATHS - 1} deaths with nothing new between" in words
    assert f"refused for {REMEMBERED_S / 60:g} minutes" in words
    assert f"breaks off {MAX_BREAKS} times although its process lives" in words


def test_document_is_short_enough_to_read() -> None:
    """A promise that takes a book is read by nobody."""
    assert len(TEXT.splitlines()) <= MAX_LINES
