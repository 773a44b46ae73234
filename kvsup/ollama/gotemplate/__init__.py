"""Go's ``text/template``, as far as prompt templates use it (Go 1.26, ``missingkey=zero``).

Left out are the functions html, js, urlquery and call, and complex numbers. Depth, steps and text
are bounded, since a request may carry a template.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from kvsup.ollama.gotemplate.evaluation import BUILTINS, Signature, execute
from kvsup.ollama.gotemplate.nodes import Body
from kvsup.ollama.gotemplate.syntax import parse
from kvsup.ollama.gotemplate.tokens import TemplateError

__all__ = ["GoTemplate", "Signature", "TemplateError"]


@dataclass(frozen=True)
class GoTemplate:
    """A parsed template."""

    source: str
    templates: Mapping[str, Body]
    """The main template, which has the empty name, and those that it defines."""

    @classmethod
    def parse(cls, source: str, functions: tuple[str, ...] = ()) -> "GoTemplate":
        """Return the template of a text that may call ``functions`` beside the built-in ones.

        Raises:
            TemplateError: it is no template, or is nested too deeply.
        """
        return cls(source, parse(source, {*BUILTINS, *functions}))

    def execute(self, given: object, functions: Mapping[str, Signature] | None = None) -> str:
        """Return the text for a value (see ``values``), with the functions named to ``parse``.

        Raises:
            TemplateError: an operation failed, or a bound on depth, steps or text was passed.
        """
        return execute(self.templates, self.source, given, {**BUILTINS, **(functions or {})})
