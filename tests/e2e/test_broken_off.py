"""A llama-server that breaks off, refuses or disagrees: no answer is cut, doubled or mixed."""

import json
from pathlib import Path

import httpx
import pytest

from kvsup.api.survival import MAX_BREAKS
from tests.conftest import StartKvsup
from tests.e2e.killing import QUICK, scripted
from tests.running import RunningKvsup, eventually
from tests.standin.script import Steps, write_script
from tests.tiny import TinyModels, wav

HALF = "HTTP/1.1 200 OK\r\nContent-Type: {}\r\nContent-Length: 100\r\n\r\n"


@pytest.mark.parametrize("content_type", ["application/json", "text/plain"])
def test_answer_that_is_no_stream_and_breaks_off_is_cut_off(
    start_kvsup: StartKvsup, smollm2: Path, tmp_path: Path, content_type: str
) -> None:
    """Nothing is put behind its half, and it has no proper end."""
    half = HALF.format(content_type) + '{"content":"Hel'
    line = write_script(tmp_path / "s.json", answers=[[["raw", half], ["hang_up"]]])
    kvsup = start_kvsup({"m": scripted(smollm2, line, QUICK)})
    came: list[bytes] = []

    with kvsup.client.stream("POST", "/upstream/m/completion", json={"prompt": "Hi"}) as answer:
        assert answer.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            came.extend(answer.iter_raw())

    assert b"".join(came) == b'{"content":"Hel'
    assert "ERROR" not in kvsup.log()
    assert kvsup.client.get("/api/version").status_code == 200


HELLO = {"model": "m", "messages": [{"role": "user", "content": "Say hello."}]}
DIES: Steps = [["head"], ["token", "Hello"], ["die", "SIGKILL"]]
WHOLE: Steps = [["head"], ["token", "Hello"], ["token", " there"], ["done"]]
DIFFERS: Steps = [["head"], ["token", "Good"], ["token", "bye"], ["done"]]


def refuses(kind: str, text: str) -> Steps:
    """Return the steps of an answer of status 400."""
    body = json.dumps({"error": {"code": 400, "message": text, "type": kind}})
    head = "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return [["raw", f"{head}Content-Length: {len(body)}\r\n\r\n{body}"]]


NO_PREFILL = refuses("invalid_request_error", "prefill is incompatible with enable_thinking")
TOO_LONG = refuses("exceed_context_size_error", "the request exceeds the available context size")


def n_posts(script: Path) -> int:
    """Return how many answers the stand-in was asked for."""
    return script.with_suffix(".answers").stat().st_size


def streamed(kvsup: RunningKvsup, path: str = "/api/chat") -> tuple[str, str]:
    """Return text and error of a streamed chat, which has one of an end and an error."""
    answer = kvsup.client.post(path, json={**HELLO, "stream": True})
    lines = [json.loads(line) for line in answer.text.splitlines()]
    text = "".join(line["message"]["content"] for line in lines if "message" in line)
    assert [line.get("done") for line in lines].count(True) == ("error" not in lines[-1])
    return text, lines[-1].get("error", "")


@pytest.mark.parametrize(
    ("mode", "answers", "n_answers", "expected"),
    [
        ("continue", [DIES, NO_PREFILL, WHOLE], 3, ("Hello there", "")),
        ("continue", [DIES, NO_PREFILL, DIFFERS], 3, ("Hello", "in place of 'Hell'")),
        ("auto", [DIES, DIFFERS, NO_PREFILL], 3, ("Hello", "prefill is incompatible")),
        ("auto", [DIES, TOO_LONG, TOO_LONG, DIFFERS], 3, ("Hello", "available context size")),
        ("replay", [DIES, TOO_LONG, DIFFERS], 2, ("Hello", "available context size")),
    ],
)
def test_way_that_is_refused_is_tried_once(
    start_kvsup: StartKvsup,
    smollm2: Path,
    tmp_path: Path,
    *,
    mode: str,
    answers: list[Steps],
    n_answers: int,
    expected: tuple[str, str],
) -> None:
    """Then the other one; and where that is closed, too, the stream ends with an error.

    No second answer is put behind the first, although its prompt could be made to fit.
    """
    script = tmp_path / "s.json"
    line = write_script(script, answers=answers)
    kvsup = start_kvsup({"m": scripted(smollm2, line, f'resume = "{mode}"\n{QUICK}')})

    text, error = streamed(kvsup)

    assert text == expected[0]
    assert expected[1] in error
    assert bool(expected[1]) == ("llama-server ended in the middle of this answer" in error)
    assert n_posts(script) == n_answers


def test_whole_answer_whose_prompt_does_not_fit_a_successor_is_that_error(
    start_kvsup: StartKvsup, smollm2: Path, tmp_path: Path
) -> None:
    """Its client has had nothing, so it is run anew, and answered as if nothing had been."""
    script = tmp_path / "s.json"
    line = write_script(script, answers=[DIES, TOO_LONG, TOO_LONG, TOO_LONG, DIFFERS])
    kvsup = start_kvsup({"m": scripted(smollm2, line, QUICK)})

    answer = kvsup.client.post("/api/chat", json={**HELLO, "stream": False, "truncate": False})

    assert answer.status_code == 400
    assert "available context size" in answer.json()["error"]
    assert n_posts(script) == 4


@pytest.mark.parametrize("stream", [True, False])
def test_tool_call_without_an_object_is_an_error_and_not_left_out(
    start_kvsup: StartKvsup, smollm2: Path, tmp_path: Path, *, stream: bool
) -> None:
    """It is what the model wrote: another attempt would give it again."""
    call = {"index": 0, "id": "a", "function": {"name": "f", "arguments": "[1"}}
    event = f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'tool_calls': [call]}}]})}\n\n"
    script = tmp_path / "s.json"
    line = write_script(script, answers=[[["head"], ["token", "Look"], ["send", event], ["done"]]])
    kvsup = start_kvsup({"m": scripted(smollm2, line, QUICK)})

    answer = kvsup.client.post("/api/chat", json={**HELLO, "stream": stream})

    *_, last = answer.text.splitlines()
    assert json.loads(last) == {"error": "the model's call of f has no object as arguments"}
    assert answer.status_code == (200 if stream else 500)
    assert n_posts(script) == 1


def test_pings_between_breaks_do_not_make_them_endless(
    start_kvsup: StartKvsup, smollm2: Path, tmp_path: Path
) -> None:
    """Only what is new tells that an answer goes on."""
    breaks: Steps = [["head"], ["send", ":\n\n"], ["token", "Hello"], ["hang_up"]]
    script = tmp_path / "s.json"
    kvsup = start_kvsup({"m": scripted(smollm2, write_script(script, answers=[breaks]), QUICK)})

    text, error = streamed(kvsup)

    assert text == "Hello"
    assert "closed the connection" in error
    assert n_posts(script) == MAX_BREAKS
    assert "a request was" not in kvsup.log().replace("a request was lost", "")


def test_streamed_transcription_that_dies_says_of_what(
    start_kvsup: StartKvsup, tiny: TinyModels, tmp_path: Path
) -> None:
    """Its request is a form, and its events are not kvsup's to go on with."""
    event = 'data: {"type":"transcript.text.delta","delta":"Hi"}\n\n'
    line = write_script(tmp_path / "s.json", answers=[[["head"], ["send", event], DIES[-1]]])
    model, mmproj = tiny.audio()
    kvsup = start_kvsup({"m": scripted(model, line, f'mmproj = "{mmproj}"\n{QUICK}')})

    answer = kvsup.client.post(
        "/v1/audio/transcriptions",
        data={"model": "m", "stream": "true"},
        files={"file": ("a.wav", wav(), "audio/wav")},
    )

    assert answer.text.startswith(event)
    assert "llama-server ended in the middle of this answer" in answer.text


def test_death_while_the_end_of_an_answer_is_made_up_holds_nobody_up(
    start_kvsup: StartKvsup, smollm2: Path, tmp_path: Path
) -> None:
    """``/api/generate`` asks for its context once all was said: that is another request."""
    said: Steps = [["head"], ["token", "Hello"], ["done"]]
    script = tmp_path / "s.json"
    prompt = plain('{"prompt": "Say hello."}')
    tokens = plain('{"tokens": [1, 2, 3]}')
    line = write_script(script, answers=[said, [["die", "SIGSEGV"]], prompt, tokens])
    kvsup = start_kvsup({"m": scripted(smollm2, line, QUICK)})
    body = {"model": "m", "prompt": "Say hello.", "stream": False}

    answer = kvsup.client.post("/api/generate", json=body)

    assert answer.status_code == 200, answer.text
    assert answer.json()["response"] == "Hello"
    assert answer.json()["context"] == [1, 2, 3]


def plain(body: str) -> Steps:
    """Return the steps of a whole answer of status 200."""
    head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return [["raw", f"{head}Content-Length: {len(body)}\r\n\r\n{body}"]]


@pytest.mark.parametrize(
    ("target", "route"),
    [("/completion", "/completion"), ("/slots/0?action=restore", "/slots/0")],
)
def test_request_passed_as_it_is_that_kills_is_told_and_counts_as_company(
    start_kvsup: StartKvsup, smollm2: Path, tmp_path: Path, target: str, route: str
) -> None:
    """It is known as any other that runs, so that nobody beside it is taken for what killed."""
    line = write_script(tmp_path / "s.json", answers=[[["head"], ["die", "SIGSEGV"]], WHOLE])
    kvsup = start_kvsup({"m": scripted(smollm2, line, QUICK)})

    answer = kvsup.client.post(f"/upstream/m{target}", json={"prompt": "Hi"})

    assert "llama-server ended" in answer.text
    assert "SIGSEGV" in answer.text
    eventually(lambda: list((kvsup.state / "evidence").rglob("*.json")))
    (evidence,) = (kvsup.state / "evidence").rglob("*.json")
    assert [r["route"] for r in json.loads(evidence.read_text())["requests"]] == [route]
