"""A message whose llama-server died under it: the chat's seam and the message's events together."""

import json
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from kvsup.anthropic.requests import prepare
from kvsup.llama.resume import Replay
from kvsup.llama.seam import Seam
from kvsup.mending import Mend

GOLDEN = Path(__file__).parent.parent / "golden" / "anthropic"
GOLDENS = sorted(GOLDEN.glob("*.sse"))


def _seam_and_mend(*, is_stream: bool) -> tuple[Seam, Mend]:
    body: dict[str, Any] = {
        "model": "m",
        "max_tokens": 60,
        "stream": is_stream,
        "messages": [{"role": "user", "content": "Say hello."}],
    }
    prepared = prepare("/v1/messages", json.dumps(body).encode())
    assert prepared.instead is not None
    assert prepared.make_mend is not None
    return Seam(prepared.instead.path), prepared.make_mend(4096)


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("golden", GOLDENS, ids=lambda path: path.stem)
def test_message_that_is_replayed_after_any_event_is_that_of_a_calm_run(
    golden: Path, *, is_stream: bool
) -> None:
    """The second process numbers its answer and its calls otherwise; the client sees the first."""
    stream = golden.read_bytes()
    again = stream.replace(b'"id":"', b'"id":"X')
    _, calm = _seam_and_mend(is_stream=is_stream)
    expected = calm.feed(stream) + calm.finish()

    *ends, _, _ = accumulate(len(event) + 2 for event in stream.split(b"\n\n")[:-1])
    for end in ends:
        seam, mend = _seam_and_mend(is_stream=is_stream)
        begun = mend.feed(seam.feed(stream[:end]))
        seam.reopen(Replay())
        joined = begun + mend.feed(seam.feed(again)) + mend.finish()

        later_ids = joined.replace(b'"id":"X', b'"id":"').replace(b"msg_Xchatcmpl-", b"msg_")
        assert later_ids == expected
