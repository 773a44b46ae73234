"""Documents that are kept between runs."""

from pathlib import Path

from kvsup.measures import Tuned
from kvsup.runtime.remembered import Remembered, key_of

TUNED = Tuned(model="m", binary="b1", measured_at="now", picks={"small": "q4_0:q4_0"}, sentence="")


def test_document_that_was_written_is_read_and_no_other(tmp_path: Path) -> None:
    """Kind and key are its place."""
    store = Remembered(tmp_path)

    store.write("tuned", key_of("a", 1), TUNED)

    assert store.read("tuned", key_of("a", 1), Tuned) == TUNED
    assert store.read("tuned", key_of("a", 2), Tuned) is None
    assert store.read("other", key_of("a", 1), Tuned) is None
    assert [path.suffix for path in (tmp_path / "tuned").iterdir()] == [".json"]


def test_document_that_cannot_be_read_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    """Torn, of an older kvsup, or no JSON: it is measured again."""
    store = Remembered(tmp_path)
    store.write("tuned", "key", TUNED)

    (tmp_path / "tuned" / "key.json").write_text('{"model": 1')

    assert store.read("tuned", "key", Tuned) is None


def test_document_in_a_folder_that_cannot_be_written_to_is_let_go(tmp_path: Path) -> None:
    """A state folder that is a file, as one that is read-only, ends nothing."""
    (tmp_path / "state").write_text("")
    store = Remembered(tmp_path / "state")

    store.write("tuned", "key", TUNED)

    assert store.read("tuned", "key", Tuned) is None


def test_keys_of_other_parts_differ() -> None:
    """Also where the same text is cut elsewhere."""
    assert len({key_of("ab", "c"), key_of("a", "bc"), key_of("abc")}) == 3
