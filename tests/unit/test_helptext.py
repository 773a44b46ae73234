"""What a llama-server's ``--help`` says of its arguments."""

import pytest

from kvsup.llama.binary import parse_binary
from kvsup.llama.helptext import Argument, parse_arguments
from tests.importing import ARGUMENTS, GOLDEN

HELPS = {build: (GOLDEN / f"help_{build}.txt").read_text("utf-8") for build in ("b10434", "b11434")}


@pytest.mark.parametrize("build", HELPS)
def test_every_flag_of_the_help_is_an_argument(build: str) -> None:
    """The list of flags by which a start is checked, and this one, are of one text."""
    flags = parse_binary("x", help_text=HELPS[build], version_text="", devices_text="").flags

    arguments = parse_arguments(HELPS[build])

    spellings = {name for name in arguments if name.startswith("-")}
    parts_of_words = {"--fim-qwen-1", "--spec-ngram-", "-min-hits", "-size-m", "-size-n"}
    assert flags - spellings == parts_of_words


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "-c",
            Argument(("-c", "--ctx-size"), hint="N", variable="LLAMA_ARG_CTX_SIZE"),
        ),
        (
            "--no-repack",
            Argument(("--repack",), ("-nr", "--no-repack"), variable="LLAMA_ARG_REPACK"),
        ),
        (
            "-nkvo",
            Argument(
                ("-kvo", "--kv-offload"),
                ("-nkvo", "--no-kv-offload"),
                variable="LLAMA_ARG_KV_OFFLOAD",
            ),
        ),
        ("--no-host", Argument(("--no-host",), variable="LLAMA_ARG_NO_HOST")),
        (
            "--fit",
            Argument(("-fit", "--fit"), hint="[on|off]", variable="LLAMA_ARG_FIT"),
        ),
        (
            "--draft-max",
            Argument(
                ("--draft", "--draft-n", "--draft-max"),
                hint="N",
                variable="LLAMA_ARG_DRAFT_MAX",
                replacement="--spec-draft-n-max",
            ),
        ),
        ("--spec-ngram-size-n", Argument(("--spec-ngram-size-n",), hint="N")),
        ("--metrics", Argument(("--metrics",), variable="LLAMA_ARG_ENDPOINT_METRICS")),
    ],
)
def test_argument_has_its_spellings_value_and_variable(name: str, expected: Argument) -> None:
    """Those that switch off are told apart; a removed one names its successor, if it has one."""
    assert ARGUMENTS[name] == expected
