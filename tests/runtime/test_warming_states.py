"""Kept conversations of hybrid and recurrent models, on both real llama-servers."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from kvsup import events
from kvsup.runtime.instance import Instance
from kvsup.runtime.keepable import is_useless, note_use, why_not_kept
from kvsup.runtime.warming import Warmed, Warmth
from tests.architectures import write
from tests.runtime.supervised import Folder, owned
from tests.runtime.test_warming import Kept, asked, chat, saved_conversation

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

PATH = "/completion"
PROMPT = [3 + 7 * place % 90 for place in range(600)]
HYBRIDS = ("granitehybrid", "lfm2", "falcon-h1", "qwen35", "mamba2")


async def completed(
    instance: Instance, warmth: Warmth, prompt: list[int]
) -> tuple[list[int], int, Warmed]:
    """Return the tokens after a prompt, how many of it were cached, and what was restored."""
    upstream = await instance.ready()
    greedy = {"n_predict": 8, "temperature": 0, "ignore_eos": True, "return_tokens": True}
    body = msgspec.json.encode({"prompt": prompt, **greedy})

    async def posted() -> bytes:
        return body

    warmed = await warmth.before(PATH, posted)
    assert warmed is not None
    status, answer = await upstream.fetch("POST", PATH, body=body)
    assert status == 200, answer
    said: dict[str, Any] = msgspec.json.decode(answer)
    n_cached = int(said["timings"]["cache_n"])
    warmth.after(warmed, n_cached)
    return said["tokens"], n_cached, warmed


@pytest.mark.parametrize("name", HYBRIDS)
async def test_state_is_taken_up_where_the_next_turn_extends_all_of_it_and_else_not(
    folder: Folder, any_build: Path, name: str
) -> None:
    """The text is that of a process that never stopped; a prompt that parts earlier is read."""
    folder.num_ctx, folder.llama_server = 1024, any_build
    folder.model = write(name, folder.path, speaks=True)
    folder.write(a="")
    kept = Kept(folder)
    plan = folder.plan("a")
    assert plan.warmth.reuse == "whole"
    assert why_not_kept(plan, kept.store.remembered) == ""
    async with owned(plan) as instance:
        warmth = await kept.warmth(instance)
        said, _, _ = await completed(instance, warmth, PROMPT)
        await warmth.save(limit_s=10, is_waited_for=False)
        longer = [*PROMPT, *said, 5, 6, 7]
        calm, n_calm, _ = await completed(instance, warmth, longer)
    (entry,) = kept.store.files.entries("a")

    async with owned(folder.plan("a")) as instance:
        warmth = await kept.warmth(instance)
        shorter, n_shorter, parted = await completed(instance, warmth, PROMPT)
    async with owned(folder.plan("a")) as instance:
        warmth = await kept.warmth(instance)
        again, n_cached, extended = await completed(instance, warmth, longer)

    assert entry.sidecar.n_tokens > len(PROMPT)
    assert parted.entry is None
    assert (shorter, n_shorter) == (said, 0)
    assert extended.entry is not None
    assert n_cached == n_calm == entry.sidecar.n_tokens
    assert again == calm
    assert not is_useless(plan, kept.store.remembered)


async def test_build_that_did_not_use_what_it_restored_is_not_tried_again(
    folder: Folder, smollm2: Path
) -> None:
    """It is remembered beyond kvsup's end, for this architecture and build, and told."""
    folder.num_ctx, folder.model = 1024, smollm2
    folder.write(a="")
    kept = Kept(folder)
    plan = folder.plan("a")
    entry = await saved_conversation(folder, kept)
    async with owned(plan) as instance:
        warmth = await kept.warmth(instance)
        warmth.after(Warmed(entry.tokens, entry, 400, is_alone=True), 0)

    anew = Kept(folder)
    async with owned(plan) as instance:
        warmth = await anew.warmth(instance)
        await asked(instance, warmth, chat())
        await warmth.save(limit_s=10, is_waited_for=False)

    assert anew.store.files.entries() == []
    assert [type(event) for event in kept.told][-1] is events.KVDropped
    assert is_useless(plan, anew.store.remembered)
    assert "did not use what it had restored of llama" in why_not_kept(plan, anew.store.remembered)


@pytest.mark.parametrize(("n_more", "is_restored"), [(2000, True), (3500, False)])
async def test_of_several_slots_one_is_restored_only_where_llama_server_will_choose_it(
    folder: Folder, *, n_more: int, is_restored: bool
) -> None:
    """Below a tenth of the prompt it takes the one idle longest: the build is not to blame."""
    folder.num_ctx, folder.model = 4096, write("llama", folder.path, speaks=True)
    folder.write(a="num_parallel = 2\n")
    kept, plan = Kept(folder), folder.plan("a")
    async with owned(plan) as instance:
        warmth = await kept.warmth(instance)
        await completed(instance, warmth, PROMPT[:290])
        await warmth.save(limit_s=10, is_waited_for=False)
    (saved,) = kept.store.files.entries("a")

    async with owned(plan) as instance:
        warmth = await kept.warmth(instance)
        await completed(instance, warmth, [4 + 11 * place % 80 for place in range(600)])
        await completed(instance, warmth, [5 + 13 * place % 80 for place in range(300)])
        _, n_cached, warmed = await completed(
            instance, warmth, [*PROMPT[:290], *(6 + 17 * place % 80 for place in range(n_more))]
        )

    assert (warmed.entry is not None) == (n_cached >= 290) == is_restored
    assert not is_useless(plan, kept.store.remembered)
    assert saved.path in {entry.path for entry in kept.store.files.entries("a")}


async def test_architecture_whose_slots_were_used_once_is_never_given_up(folder: Folder) -> None:
    """A later miss has another cause: a request that came between, by another way."""
    folder.write(a="")
    plan, store = folder.plan("a"), Kept(folder).store.remembered

    note_use(plan, store, is_used=False)
    assert is_useless(plan, store)
    note_use(plan, store, is_used=True)
    note_use(plan, store, is_used=False)

    assert not is_useless(plan, store)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ("", ""),
        ("warm_swap = false\n", "warm_swap = false"),
        ("extra_args = ['--lora-scaled', '{folder}/l.gguf:0.5']\n", "LoRA"),
        ("embedding = 'on'\n", "it keeps no conversation"),
    ],
)
async def test_why_nothing_is_kept_is_said(folder: Folder, settings: str, why: str) -> None:
    """By ``kvsup show``."""
    folder.write(a=settings.format(folder=folder.path))

    said = why_not_kept(folder.plan("a"), Kept(folder).store.remembered)

    assert bool(said) == bool(why)
    assert why in said
