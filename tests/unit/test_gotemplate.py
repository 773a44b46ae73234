"""Go's templates: each construct, value and error as Go 1.26 has it.

``golden/gotemplate/language.json`` holds templates with what Go's own text/template made of them
(``missingkey=zero``, with Ollama's ``json`` and a ``currentDate`` that stands still).
"""

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvsup.errors import RequestError
from kvsup.ollama.gotemplate import GoTemplate, Signature, TemplateError
from kvsup.ollama.gotemplate.evaluation import MAX_STEPS
from kvsup.ollama.gotemplate.values import Named, Struct

GOLDEN = Path(__file__).parent.parent / "golden" / "gotemplate" / "language.json"
DOCUMENT = json.loads(GOLDEN.read_bytes(), parse_int=float)
DATA = DOCUMENT["data"]
CASES = DOCUMENT["cases"]
FUNCTIONS = {"currentDate": Signature(lambda *_: "2026-03-01", 0, None, texts=-1)}

PIECES = st.sampled_from(
    (
        *(
            "{{",
            "}}",
            "{{-",
            "-}}",
            " ",
            "\n",
            ".",
            "$",
            "$x",
            ":=",
            "=",
            "|",
            "(",
            ")",
            ",",
            '"',
            "`",
        ),
        *("if", "else", "end", "range", "with", "define", "template", "block", "break", "continue"),
        *(
            ".name",
            ".list",
            ".map",
            ".missing",
            "eq",
            "len",
            "index",
            "slice",
            "print",
            "json",
            "and",
        ),
        *("0", "-1", "1.5", "'a'", '"%s"', "nil", "true", "/*", "*/", "\u00e9", "printf"),
        *("\udcff", "\ud800"),
    )
)


def render(template: str, given: object = DATA) -> str:
    """Return what a template makes of a value, the golden file's unless told otherwise."""
    return GoTemplate.parse(template, tuple(FUNCTIONS)).execute(given, FUNCTIONS)


def failure(template: str, given: object = DATA) -> str:
    """Return the text of the error with which a template fails."""
    with pytest.raises(TemplateError) as caught:
        render(template, given)
    return str(caught.value)


def test_render_recorded_templates_gives_what_go_gives() -> None:
    """Text, trimming, variables, branches, functions and printed values are Go's."""
    expected = {case["template"]: case["output"] for case in CASES if "output" in case}

    assert {template: render(template) for template in expected} == expected


def test_render_recorded_templates_fails_as_go_fails() -> None:
    """Errors have Go's text, with its line and column."""
    expected = {case["template"]: case["error"] for case in CASES if "error" in case}

    assert {template: failure(template) for template in expected} == expected


@given(st.lists(PIECES, max_size=30).map("".join))
@example("{{ print `\ud800` }}")
def test_render_any_text_gives_text_or_template_error(template: str) -> None:
    """A client's template is never an error of ours, and the result can always be encoded."""
    try:
        text = render(template)
    except TemplateError:
        return

    assert text.encode().decode() == text


def test_template_error_is_an_error_of_the_request() -> None:
    """Who sent the template must act."""
    assert issubclass(TemplateError, RequestError)


def test_execute_member_of_struct_is_a_field_or_a_method() -> None:
    """A struct has its fields and methods and no others, whether they are empty or not."""
    value = Struct("main.T", {"A": 1, "B": ""}, methods={"M": "m"})

    text = render("{{ .A }}{{ .M }}{{ if . }}{{ if .B }}{{ else }}!{{ end }}{{ end }}", value)

    assert text == "1m!"
    assert failure("{{ .C }}", value) == (
        'template: :1:3: executing "" at <.C>: can\'t evaluate field C in type main.T'
    )


def test_execute_struct_printed_shows_its_values() -> None:
    """Printed, a struct is its fields in braces; as JSON it is what it says."""
    value = Struct("main.T", {"A": 1, "B": ["x"]}, json={"z": 1, "a": "<"})

    assert render("{{ . }} {{ json . }}", value) == '{1 [x]} {"z":1,"a":"\\u003c"}'


def test_execute_named_value_prints_itself_and_has_elements() -> None:
    """A type that prints itself does so as a whole and in part, and is a list all the same."""
    value = Named(["a", "b"], "main.L", ["a", "b"])

    text = render("{{ . }} {{ len . }} {{ range . }}<{{ . }}>{{ end }} {{ slice . 1 }}", value)

    assert text == '["a","b"] 2 <a><b> ["b"]'


def test_execute_nil_of_a_named_type_is_null_empty_and_nil() -> None:
    """A nil slice is false, has no elements, and is ``null`` in JSON."""
    value = Named([], "main.L", None)

    text = render(
        "{{ . }} {{ len . }} {{ eq . nil }} {{ if . }}x{{ end }}{{ range . }}x{{ end }}", value
    )

    assert text == "null 0 true "


@pytest.mark.parametrize(
    "template",
    [
        "{{ if .name }}" * 1000 + "{{ end }}" * 1000,
        "{{ " + "(" * 1000 + ".name" + ")" * 1000 + " }}",
        "{{ if .no }}" + "{{ else if .no }}" * 1000 + "{{ end }}",
        '{{ define "a" }}' + "{{ with 1 }}" * 1000,
    ],
)
def test_parse_deep_nesting_is_refused(template: str) -> None:
    """Blocks and parentheses nest only so deeply."""
    assert failure(template) == "template: :1: max expression depth exceeded"


def test_parse_too_many_variables_is_refused() -> None:
    """A lookup goes through the variables in scope, so their number is bounded."""
    assert failure("{{ $x := 1 }}" * 1001) == "template: :1: more than 1000 variables"


def test_execute_template_that_calls_itself_for_ever_fails() -> None:
    """Called templates nest only so deeply."""
    text = failure('{{ define "a" }}{{ template "a" . }}{{ end }}{{ template "a" . }}')

    assert "exceeded maximum template depth" in text


@pytest.mark.parametrize(
    "template",
    ["{{ range 1000000000 }}{{ end }}", "{{ range 1000 }}{{ range 1000 }}x{{ end }}{{ end }}"],
)
def test_execute_loop_without_end_fails(template: str) -> None:
    """The nodes that one execution evaluates are bounded."""
    assert failure(template).endswith(f"exceeded {MAX_STEPS} steps")


@pytest.mark.parametrize(
    "template",
    [
        '{{ $x := "0123456789" }}{{ range 40 }}{{ $x = print $x $x }}{{ end }}',
        '{{ range 200 }}{{ printf "%999999d" 1 }}{{ end }}',
        '{{ printf "' + "%999999d" * 50 + '"' + " 1" * 50 + " }}",
        '{{ $x := `"` }}{{ range 40 }}{{ $x = json $x }}{{ end }}',
    ],
)
def test_execute_text_without_end_fails(template: str) -> None:
    """The text that one execution makes is bounded, whether it is written or not."""
    assert failure(template).endswith("text exceeds 16777216 characters")


@pytest.mark.parametrize("template", ["{{ . }}", "{{ json . }}", "{{ range . }}{{ . }}{{ end }}"])
def test_execute_long_values_printed_fails(template: str) -> None:
    """What is printed counts, however it comes to be printed."""
    given = ["x" * 9_000_000] * 2

    assert failure(template, given).endswith("text exceeds 16777216 characters")
