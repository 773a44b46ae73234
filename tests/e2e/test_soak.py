"""The short form of the soak: kills and stops under mixed requests, and no client sees one."""

import pytest

from bench.soak import run

N_SECONDS = 120.0
MAX_GROWTH_MB = 15.0


@pytest.mark.timeout(600)
def test_soak_of_two_minutes_loses_hangs_and_truncates_nothing() -> None:
    """All APIs, streamed and whole; at temperature 0 what was interrupted is what was calm."""
    counts = run(seconds=N_SECONDS)

    assert counts.is_flawless, "\n".join(counts.faults)
    assert sum(counts.n_kills.values()) > 10
    assert counts.n_same > 10
    assert counts.n_other == 0
    half = counts.samples[len(counts.samples) // 2 :]
    (first_mb, first_files, first_threads), *_, (last_mb, last_files, last_threads) = half
    assert last_mb - first_mb < MAX_GROWTH_MB
    assert last_files - first_files < 20
    assert last_threads - first_threads < 20
