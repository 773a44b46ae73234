"""Images, sounds and documents to rank: what goes to a model that is more than text."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.running import RunningKvsup
from tests.tiny import ANSWER, TinyModels, png, wav

IMAGE_TOKENS, SOUND_TOKENS = 4, 25
PROMPT_TOKENS = 21  # of "Hi" in its template, one a byte but for the three tags

IMAGE = base64.b64encode(png()).decode()
WRAPPED_IMAGE = base64.encodebytes(png()).decode()
SOUND = base64.b64encode(wav()).decode()
NO_MEDIUM = base64.b64encode(b"neither picture nor sound").decode()

SETTINGS = "num_ctx = 512\nthreads = 1\n"
DOCUMENTS = ["a cat", "some tea", "a dog"]


@pytest.fixture(scope="module")
def kvsup(
    tmp_path_factory: pytest.TempPathFactory, any_build: Path, tiny: TinyModels
) -> Iterator[RunningKvsup]:
    """Return one running kvsup for this file and each build."""
    models = {
        "plain": f'model = "{tiny.plain()}"\n{SETTINGS}',
        "ranker": f'model = "{tiny.rerank()}"\nthreads = 1\n',
    }
    for name, (model, mmproj) in {"eye": tiny.vision(), "ear": tiny.audio()}.items():
        models[name] = f'model = "{model}"\nmmproj = "{mmproj}"\n{SETTINGS}'
    folder = tmp_path_factory.mktemp("media") / "kvsup"
    host = "max_loaded_models = 4\n"
    with RunningKvsup(folder, models=models, llama_server=any_build, host=host) as running:
        yield running
    assert running.children() == []


def _chat(kvsup: RunningKvsup, model: str, image: str, **more: Any) -> httpx.Response:
    message = {"role": "user", "content": "Hi", "images": [image]}
    body = {"model": model, "messages": [message], "stream": False, **more}
    return kvsup.client.post("/api/chat", json=body)


def _generate(kvsup: RunningKvsup, model: str, image: str, **more: Any) -> httpx.Response:
    body = {"model": model, "prompt": "Hi", "images": [image], "stream": False, **more}
    return kvsup.client.post("/api/generate", json=body)


@pytest.mark.parametrize(
    ("model", "medium", "n_tokens"), [("eye", IMAGE, IMAGE_TOKENS), ("ear", SOUND, SOUND_TOKENS)]
)
def test_medium_of_a_chat_and_of_a_prompt_is_seen(
    kvsup: RunningKvsup, model: str, medium: str, n_tokens: int
) -> None:
    """Its tokens stand beside those of the text."""
    chat = _chat(kvsup, model, medium).json()
    generated = _generate(kvsup, model, medium).json()

    assert chat["message"] == {"role": "assistant", "content": ANSWER}
    assert generated["response"] == ANSWER
    assert chat["prompt_eval_count"] >= PROMPT_TOKENS + n_tokens
    assert generated["prompt_eval_count"] == chat["prompt_eval_count"]


def test_image_with_lines_broken_is_read(kvsup: RunningKvsup) -> None:
    """Go's decoder skips line ends."""
    for more in ({}, {"raw": True}):
        assert _generate(kvsup, "eye", WRAPPED_IMAGE, **more).json()["response"] == ANSWER


@pytest.mark.parametrize(
    ("more", "n_text_tokens"),
    [
        ({"raw": True, "prompt": "ab"}, 2),
        ({"raw": True, "prompt": "a[img-0]b"}, 2),
        ({"raw": True, "prompt": "a[img]b"}, 2),
        ({"template": "A{{ .Prompt }}B"}, 4),
        ({"context": [100, 101]}, PROMPT_TOKENS + 2),
    ],
)
def test_image_goes_with_every_way_to_make_a_prompt(
    kvsup: RunningKvsup, more: dict[str, Any], n_text_tokens: int
) -> None:
    """Raw, where the prompt says or in front; by a template; behind a context."""
    answer = _generate(kvsup, "eye", IMAGE, **more)

    assert answer.status_code == 200, answer.text
    assert answer.json()["response"] == ANSWER
    assert answer.json()["prompt_eval_count"] == n_text_tokens + IMAGE_TOKENS


def test_two_images_in_one_message_are_both_seen(kvsup: RunningKvsup) -> None:
    """In order."""
    message = {"role": "user", "content": "Ho", "images": [IMAGE, IMAGE]}

    answer = kvsup.client.post(
        "/api/chat", json={"model": "eye", "messages": [message], "stream": False}
    )

    assert answer.json()["prompt_eval_count"] == PROMPT_TOKENS + 2 * IMAGE_TOKENS


def test_rendered_prompt_counts_the_images(kvsup: RunningKvsup) -> None:
    """Of all messages."""
    for answer in (
        _chat(kvsup, "eye", IMAGE, _debug_render_only=True),
        _generate(kvsup, "eye", IMAGE, _debug_render_only=True),
    ):
        assert answer.json()["_debug_info"]["image_count"] == 1


def test_image_stands_in_front_of_the_text_it_came_with(kvsup: RunningKvsup) -> None:
    """A template of the request's own puts the image where the text is, not before all of it."""
    template = "<sys>{{ .System }}<user>{{ .Prompt }}<end>"

    answer = _generate(
        kvsup, "eye", IMAGE, template=template, system="S", _debug_render_only=True
    ).json()

    rendered = answer["_debug_info"]["rendered_template"]
    assert rendered.startswith("<sys>S<user><")
    assert rendered.endswith("Hi<end>")


@pytest.mark.parametrize("more", [{}, {"images": [IMAGE]}])
def test_context_of_an_image_goes_on(kvsup: RunningKvsup, more: dict[str, Any]) -> None:
    """It holds the text of what was said, and stands before another prompt, or another image."""
    first = _generate(kvsup, "eye", IMAGE).json()
    assert "context" in first, first

    body = {"model": "eye", "prompt": "Hi", "stream": False, "context": first["context"], **more}
    second = kvsup.client.post("/api/generate", json=body)

    assert second.status_code == 200, second.text
    assert second.json()["response"] == ANSWER
    assert len(first["context"]) == PROMPT_TOKENS + len(ANSWER)


@pytest.mark.parametrize("more", [{}, {"raw": True}, {"template": "{{ .Prompt }}"}])
def test_image_for_a_model_without_eyes_is_400(kvsup: RunningKvsup, more: dict[str, Any]) -> None:
    """llama-server says 500; the text is its own."""
    for answer in (_generate(kvsup, "plain", IMAGE, **more), _chat(kvsup, "plain", IMAGE)):
        assert answer.status_code == 400
        assert set(answer.json()) == {"error"}


def test_sound_for_a_model_without_ears_is_400(kvsup: RunningKvsup) -> None:
    """As an image for one without eyes."""
    answer = _chat(kvsup, "eye", SOUND)

    assert answer.status_code == 400
    assert "audio input is not supported" in answer.json()["error"]


@pytest.mark.parametrize("more", [{}, {"raw": True}])
def test_medium_of_no_known_kind_is_400(kvsup: RunningKvsup, more: dict[str, Any]) -> None:
    """Only llama-server can tell."""
    assert _generate(kvsup, "eye", NO_MEDIUM, **more).status_code == 400


@pytest.mark.parametrize(("image", "at"), [("!!", 0), ("AAAA!", 4), ("AAA", 3)])
def test_image_that_is_no_base64_is_400_with_the_place(
    kvsup: RunningKvsup, image: str, at: int
) -> None:
    """In Go's words, on both routes, before the model is looked up."""
    for answer in (_chat(kvsup, "gone", image), _generate(kvsup, "gone", image)):
        assert answer.status_code == 400
        assert answer.json() == {"error": f"illegal base64 data at input byte {at}"}


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/audio/transcriptions"])
def test_transcription_of_a_form_is_its_text(kvsup: RunningKvsup, path: str) -> None:
    """The form goes on as it came; its model is looked up without regard to case."""
    answer = kvsup.client.post(
        path, data={"model": "Ear"}, files={"file": ("a.wav", wav(), "audio/wav")}
    )

    assert answer.status_code == 200, answer.text
    assert answer.json()["text"] == ANSWER


def test_openai_client_transcribes_whole_and_streamed(kvsup: RunningKvsup) -> None:
    """The form as OpenAI's package writes it."""
    with openai.OpenAI(base_url=f"{kvsup.url}/v1", api_key="none", max_retries=0) as client:
        file = ("a.wav", wav(), "audio/wav")
        whole = client.audio.transcriptions.create(model="ear", file=file)

    assert whole.text == ANSWER


@pytest.mark.parametrize(
    ("fields", "status", "text"),
    [
        ({}, 400, "model is required"),
        ({"model": ""}, 400, "model is required"),
        ({"model": "gone"}, 404, "model 'gone' not found"),
    ],
)
def test_transcription_without_a_known_model_is_refused_in_openai_s_shape(
    kvsup: RunningKvsup, fields: dict[str, str], status: int, text: str
) -> None:
    """As for a request in JSON."""
    answer = kvsup.client.post(
        "/v1/audio/transcriptions", data=fields, files={"file": ("a.wav", wav(), "audio/wav")}
    )

    assert answer.status_code == status
    assert answer.json()["error"]["message"] == text


@pytest.mark.parametrize(
    "file", [None, ("a.wav", b"", "audio/wav"), ("a.wav", b"no sound", "audio/wav")]
)
def test_transcription_of_no_sound_is_400(
    kvsup: RunningKvsup, file: tuple[str, bytes, str] | None
) -> None:
    """Missing, empty, or something else."""
    files = {"other": ("b", b"", "text/plain")} if file is None else {"file": file}

    answer = kvsup.client.post("/v1/audio/transcriptions", data={"model": "ear"}, files=files)

    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_transcription_by_a_model_without_ears_is_400(
    kvsup: RunningKvsup,
) -> None:
    """llama-server says 501, at which SDKs try again."""
    answer = kvsup.client.post(
        "/v1/audio/transcriptions",
        data={"model": "plain"},
        files={"file": ("a.wav", wav(), "audio/wav")},
    )

    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_openai_image_part_is_seen(kvsup: RunningKvsup) -> None:
    """As a data URL, through ``/v1``."""
    url = {"url": f"data:image/png;base64,{IMAGE}"}
    content = [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": url}]
    body = {"model": "eye", "messages": [{"role": "user", "content": content}]}

    answer = kvsup.client.post("/v1/chat/completions", json=body).json()

    assert "choices" in answer, answer
    assert answer["choices"][0]["message"]["content"] == ANSWER
    assert answer["usage"]["prompt_tokens"] == PROMPT_TOKENS + IMAGE_TOKENS


@pytest.mark.parametrize("path", ["/v1/rerank", "/v1/reranking", "/rerank", "/reranking"])
def test_rerank_scores_each_document(kvsup: RunningKvsup, path: str) -> None:
    """On every path that llama-server has for it."""
    body = {"model": "ranker", "query": "cats", "documents": DOCUMENTS}

    answer = kvsup.client.post(path, content=json.dumps(body)).raise_for_status().json()

    assert sorted(result["index"] for result in answer["results"]) == [0, 1, 2]
    assert all(isinstance(result["relevance_score"], float) for result in answer["results"])


def test_rerank_by_a_model_that_does_not_is_an_error_in_openai_s_shape(
    kvsup: RunningKvsup,
) -> None:
    """llama-server's own 501."""
    body = {"model": "plain", "query": "cats", "documents": DOCUMENTS}

    answer = kvsup.client.post("/v1/rerank", json=body)

    assert answer.status_code == 501
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
