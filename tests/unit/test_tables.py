"""What the command line prints of texts that others wrote."""

from typing import Any

import pytest

from kvsup.cli.tables import new_table, plain_console, show_states

STATE: dict[str, Any] = {
    "name": "chat",
    "state": "failed",
    "kv_cache_type": "f16:f16",
    "num_parallel": 1,
    "num_ctx": 256,
    "k_bytes": None,
    "v_bytes": None,
    "size_bytes": 0,
    "in_flight": 0,
    "waiting": 0,
    "idle_in_s": None,
    "pid": None,
    "failure": "failed to open [/srv/models/a.gguf]",
    "given_up": [],
    "kv_warnings": ["[json.exception.type_error.302] :bug:"],
    "kept_conversations": 0,
    "kept_bytes": 0,
    "restored_tokens": 0,
    "cache_hit_rate": None,
}


def test_show_states_prints_failures_and_refusals_as_they_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Brackets are no markup: a closing tag that nothing opened once ended the command."""
    refused = "configs/a.toml:3: restart: is no table; write [restart]"
    answer = {"models": [STATE], "waiting": 0, "refused_configuration": refused}

    show_states(answer, as_json=False)

    assert capsys.readouterr().out.splitlines()[2:] == [
        "chat: failed to open [/srv/models/a.gguf]",
        "chat: [json.exception.type_error.302] :bug:",
        "configuration not taken up:",
        refused,
    ]


def test_show_states_says_what_is_kept_of_a_model_within_80_columns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Below the table, which is wide as it is."""
    calm: dict[str, Any] = {**STATE, "failure": None, "kv_warnings": []}
    warm = {
        "kept_conversations": 12,
        "kept_bytes": 3 << 30,
        "restored_tokens": 52_300,
        "cache_hit_rate": 0.8749,
    }
    answer = {"models": [calm, {**calm, **warm}], "waiting": 0, "refused_configuration": None}

    show_states(answer, as_json=False)

    (line,) = capsys.readouterr().out.splitlines()[3:]
    assert line == "chat: 12 conversations kept (3 GiB), 52300 tokens restored, hit rate 87 %"
    assert len(line) < 80


def test_cell_of_a_table_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """A path may have brackets in it."""
    table = new_table("WEIGHTS")
    table.add_row("models[/old]/[b]:+1:.gguf")

    plain_console().print(table)

    assert capsys.readouterr().out.split() == ["WEIGHTS", "models[/old]/[b]:+1:.gguf"]
