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


def test_cell_of_a_table_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """A path may have brackets in it."""
    table = new_table("WEIGHTS")
    table.add_row("models[/old]/[b]:+1:.gguf")

    plain_console().print(table)

    assert capsys.readouterr().out.split() == ["WEIGHTS", "models[/old]/[b]:+1:.gguf"]
