"""What a model must be able to do for a request, and Ollama's words where it cannot."""

import pytest

from kvsup.errors import RequestError
from kvsup.ollama.gates import check_chat, check_generate
from kvsup.ollama.requests import ChatRequest, GenerateRequest, Message

EVERYTHING = ("completion", "tools", "thinking", "insert", "vision")
TOOL: dict[str, object] = {"type": "function", "function": {"name": "now"}}
HELLO = (Message(role="user", content="hello"),)


def without(*missing: str) -> tuple[str, ...]:
    """Return the capabilities of a model that lacks some."""
    return tuple(capability for capability in EVERYTHING if capability not in missing)


@pytest.mark.parametrize(
    ("request_", "missing", "text"),
    [
        (ChatRequest(model="m"), "completion", '"m" does not support chat'),
        (ChatRequest(model="Qwen3:8B"), "completion", '"Qwen3:8B" does not support chat'),
        (
            ChatRequest(model="m", messages=HELLO, tools=(TOOL,)),
            "tools",
            "registry.ollama.ai/library/m:latest does not support tools",
        ),
        (
            ChatRequest(model="hf.co/me/m:q4", messages=HELLO, tools=(TOOL,)),
            "tools",
            "hf.co/me/m:q4 does not support tools",
        ),
        (ChatRequest(model="m", think=True), "thinking", '"m" does not support thinking'),
        (ChatRequest(model="m", think="high"), "thinking", '"m" does not support thinking'),
    ],
)
def test_chat_that_a_model_cannot_answer_has_ollamas_text(
    request_: ChatRequest, missing: str, text: str
) -> None:
    """Clients match these texts; the name is quoted as sent, or written in full."""
    with pytest.raises(RequestError) as caught:
        check_chat(request_, without(missing))

    assert str(caught.value) == text


@pytest.mark.parametrize(
    "request_",
    [
        ChatRequest(model="m"),
        ChatRequest(model="m", messages=HELLO, think=False),
        ChatRequest(model="m", messages=HELLO, tools=()),
        ChatRequest(model="m", messages=(Message(role="user", images=("aGk=",)),)),
    ],
)
def test_chat_that_asks_for_nothing_special_needs_completion_alone(request_: ChatRequest) -> None:
    """Not to think, and no tools, is within every model; of images llama-server speaks itself."""
    check_chat(request_, ("completion",))


def test_chat_and_generate_of_everything_pass_a_model_that_can_do_it() -> None:
    """A gate is closed only for what is missing."""
    check_chat(ChatRequest(model="m", messages=HELLO, tools=(TOOL,), think="low"), EVERYTHING)
    check_generate(
        GenerateRequest(model="m", prompt="a", suffix="b", think=True),
        EVERYTHING,
        template_takes_suffix=False,
    )


def test_chat_that_lacks_several_is_told_of_thinking_first() -> None:
    """The order is Ollama's: thinking, then the kind of request, then tools."""
    request = ChatRequest(model="m", messages=HELLO, tools=(TOOL,), think=True)

    with pytest.raises(RequestError, match="thinking"):
        check_chat(request, ())
    with pytest.raises(RequestError, match="chat"):
        check_chat(request, ("thinking",))
    with pytest.raises(RequestError, match="tools"):
        check_chat(request, ("thinking", "completion"))


@pytest.mark.parametrize(
    ("request_", "missing", "text"),
    [
        (GenerateRequest(model="m", prompt="a"), "completion", '"m" does not support generate'),
        (GenerateRequest(model="m", think="max"), "thinking", '"m" does not support thinking'),
        (
            GenerateRequest(model="m", prompt="a", suffix="b"),
            "insert",
            "registry.ollama.ai/library/m:latest does not support insert",
        ),
    ],
)
def test_generate_that_a_model_cannot_answer_has_ollamas_text(
    request_: GenerateRequest, missing: str, text: str
) -> None:
    """As for a chat, with its own words."""
    with pytest.raises(RequestError) as caught:
        check_generate(request_, without(missing), template_takes_suffix=False)

    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("template", "takes_suffix", "can_insert", "passes"),
    [
        ("", False, True, True),
        ("", True, False, False),
        ("{{ .Suffix }}", True, False, True),
        ("{{ .Prompt }}", False, True, False),
    ],
)
def test_generate_with_a_suffix_needs_the_template_in_force_to_take_it(
    *, template: str, takes_suffix: bool, can_insert: bool, passes: bool
) -> None:
    """A request's own template replaces what the model can do by what the template does."""
    request = GenerateRequest(model="m", prompt="a", suffix="b", template=template)
    capabilities = EVERYTHING if can_insert else without("insert")

    if passes:
        check_generate(request, capabilities, template_takes_suffix=takes_suffix)
    else:
        with pytest.raises(RequestError, match="does not support insert"):
            check_generate(request, capabilities, template_takes_suffix=takes_suffix)


@pytest.mark.parametrize(
    "request_",
    [
        GenerateRequest(model="m", raw=True, template="{{ .Prompt }}"),
        GenerateRequest(model="m", raw=True, system="Be short."),
        GenerateRequest(model="m", raw=True, context=(1, 2)),
    ],
)
def test_generate_raw_with_what_shapes_a_prompt_is_a_contradiction(
    request_: GenerateRequest,
) -> None:
    """It is told before anything about the model."""
    with pytest.raises(RequestError) as caught:
        check_generate(request_, (), template_takes_suffix=False)

    assert str(caught.value) == "raw mode does not support template, system, or context"


@pytest.mark.parametrize("field", ["template", "system", "context"])
def test_generate_raw_with_empty_fields_passes(field: str) -> None:
    """An empty field is none, as in Go."""
    empty = () if field == "context" else ""
    request = GenerateRequest(model="m", prompt="a", raw=True, **{field: empty})  # type: ignore[arg-type]  # by name

    check_generate(request, EVERYTHING, template_takes_suffix=False)


def test_gate_with_a_name_beyond_ascii_quotes_it_as_sent() -> None:
    """Go's %q leaves letters as they are; a quote inside is escaped."""
    with pytest.raises(RequestError) as caught:
        check_chat(ChatRequest(model='é"'), ())

    assert str(caught.value) == '"é\\"" does not support chat'
