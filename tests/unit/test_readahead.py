"""How much of a file is read ahead: what pushes nothing out."""

import pytest

from kvsup.readahead import readable_bytes

GIB = 1 << 30


@pytest.mark.parametrize(
    ("file_bytes", "available_bytes", "kept_bytes", "expected_bytes"),
    [
        pytest.param(4 * GIB, 16 * GIB, 0, 4 * GIB, id="all of it fits"),
        pytest.param(4 * GIB, 16 * GIB, 12 * GIB, 3 * GIB, id="mapped weights that serve stay"),
        pytest.param(4 * GIB, 3 * GIB, 0, 2 * GIB, id="what fits, from the front"),
        pytest.param(4 * GIB, GIB, 0, 0, id="the headroom is left to others"),
        pytest.param(4 * GIB, 8 * GIB, 9 * GIB, 0, id="no room at all"),
    ],
)
def test_readable_bytes_push_nothing_out(
    file_bytes: int, available_bytes: int, kept_bytes: int, expected_bytes: int
) -> None:
    """Available memory counts mapped weights as free; they are in use all the same."""
    found_bytes = readable_bytes(
        file_bytes=file_bytes,
        available_bytes=available_bytes,
        headroom_bytes=GIB,
        kept_bytes=kept_bytes,
    )

    assert found_bytes == expected_bytes
