"""What is said of a model's name that is wrong or not found, in the texts that clients match."""

from collections.abc import Iterator
from contextlib import contextmanager

from kvsup.errors import KvsupError, ModelNotFound, RequestError
from kvsup.ollama.names import valid_name

DISABLED = "ollama cloud is disabled: "


class CloudDisabled(RequestError):  # noqa: N818 - it says what is
    """Something is asked for that only Ollama's cloud has."""


def check_grammar(name: str) -> None:
    """Raise as Ollama does for a name that no model can have; an empty one is just not found."""
    if not name:
        raise ModelNotFound(name)
    if not valid_name(name):
        raise RequestError("invalid model name")


@contextmanager
def not_found_as(text: str) -> Iterator[None]:
    """Give a missing model the text that Ollama has for this route."""
    try:
        yield
    except ModelNotFound as error:
        raise ModelNotFound(error.name, text) from error


def explained(error: KvsupError, path: str) -> KvsupError:
    """Return ``error``, or what Ollama says instead where a missing model is one of its cloud."""
    if not isinstance(error, ModelNotFound) or not _is_cloud(error.name):
        return error
    is_shown = path == "/api/show" or path.startswith("/v1/models/")
    asked = "remote model details are" if is_shown else "remote model is"
    return CloudDisabled(f"{DISABLED}{asked} unavailable")


def _is_cloud(name: str) -> bool:
    tag = name.strip().rpartition(":")[2].lower() if ":" in name else ""
    return tag == "cloud" or tag.endswith("-cloud")
