"""Which of llama-server's own errors are the caller's fault, though it answers 500.

It answers 400 to ``std::invalid_argument`` and 500 to every other exception (server.cpp,
``ex_wrapper``), and throws the others for bad requests too. The texts are those of b10434 and
b11434, each got from a real one, but for the three about the content of media files, which are
read in server-common.cpp of b11434.
"""

_BEGINNINGS = (
    "Failed to parse messages: ",
    "Failed to parse tools: ",
    "Failed to parse tool call arguments as JSON: ",
    "Unknown reasoning format: ",
    "Cannot use both json_schema and grammar",
    "image input is not supported",
    "audio input is not supported",
    "video input is not supported",
    "Multimodal data provided, but model does not support multimodal requests.",
    "Failed to load image or audio file",
    "Failed to download image",
    "error: cannot make GET request",
    "Invalid base64 value",
    "tools param requires --jinja flag",
    "tool_choice param requires --jinja flag",
    '"prompt" ',
    "'messages' is required",
    "[json.exception.type_error.302]",  # a member of the body has a wrong type (b10434)
    "[json.exception.out_of_range.403]",  # one is missing (b10434)
    "vector::_M_range_check: ",  # a token that the model does not have
    "vector::_M_default_append",  # a count below zero, or beyond all memory
)

_PARTS = (
    "Jinja Exception: ",  # what a template's raise_exception said
    "is too large to process. increase the physical batch size",  # a text to embed
)


def is_callers_fault(message: str) -> bool:
    """Say whether an error with status 500 is about the request: the answer to it is a 400.

    Args:
        message: of llama-server's error.
    """
    return message.startswith(_BEGINNINGS) or any(part in message for part in _PARTS)
