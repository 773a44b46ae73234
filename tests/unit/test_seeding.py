"""Every request gets a seed, unless it has one."""

import msgspec
import pytest

from kvsup.llama.seeding import RANDOM_SEED, new_seed, seeded


@pytest.mark.parametrize("seed", ["", '"seed":null,', '"seed":-1,', f'"seed":{RANDOM_SEED},'])
def test_a_request_that_leaves_it_to_chance_gets_one(seed: str) -> None:
    """Null, -1 and its 32 bits are llama-server's words for that; the last member counts."""
    body = b'{%b"prompt":"a"}' % seed.encode()

    assert msgspec.json.decode(seeded("/completion", body, seed=7))["seed"] == 7


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", b'{"seed":0,"messages":[]}'),
        ("/v1/completions", b'{"prompt":"a","seed":42}'),
        ("/v1/completions", b'{"prompt":["a","b"]}'),
        ("/v1/embeddings", b'{"input":"a"}'),
        ("/completion", b"no JSON"),
        ("/completion", b'{"seed":"x"}'),
    ],
)
def test_what_has_one_or_cannot_have_one_stays_as_it_is(path: str, body: bytes) -> None:
    """Several prompts with one seed would be drawn alike."""
    assert seeded(path, body, seed=7) == body


@pytest.mark.parametrize("prompt", [b'["a"]', b"[1,2,3]", b'"a"'])
def test_one_prompt_in_any_form_gets_a_seed(prompt: bytes) -> None:
    """A text, a list of one, or tokens."""
    assert seeded("/completion", b'{"prompt":%b}' % prompt, seed=7).endswith(b',"seed":7}')


def test_new_seed_is_never_the_word_for_chance() -> None:
    """And they differ."""
    seeds = {new_seed() for _ in range(1000)}

    assert len(seeds) > 990
    assert max(seeds) < RANDOM_SEED
