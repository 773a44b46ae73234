"""Which conversations outlive their process, which files are kept, and what is taken up."""

from array import array
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsup.gguf import Value
from kvsup.warmth import (
    MIN_TOKENS,
    Ability,
    Reuse,
    Saved,
    Tokens,
    ability,
    best,
    is_worth_waiting,
    n_common,
    n_reused,
    reread_s,
    to_drop,
)
from tests.headers import GEMMA3, KV_IN_TWO_OF_SIX, MLA, SMOLLM2, SSM, shape_from

HYBRID: dict[str, Value] = SMOLLM2 | SSM | KV_IN_TWO_OF_SIX | {"block_count": 6}
token_lists = st.lists(st.integers(0, 2), max_size=12).map(lambda t: array("i", t))


def ability_of(architecture: str, keys: dict[str, Value], **how: bool) -> Ability:
    """Return what saved slots of a model are good for, dense and plain but for ``how``."""
    settings = {"swa_full": False, "has_draft": False, "is_pooled": False} | how
    return ability(shape_from(architecture, keys), **settings)


@pytest.mark.parametrize(
    ("architecture", "keys", "how", "reuse"),
    [
        ("llama", SMOLLM2, {}, "prefix"),
        ("deepseek2", SMOLLM2 | MLA, {}, "prefix"),
        ("gemma3", GEMMA3, {"swa_full": True}, "prefix"),
        ("granitehybrid", HYBRID, {}, "whole"),
    ],
)
def test_ability_of_an_architecture_that_keeps_its_tokens_is_what_was_tried(
    architecture: str, keys: dict[str, Value], how: dict[str, bool], reuse: Reuse
) -> None:
    """Dense and latent: any prefix; a recurrent state cannot be rolled back."""
    assert ability_of(architecture, keys, **how).reuse == reuse


@pytest.mark.parametrize(
    ("architecture", "keys", "how", "why"),
    [
        ("gemma3", GEMMA3, {}, "swa_full = true"),
        ("llama", SMOLLM2, {"has_draft": True}, "draft"),
        ("llama", SMOLLM2, {"is_pooled": True}, "no conversation"),
        ("bert", SMOLLM2, {}, "no conversation"),
        ("not-known-yet", SMOLLM2, {}, "not-known-yet"),
    ],
)
def test_ability_of_what_cannot_be_taken_up_says_why(
    architecture: str, keys: dict[str, Value], how: dict[str, bool], why: str
) -> None:
    """No file is written that could never be of use, or might be wrong."""
    found = ability_of(architecture, keys, **how)

    assert found.reuse == "never"
    assert why in found.why


@given(token_lists, token_lists)
def test_n_common_is_the_length_of_the_common_prefix(one: Tokens, other: Tokens) -> None:
    """As comparing token by token finds it."""
    wanted = 0
    while wanted < min(len(one), len(other)) and one[wanted] == other[wanted]:
        wanted += 1

    assert n_common(one, other) == wanted == n_common(other, one)


@given(token_lists, token_lists)
def test_n_reused_leaves_the_last_token_and_never_exceeds_what_is_shared(
    prompt: Tokens, held: Tokens
) -> None:
    """A prompt's last token is evaluated always; a state that must be extended is whole or none."""
    shared = n_common(prompt, held)

    assert n_reused(prompt, held, "never") == 0
    assert n_reused(prompt, held, "prefix") == max(0, min(shared, len(prompt) - 1))
    assert n_reused(prompt, held, "whole") in {0, n_reused(prompt, held, "prefix")}
    if shared < len(held):
        assert n_reused(prompt, held, "whole") == 0


def test_best_is_what_saves_most_and_of_equals_the_shorter() -> None:
    """A longer file with the same prefix only takes longer to load."""
    prompt = array("i", range(2 * MIN_TOKENS))
    shorter = prompt[:MIN_TOKENS]
    longer = shorter + array("i", [7] * MIN_TOKENS)
    foreign = array("i", [9] * MIN_TOKENS)

    assert best(prompt, [foreign, longer, shorter], "prefix") == 2
    assert best(prompt, [longer, prompt, shorter], "prefix") == 1
    assert best(prompt, [foreign, shorter[:-1]], "prefix") is None
    assert best(prompt, [], "prefix") is None
    assert best(prompt, [longer], "whole") is None


def saved(name: str, *, size_bytes: int, used_s: float, again_s: float = 1.0) -> Saved:
    """Return a file."""
    return Saved(name, size_bytes, used_s, again_s)


def test_to_drop_takes_the_least_lately_used_of_one_model_first() -> None:
    """Files that cost the same to read again, a byte, go by their last use."""
    files = [saved(n, size_bytes=10, used_s=t) for n, t in (("a", 1), ("b", 3), ("c", 2))]

    assert [one.name for one in to_drop(files, max_bytes=20, now_s=10)] == ["a"]
    assert [one.name for one in to_drop(files, max_bytes=10, now_s=10)] == ["a", "c"]


def test_to_drop_spares_what_is_dear_to_read_again() -> None:
    """Unused for as long, and as large: the one of the slow model stays."""
    cheap = saved("cheap", size_bytes=10, used_s=5, again_s=0.1)
    dear = saved("dear", size_bytes=10, used_s=1, again_s=60.0)

    assert to_drop([cheap, dear], max_bytes=10, now_s=10) == [cheap]


@given(
    st.lists(st.tuples(st.integers(0, 50), st.floats(0, 100), st.floats(0, 100)), max_size=8),
    st.integers(0, 200),
)
def test_to_drop_leaves_at_most_the_budget_and_drops_nothing_that_fits(
    drawn: list[tuple[int, float, float]], max_bytes: int
) -> None:
    """Whatever lies there, the rest fits; where all fits, all stays."""
    files = [
        saved(str(n), size_bytes=size, used_s=used, again_s=again)
        for n, (size, used, again) in enumerate(drawn)
    ]
    dropped = to_drop(files, max_bytes=max_bytes, now_s=100.0)
    rest = [one for one in files if one not in dropped]

    assert sum(one.size_bytes for one in rest) <= max_bytes
    if sum(one.size_bytes for one in files) <= max_bytes:
        assert not dropped


def test_is_worth_waiting_where_a_save_is_a_small_part_of_reading_again() -> None:
    """A slow prompt is worth a large file, a fast one is not; unknown speeds count as fast."""
    for tokens_per_s, is_worth in ((100.0, True), (None, False), (20_000.0, False)):
        assert (
            is_worth_waiting(n_tokens=10_000, size_bytes=1 << 30, prompt_tokens_per_s=tokens_per_s)
            is is_worth
        )
    for n_tokens, speed in product((1, 1000), (None, 10.0)):
        assert reread_s(n_tokens, speed) == n_tokens / (speed or 1000.0)
