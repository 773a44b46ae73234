"""Conversations that outlive their llama-server, on the real one."""

import os
import shutil
import zlib
from pathlib import Path

import msgspec
import pytest

from kvsup import events
from kvsup.errors import UpstreamError
from kvsup.lifecycle import State
from kvsup.runtime.instance import Instance
from kvsup.runtime.kvfiles import Entry, KVFiles
from kvsup.runtime.remembered import Remembered
from kvsup.runtime.warming import Store, Warmth
from kvsup.runtime.weightsums import WeightSums
from tests.runtime.supervised import Folder, owned, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

TEXT = " ".join(f"Item {n} is a {word}." for n in range(18) for word in ("cup", "pen", "hat"))
CHAT = "/v1/chat/completions"


def chat(*turns: str) -> bytes:
    """Return a request whose first turn is long."""
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate((TEXT, *turns))]
    return msgspec.json.encode({"messages": messages, "temperature": 0, "max_tokens": 24})


class Kept:
    """The saved slots of one test, through as many processes as it starts."""

    def __init__(self, folder: Folder) -> None:
        self.told: list[events.Event] = []
        state = folder.path / "state"
        files = KVFiles(state / "kv", max_bytes=1 << 30, emit=self.told.append)
        remembered = Remembered(state)
        self.store = Store(files, WeightSums(remembered), remembered)

    async def warmth(self, instance: Instance) -> Warmth:
        """Return what keeps the conversations of a running instance."""
        upstream = await instance.ready()
        warmth = Warmth(
            instance.plan, upstream, instance.measured, store=self.store, emit=self.told.append
        )
        await warmth.prepare()
        return warmth


async def asked(instance: Instance, warmth: Warmth, body: bytes) -> tuple[str, int]:
    """Ask, as the relay does, and return the text and how much of the prompt was cached."""
    upstream = await instance.ready()

    async def posted() -> bytes:
        return body

    warmed = await warmth.before(CHAT, posted)
    status, answer = await upstream.fetch("POST", CHAT, body=body)
    assert status == 200, answer
    said = msgspec.json.decode(answer)
    n_cached = int(said["timings"]["cache_n"])
    if warmed is not None:
        warmth.after(warmed, n_cached)
    return str(said["choices"][0]["message"]["content"]), n_cached


async def test_conversation_goes_on_in_another_process(folder: Folder) -> None:
    """The next process takes up all tokens, and says what the first would have said."""
    folder.num_ctx = 1024
    folder.write(a="")
    kept = Kept(folder)
    async with owned(folder.plan("a")) as instance:
        warmth = await kept.warmth(instance)
        text, _ = await asked(instance, warmth, chat())
        await warmth.save(limit_s=10, is_waited_for=False)
        calm, n_calm = await asked(instance, warmth, chat(text, "Why?"))
    (saved,) = [event for event in kept.told if isinstance(event, events.KVSaved)]

    async with owned(folder.plan("a")) as instance:
        warmth = await kept.warmth(instance)
        again, n_cached = await asked(instance, warmth, chat(text, "Why?"))

    assert saved.n_tokens > 300
    assert n_cached == n_calm > 300
    assert again == calm
    assert [type(e).__name__ for e in kept.told] == ["KVSaved", "KVRestored"]


async def saved_conversation(folder: Folder, kept: Kept, name: str = "a") -> Entry:
    """Have one conversation with a model, stop it, and return what was saved."""
    async with owned(folder.plan(name)) as instance:
        warmth = await kept.warmth(instance)
        await asked(instance, warmth, chat())
        await warmth.save(limit_s=10, is_waited_for=False)
    (entry,) = kept.store.files.entries(name)
    return entry


@pytest.mark.parametrize("damage", ["flipped", "truncated", "deadly"])
async def test_damaged_file_costs_a_read_and_is_gone(folder: Folder, damage: str) -> None:
    """The answer is right, and nobody tries that file again.

    A flipped bit is restored with HTTP 200, and of many truncated files llama-server dies (both
    builds, tried): none comes to it that does not have the sum of what was written.
    """
    folder.num_ctx = 1024
    folder.write(a="")
    kept = Kept(folder)
    entry = await saved_conversation(folder, kept)
    data = bytearray(entry.path.read_bytes())
    data[len(data) // 2] ^= 1
    entry.path.write_bytes(data if damage == "flipped" else data[: len(data) // 2])
    if damage == "deadly":  # whole as far as kvsup can tell
        size_bytes = len(data) // 2
        crc32 = zlib.crc32(data[:size_bytes])
        sidecar = msgspec.structs.replace(entry.sidecar, size_bytes=size_bytes, crc32=crc32)
        entry.path.with_suffix(".json").write_bytes(msgspec.json.encode(sidecar))
        kept = Kept(folder)

    async with owned(folder.plan("a")) as instance:
        warmth = await kept.warmth(instance)
        if damage == "deadly":
            with pytest.raises(UpstreamError):
                await asked(instance, warmth, chat())
            await until(lambda: instance.state is not State.READY)
            warmth = await kept.warmth(instance)
        text, n_cached = await asked(instance, warmth, chat())

    assert n_cached == 0
    assert text
    assert "KVDropped" in [type(event).__name__ for event in kept.told]
    assert kept.store.files.entries() == []


async def test_other_weights_of_the_same_shape_are_a_miss(
    folder: Folder, tmp_path: Path, smollm2: Path
) -> None:
    """llama-server would restore it with HTTP 200, and answer noise."""
    folder.num_ctx = 1024
    folder.model = tmp_path / "model.gguf"
    shutil.copy(smollm2, folder.model)
    folder.write(a="")
    kept = Kept(folder)
    await saved_conversation(folder, kept)
    with folder.model.open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(b"\x55")

    async with owned(folder.plan("a")) as instance:
        warmth = await kept.warmth(instance)
        _, n_cached = await asked(instance, warmth, chat())

    assert n_cached == 0
    assert "KVRestored" not in [type(event).__name__ for event in kept.told]
    assert len(kept.store.files.entries()) == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("kv_cache_type = 'q8_0:q4_0'\n", "kv_cache_type = 'q8_0:q8_0'\n"),
        ("", "extra_args = ['--rope-freq-scale', '0.5']\n"),
        ("", "num_parallel = 2\n"),
        ("", "[env]\nLLAMA_ATTN_ROT_DISABLE = '1'\n"),
    ],
)
async def test_another_setting_of_the_cache_is_a_miss(
    folder: Folder, before: str, after: str
) -> None:
    """Types, rope, slots, rotation: any difference, whatever llama-server would check of it."""
    folder.num_ctx = 1024
    folder.write(a=before)
    kept = Kept(folder)
    await saved_conversation(folder, kept)
    folder.write(a=after)

    async with owned(folder.plan("a")) as instance:
        warmth = await kept.warmth(instance)
        _, n_cached = await asked(instance, warmth, chat())

    assert n_cached == 0


@pytest.mark.parametrize("pair", ["f16:f16", "q8_0:q4_0"])
async def test_two_conversations_in_two_slots_both_outlive_the_process(
    folder: Folder, pair: str
) -> None:
    """Each is taken up for its own next turn; a smaller pair makes smaller files."""
    folder.num_ctx = 1024
    folder.write(a=f"num_parallel = 2\nkv_cache_type = '{pair}'\n")
    kept = Kept(folder)
    prompts = [chat(), chat().replace(b"Item", b"Thing")]
    async with owned(folder.plan("a")) as instance:
        warmth = await kept.warmth(instance)
        for prompt in prompts:
            await asked(instance, warmth, prompt)
        await warmth.save(limit_s=10, is_waited_for=False)
    entries = kept.store.files.entries("a")

    async with owned(folder.plan("a")) as instance:
        warmth = await kept.warmth(instance)
        cached = [(await asked(instance, warmth, prompt))[1] for prompt in prompts]

    assert len(entries) == 2
    assert all(n > 300 for n in cached)
    per_token = max(e.sidecar.size_bytes / e.sidecar.n_tokens for e in entries)
    assert per_token < (24_000 if pair == "f16:f16" else 10_000)


async def test_third_conversation_takes_a_slot_whose_own_is_kept(folder: Folder) -> None:
    """More conversations than slots: what must give way to a restored one is saved first."""
    folder.num_ctx = 1024
    folder.write(a="prompt_cache = 0\n")
    kept = Kept(folder)
    first, second = chat(), chat().replace(b"Item", b"Thing")
    await saved_conversation(folder, kept)

    async with owned(folder.plan("a")) as instance:
        warmth = await kept.warmth(instance)
        cached = [(await asked(instance, warmth, prompt))[1] for prompt in (second, first, second)]

    assert cached[0] < 100
    assert all(n > 300 for n in cached[1:])


async def test_sliding_window_is_kept_only_in_full(folder: Folder, gemma3: Path) -> None:
    """Without ``swa_full`` no file could ever be of use (b11434), so none is written."""
    folder.num_ctx, folder.model = 1024, gemma3
    folder.write(small="", full="swa_full = true\n")
    kept = Kept(folder)
    assert folder.plan("small").slot_dir is None
    assert "swa_full = true" in folder.plan("small").warmth.why
    await saved_conversation(folder, kept, "full")

    async with owned(folder.plan("full")) as instance:
        warmth = await kept.warmth(instance)
        _, n_cached = await asked(instance, warmth, chat())

    assert n_cached > 300
