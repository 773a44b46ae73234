"""Images and sound, as Ollama's, OpenAI's and Anthropic's packages send them."""

import base64
from collections.abc import Iterator

import anthropic
import ollama
import openai
import pytest

from tests.clients.asking import HEARING, MODEL, SEEING
from tests.running import RunningKvsup
from tests.tiny import ANSWER, png, wav

QUESTION = "What is this?"
PICTURE = base64.b64encode(png()).decode()
SOUND = wav(0.1)
PICTURE_URL = f"data:image/png;base64,{PICTURE}"


@pytest.fixture
def ollama_client(kvsup: RunningKvsup) -> Iterator[ollama.Client]:
    """Return Ollama's client."""
    with ollama.Client(host=kvsup.url) as client:
        yield client


@pytest.fixture
def openai_client(kvsup: RunningKvsup) -> Iterator[openai.OpenAI]:
    """Return OpenAI's client."""
    with openai.OpenAI(base_url=f"{kvsup.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_ollama_chat_takes_an_image(ollama_client: ollama.Client) -> None:
    """The image costs tokens of the prompt, and the model tells that it can see."""
    seen = {"role": "user", "content": QUESTION, "images": [png()]}
    blind = {"role": "user", "content": QUESTION}

    with_image = ollama_client.chat(SEEING, [seen])
    without = ollama_client.chat(SEEING, [blind])

    assert with_image.message.content == ANSWER
    assert (with_image.prompt_eval_count or 0) > (without.prompt_eval_count or 0)
    assert "vision" in (ollama_client.show(SEEING).capabilities or [])


def test_ollama_generate_takes_an_image(ollama_client: ollama.Client) -> None:
    """The older call too."""
    assert ollama_client.generate(SEEING, QUESTION, images=[png()]).response == ANSWER


def test_ollama_image_for_a_model_without_sight_raises_response_error(
    ollama_client: ollama.Client,
) -> None:
    """The image is not dropped silently."""
    seen = {"role": "user", "content": QUESTION, "images": [png()]}

    with pytest.raises(ollama.ResponseError) as raised:
        ollama_client.chat(MODEL, [seen])

    assert 400 <= raised.value.status_code <= 500


def test_openai_chat_takes_an_image(openai_client: openai.OpenAI) -> None:
    """As a data URL in a part of the content."""
    answer = openai_client.chat.completions.create(
        model=SEEING,
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": QUESTION},
                    {"type": "image_url", "image_url": {"url": PICTURE_URL}},
                ],
            }
        ],
    )

    assert answer.choices[0].message.content == ANSWER


def test_openai_response_takes_an_image(openai_client: openai.OpenAI) -> None:
    """As a data URL in a part of the input."""
    response = openai_client.responses.create(
        model=SEEING,
        input=[
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": QUESTION},
                    {"type": "input_image", "image_url": PICTURE_URL, "detail": "auto"},
                ],
            }
        ],
    )

    assert response.output_text == ANSWER


def test_openai_chat_takes_sound(openai_client: openai.OpenAI) -> None:
    """As base64 in a part of the content."""
    sound = base64.b64encode(SOUND).decode()

    answer = openai_client.chat.completions.create(
        model=HEARING,
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": QUESTION},
                    {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}},
                ],
            }
        ],
    )

    assert answer.choices[0].message.content == ANSWER


def test_openai_transcription_is_what_the_model_says_of_the_sound(
    openai_client: openai.OpenAI,
) -> None:
    """A form with a file, answered with its text."""
    heard = openai_client.audio.transcriptions.create(
        model=HEARING, file=("sound.wav", SOUND, "audio/wav")
    )

    assert heard.text == ANSWER


def test_openai_transcription_as_text_is_plain_text(openai_client: openai.OpenAI) -> None:
    """``response_format`` chooses between an object and the bare text, as with Ollama."""
    heard: str = openai_client.audio.transcriptions.create(
        model=HEARING, file=("sound.wav", SOUND, "audio/wav"), response_format="text"
    )

    assert heard.strip() == ANSWER


def test_openai_transcription_is_streamed(openai_client: openai.OpenAI) -> None:
    """More than Ollama does: the text comes in pieces."""
    stream = openai_client.audio.transcriptions.create(
        model=HEARING, file=("sound.wav", SOUND, "audio/wav"), stream=True
    )

    events = list(stream)

    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    assert "".join(deltas) == ANSWER
    assert events[-1].type == "transcript.text.done"
    assert events[-1].text == ANSWER


def test_anthropic_message_takes_an_image(kvsup: RunningKvsup) -> None:
    """As base64 in a block."""
    with anthropic.Anthropic(base_url=kvsup.url, api_key="none", max_retries=0) as client:
        message = client.messages.create(
            model=SEEING,
            max_tokens=64,
            messages=[
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "image",
                            "source": {
                                "type": "base64",
                                "media_type": "image/png",
                                "data": PICTURE,
                            },
                        },
                        {"type": "text", "text": QUESTION},
                    ],
                }
            ],
        )

    assert [block.to_dict()["text"] for block in message.content] == [ANSWER]
