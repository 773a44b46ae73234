"""Values of a command line that need no pydantic.

typer converts each value by a pydantic adapter (0.29; older ones do not), even one that was not
given, and pydantic takes longer to load than most commands to run. Text and paths are nearly all
that kvsup's commands take, and they are what they are: only a number still loads it.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

_TAKEN = (str, Path)


class _AsItIs:
    """Stands where a parameter has its adapter, and asks for that only where it is needed."""

    def __init__(self, kind: Any, adapter: Callable[[], Any]) -> None:
        self._kind = kind
        self._adapter = adapter

    def coerce(self, value: Any, **context: Any) -> Any:
        """Return ``value`` as what the command takes."""
        if value is None:
            return None
        if self._kind in _TAKEN and isinstance(value, str):
            return self._kind(value)
        return self._adapter().coerce(value, **context)


def spare_pydantic(command: Any) -> None:
    """Take text and paths of ``command``, and of those below it, as they are.

    Args:
        command: what ``typer.main.get_command`` made. Where a typer has no adapters (before
            ``get_runtime_param``, typer/core.py of 0.29) nothing changes.
    """
    command.get_params = partial(_spared_params, command.get_params)
    for below in getattr(command, "commands", {}).values():
        spare_pydantic(below)


def _spared_params(get_params: Callable[[Any], list[Any]], context: Any) -> list[Any]:
    """Return the parameters of a command, ``--help`` among them, which is made when it is asked."""
    parameters = get_params(context)
    for parameter in parameters:
        adapter = getattr(parameter, "get_runtime_param", None)
        is_one = parameter.nargs == 1 and not parameter.multiple
        if adapter is not None and is_one and "get_runtime_param" not in vars(parameter):
            spared = _AsItIs(parameter.type_descriptor.annotation, adapter)
            parameter.get_runtime_param = lambda spared=spared: spared
    return parameters
