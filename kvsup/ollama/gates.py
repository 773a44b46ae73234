"""What a model must be able to do for a request, with Ollama's texts (server/images.go, 2026-08).

Images are not gated: llama-server itself says that a model takes none.
"""

from collections.abc import Collection

from kvsup.errors import RequestError
from kvsup.ollama.names import full_name, quoted
from kvsup.ollama.requests import ChatRequest, GenerateRequest

Think = bool | str | None


def check_chat(request: ChatRequest, capabilities: Collection[str]) -> None:
    """Raise unless a model with ``capabilities`` can answer the chat.

    Raises:
        RequestError: with Ollama's text for what is missing.
    """
    _check_thinking(request, capabilities)
    if "completion" not in capabilities:
        raise RequestError(f"{quoted(request.model)} does not support chat")
    if request.tools and "tools" not in capabilities:
        raise RequestError(f"{full_name(request.model)} does not support tools")


def check_generate(
    request: GenerateRequest, capabilities: Collection[str], *, template_takes_suffix: bool
) -> None:
    """Raise unless a model with ``capabilities`` can answer the prompt; raises as ``check_chat``.

    A ``suffix`` is for a model with fill-in-the-middle tokens, or for a request's own ``template``
    that uses it.
    """
    if request.raw and (request.template or request.system or request.context):
        raise RequestError("raw mode does not support template, system, or context")
    if request.suffix and (request.context or request.images):
        raise RequestError("suffix does not support context or images")
    _check_thinking(request, capabilities)
    if "completion" not in capabilities:
        raise RequestError(f"{quoted(request.model)} does not support generate")
    fills_in = template_takes_suffix if request.template else "insert" in capabilities
    if request.suffix and not fills_in:
        raise RequestError(f"{full_name(request.model)} does not support insert")


def thinks(think: Think, capabilities: Collection[str], reasoning: str) -> Think:
    """Return what ``think`` comes to: unsaid, a model that can think does (server/routes.go).

    ``reasoning`` is the model's own setting, ``off`` if it shall not.
    """
    if think is None and "thinking" in capabilities and reasoning != "off":
        return True
    return think


def _check_thinking(request: ChatRequest | GenerateRequest, capabilities: Collection[str]) -> None:
    if request.think and "thinking" not in capabilities:
        raise RequestError(f"{quoted(request.model)} does not support thinking")
