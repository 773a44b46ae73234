"""One line an event, for a person who follows."""

import pytest

from kvsup import events
from kvsup.eventlines import describe
from kvsup.events import Event


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            events.Spawned("m", 7, "b11434", "q8_0:q5_1", 4096, 2),
            "m: starting (pid 7, b11434, KV q8_0:q5_1, 2 x 4096 tokens)",
        ),
        (
            events.Ready("m", 0.417, (25 << 20, 18 << 20), "q8_0:q5_1"),
            "m: ready after 0.42 s, KV 43 MiB (K q8_0 25 MiB, V q5_1 18 MiB)",
        ),
        (events.Ready("m", 1.0, None, "f16:f16"), "m: ready after 1.00 s"),
        (
            events.SizeDiffers("m", 1 << 20, 2 << 20),
            "m: KV cache is 2 MiB, 1 MiB were estimated; the measured size counts",
        ),
        (
            events.TypeLearnt("m", "turbo3", 3.25),
            "m: KV type turbo3 takes 3.25 bits an element, as this load told",
        ),
        (events.KVWarning("m", "K is not rotated"), "m: K is not rotated"),
        (events.Died("m", "died of a signal"), "m: died of a signal"),
        (events.Hung("m", "silent for 90 s"), "m: hangs: silent for 90 s; it is ended"),
        (
            events.Hung("m", "silent for 90 s", dry_run=True),
            "m: hangs: silent for 90 s; left alone, watchdog.dry_run is set",
        ),
        (
            events.Unkillable("m", 7),
            (
                "m: pid 7 cannot be killed: it sleeps in the kernel (state D), held by a driver or"
                " a disk; its requests are let go, its memory is not free"
            ),
        ),
        (events.Evidence("m", "/s/1.json"), "m: evidence of its end is in /s/1.json"),
        (
            events.Replayed("m", "replayed", 0, 0.5, "hung"),
            "m: a request was replayed 0.50 s after its process ended (hung); sent: nothing",
        ),
        (
            events.Replayed("m", "resumed", 40, 2, "hung"),
            "m: a request was resumed 2.00 s after its process ended (hung); sent: 40 tokens",
        ),
        (events.Lost("m", "no restart in 60 s"), "m: a request was lost: no restart in 60 s"),
        (
            events.Poisoned("m", "9f2c", "two processes died under it"),
            "m: request 9f2c is not tried again: two processes died under it",
        ),
        (events.Restarting("m", 1.25), "m: restarting in 1.2 s"),
        (events.Restarting("m", 0.0), "m: restarting at once"),
        (
            events.GaveUp("m", "no such file"),
            "m: given up: no such file; edit its file or run kvsup reset m",
        ),
        (
            events.ReloadRefused("m.toml:1: x"),
            "configuration not taken up, the one before stays in force:\nm.toml:1: x",
        ),
        (
            events.ModelFileChanged("m", "/w.gguf", "deleted"),
            "m: /w.gguf was deleted; the llama-server that has it goes on, none can load it again",
        ),
        (
            events.ModelFileChanged("m", "/w.gguf", "written"),
            (
                "m: /w.gguf was written to while a llama-server has it mapped, which may answer "
                "nonsense or die; it stops once it is idle. Write new weights beside it and rename "
                "them over it"
            ),
        ),
        (events.Stopping("m", "idle"), "m: stopping: idle"),
        (events.Stopped("m", 0.03, was_killed=False), "m: stopped after 0.03 s"),
        (events.Stopped("m", 10.0, was_killed=True), "m: stopped after 10.00 s (killed)"),
        (
            events.Reloaded(("a", "b"), (), ("c",)),
            "configuration read again: changed a, b; removed c",
        ),
        (events.Reloaded((), (), ()), "configuration read again: nothing changed"),
        (events.Began(7, "0.1.0"), "kvsup 0.1.0 started (pid 7)"),
        (events.Ended(7), "kvsup ended (pid 7)"),
    ],
)
def test_describe_of_an_event_is_one_line(event: Event, line: str) -> None:
    """Model first, then what happened, with its numbers."""
    assert describe(event) == line
