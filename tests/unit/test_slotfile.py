"""The head of a saved slot, and what makes two llama-servers' slots exchangeable."""

import struct
from array import array

import pytest

from kvsup.llama.slotfile import (
    HEAD_BYTES,
    SlotFileError,
    identity,
    is_certain,
    least_share,
    n_words,
    named_files,
    tokens_of,
)

MAGIC = 0x67677371
ARGV = (
    "/bin/llama-server", "--model", "/m/a.gguf", "--alias", "a", "--host", "/run/1.sock",
    "--ctx-size", "4096", "--parallel", "1", "--no-kv-unified", "--cache-type-k", "q8_0",
    "--cache-type-v", "q4_0", "--threads", "4", "--slots",
)  # fmt: skip
SUMS = {"/m/a.gguf": "11", "/m/other.gguf": "22", "/l/lora.gguf": "33"}


def digest(
    argv: tuple[str, ...] = ARGV,
    *,
    build: str = "b1",
    variables: dict[str, str] | None = None,
    sums: dict[str, str] = SUMS,
    template: str | None = "{{ x }}",
) -> str:
    """Return the digest of an identity that differs from the usual one as told."""
    return identity(
        build=build,
        argv=argv,
        variables=variables or {},
        sums=sums,
        weights=["/m/a.gguf"],
        template=template,
    ).digest


def changed(old: str, new: str) -> tuple[str, ...]:
    """Return the usual command line with a word replaced."""
    return tuple(new if word == old else word for word in ARGV)


@pytest.mark.parametrize(
    "other",
    [
        digest(changed("q8_0", "f16")),
        digest(changed("q4_0", "q8_0")),
        digest(changed("4096", "8192")),
        digest(changed("1", "2")),
        digest(changed("--no-kv-unified", "--kv-unified")),
        digest((*ARGV, "--rope-freq-scale", "0.5")),
        digest((*ARGV, "--swa-full")),
        digest((*ARGV, "--lora", "/l/lora.gguf")),
        digest((*ARGV, "--lora", "/l/lora.gguf"), sums=SUMS | {"/l/lora.gguf": "34"}),
        digest((*ARGV, "--flash-attn", "off")),
        digest(sums=SUMS | {"/m/a.gguf": "12"}),
        digest(build="b2"),
        digest(template="{{ y }}"),
        digest(template=None),
        digest(variables={"LLAMA_ATTN_ROT_DISABLE": "1"}),
        digest(variables={"GGML_CUDA_FORCE_MMQ": "1"}),
    ],
)
def test_identity_differs_with_all_that_k_and_v_depend_on(other: str) -> None:
    """llama-server would take most of these with HTTP 200 and answer noise."""
    assert other != digest()


@pytest.mark.parametrize(
    "same",
    [
        digest(changed("/run/1.sock", "/run/2.sock")),
        digest(changed("a", "b")),
        digest(changed("4", "8")),
        digest((*ARGV, "--cache-ram", "512")),
        digest((*ARGV, "--slot-save-path", "/state/kv/a")),
        digest((*ARGV, "--batch-size", "64", "--ubatch-size", "64")),
        digest(changed("/m/a.gguf", "/m/copy.gguf"), sums=SUMS | {"/m/copy.gguf": "11"}),
        digest(variables={"OMP_NUM_THREADS": "2"}),
    ],
)
def test_identity_is_the_same_where_k_and_v_are(same: str) -> None:
    """Sockets, threads, batches, and the name of the file do not matter."""
    assert same == digest()


def test_identity_of_two_adapters_in_another_order_differs() -> None:
    """Order is kept, since scales belong to the adapter before them."""
    ahead = (*ARGV, "--lora", "/l/lora.gguf", "--lora", "/m/other.gguf")
    behind = (*ARGV, "--lora", "/m/other.gguf", "--lora", "/l/lora.gguf")

    assert digest(ahead) != digest(behind)


def test_is_certain_only_without_what_requests_may_change() -> None:
    """The scale of a LoRA is a request's; a vector that is no file leaves a doubt: a miss."""
    assert is_certain(ARGV, SUMS)
    assert is_certain((*ARGV, "--control-vector", "/l/lora.gguf"), SUMS)
    for doubtful in (
        ("--lora", "/l/lora.gguf"),
        ("--control-vector-scaled", "/l/lora.gguf", "0.5"),
        ("--lora-scaled", "/l/lora.gguf:0.5"),
        ("--lora", "/l/gone.gguf"),
        ("--lora=/l/lora.gguf",),
        ("--control-vector", "/l/unknown.gguf"),
    ):
        assert not is_certain((*ARGV, *doubtful), SUMS)


def test_named_files_are_the_words_that_may_be_paths() -> None:
    """The program is not among them: its version stands for it."""
    assert named_files(ARGV) == ("/m/a.gguf", "/run/1.sock")


@pytest.mark.parametrize("version", [2, 4])
def test_tokens_are_those_in_the_file(version: int) -> None:
    """The layout of b10435 (version 2) and b11434 (4): marks, tokens, then the media."""
    tokens = [1, 5, 9, -1, 3]
    words = array("i", [-1, 1, len(tokens), *tokens, 0])
    head = struct.pack("<III", MAGIC, version, len(words))

    assert n_words(head) == len(words)
    assert tokens_of(words.tobytes()).tolist() == tokens


def test_tokens_of_an_empty_slot_are_none() -> None:
    """An empty slot is saved with HTTP 200, too."""
    assert tokens_of(array("i", [-1, 1, 0, 0]).tobytes()).tolist() == []
    assert tokens_of(b"").tolist() == []


@pytest.mark.parametrize(
    "head", [b"", b"ggsq", struct.pack("<III", 1, 4, 3), struct.pack("<III", MAGIC, 4, 1 << 31)]
)
def test_head_of_something_else_is_refused(head: bytes) -> None:
    """Cut, of another format, or of a length that no slot has."""
    with pytest.raises(SlotFileError):
        n_words(head)


@pytest.mark.parametrize("words", [b"\0\0\0", array("i", [-1, 1, 9, 1, 2]).tobytes()])
def test_tokens_that_break_off_are_refused(words: bytes) -> None:
    """A truncated file tells no tokens."""
    assert HEAD_BYTES == 12
    with pytest.raises(SlotFileError):
        tokens_of(words)


@pytest.mark.parametrize(
    ("more", "share"),
    [
        ((), 0.1),
        (("--slot-prompt-similarity", "0.4"), 0.4),
        (("-sps", "0.4", "-sps", "0.2"), 0.2),
        (("-sps", "0.0"), None),
    ],
)
def test_share_of_a_prompt_by_which_a_slot_is_chosen_is_that_of_the_command_line(
    more: tuple[str, ...], share: float | None
) -> None:
    """Without the flag it is llama-server's own; 0 switches the choice off."""
    assert least_share((*ARGV, *more)) == share
