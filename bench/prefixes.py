"""How much of each turn is found in a slot or the prompt cache, with conversations taking turns.

    python -m bench.prefixes [--llama-server PATH] [--set 'extra_args = ["-sps", "0.9"]']...

The demo model in two slots; each turn of a conversation goes on with all before. Shown is the share
of the tokens of earlier turns of the same conversation that were not read again.
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.table import print_table
from kvsup.runtime.binaries import default_binary
from kvsup.runtime.paths import cache_dir
from tests.running import RunningKvsup

_TOML = """\
model = "kvsup:SmolLM2-135M-Instruct.Q4_1.gguf"
threads = 1
num_ctx = 1024
batch_size = 512
num_parallel = 2
warm_swap = false
keep_alive = "1h"
"""

_WHO = {"A": "red", "B": "blue", "C": "green"}
_WHAT = ("house", "tree", "car", "book", "dog", "boat", "hill", "road")


@dataclass(frozen=True, slots=True)
class Scene:
    """Conversations that take turns."""

    name: str
    order: str
    """Whose turn it is, one after the other."""
    n_shared_words: int = 0
    """Of the system prompt, which all have in common."""


SCENES = (
    Scene("one", "AAAA"),
    Scene("two, nothing shared", "ABABAB"),
    Scene("two, long system prompt", "ABABAB", 160),
    Scene("three, nothing shared", "ABCABCABC"),
    Scene("three, long system prompt", "ABCABCABC", 160),
)


@dataclass(slots=True)
class Talk:
    """One conversation."""

    messages: list[dict[str, str]]
    n_turns: int = 0
    n_known_tokens: int = 0
    """What its slot held after its last turn."""


def found_share(kvsup: RunningKvsup, model: str, scene: Scene) -> float:
    """Return the share of what could be found that was found."""
    system = {"role": "system", "content": _words("rule", scene.n_shared_words)}
    talks: dict[str, Talk] = {}
    n_found = n_findable = 0
    for who in scene.order:
        talk = talks.setdefault(who, Talk([system] if scene.n_shared_words else []))
        said = _words(f"{_WHO[who]} {_WHAT[talk.n_turns]}", 48)
        talk.messages.append({"role": "user", "content": said})
        answer = _ask(kvsup, model, talk.messages)
        talk.messages.append({"role": "assistant", "content": answer["text"]})
        n_found += min(talk.n_known_tokens, answer["cache_n"])
        n_findable += talk.n_known_tokens
        talk.n_known_tokens = answer["cache_n"] + answer["prompt_n"] + answer["predicted_n"] - 1
        talk.n_turns += 1
    return n_found / n_findable


def _words(mark: str, n_words: int) -> str:
    return " ".join(f"{mark} {n}" for n in range(n_words // 4))


def _ask(kvsup: RunningKvsup, model: str, messages: list[dict[str, str]]) -> dict[str, Any]:
    body = {"model": model, "messages": messages, "max_tokens": 8, "temperature": 0}
    answer = kvsup.client.post("/v1/chat/completions", json=body, timeout=600).raise_for_status()
    found = answer.json()
    return {**found["timings"], "text": found["choices"][0]["message"]["content"]}


def main() -> None:
    """Measure each scene, with a stream of KV for each slot and with one pool, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--llama-server", default=default_binary(cache_dir()))
    parser.add_argument(
        "--set", action="append", default=[], metavar="TOML", help="one more setting to compare"
    )
    given = parser.parse_args()
    settings = ["kv_unified = false", "kv_unified = true", *given.set]
    rows = []
    for scene in SCENES:
        shares = []
        for setting in settings:
            with (
                tempfile.TemporaryDirectory() as folder,
                RunningKvsup(
                    Path(folder) / "kvsup",
                    models={"demo": f"{_TOML}{setting}\n"},
                    llama_server=Path(given.llama_server),
                ) as kvsup,
            ):
                shares.append(f"{found_share(kvsup, 'demo', scene):.0%}")
        rows.append((scene.name, *shares))
    print_table(("conversations", *settings), rows)


if __name__ == "__main__":
    main()
