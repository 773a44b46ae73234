"""llama-swap's macros: ``${name}`` in texts of its configuration.

Those of a model win over those of the file; they may hold others; ``${env.NAME}`` is a variable of
the environment, ``${PORT}`` a port of llama-swap's choice, ``${MODEL_ID}`` the key of the model
(its config.example.yaml, 2026-08).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_MACRO = re.compile(r"\$\{([^${}]+)\}")
_MAX_ROUNDS = 32
_MAX_CHARACTERS = 1 << 14
_MAX_MACRO_CHARACTERS = 4096
"""llama-swap's own schema allows 1024."""


@dataclass(frozen=True, slots=True)
class Macros:
    """The macros of a model."""

    texts: Mapping[str, str]
    environ: Mapping[str, str]
    model: str

    def expand(self, text: str) -> str:
        """Return ``text`` with each macro replaced.

        Raises:
            ValueError: one is not defined, or they grow without end.
        """
        for _ in range(_MAX_ROUNDS):
            if len(text) > _MAX_CHARACTERS:
                break
            expanded = _MACRO.sub(self._replaced, text)
            if expanded == text:
                return text
            text = expanded
        raise ValueError("its macros grow without end")

    def _replaced(self, match: re.Match[str]) -> str:
        name = match[1]
        own = {"PORT": "0", "MODEL_ID": self.model}
        if name in own:
            return own[name]
        if name.startswith("env."):
            variable = name.removeprefix("env.")
            if variable not in self.environ:
                raise ValueError(f"${{{name}}}: the variable {variable} is not set here")
            return self.environ[variable]
        if name not in self.texts:
            raise ValueError(f"${{{name}}} is not defined")
        if len(self.texts[name]) > _MAX_MACRO_CHARACTERS:
            raise ValueError(f"${{{name}}} is longer than {_MAX_MACRO_CHARACTERS} characters")
        return self.texts[name]
