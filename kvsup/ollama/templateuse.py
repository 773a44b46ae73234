"""What a prompt template tells of its model, and the part of it that stands before an answer.

The rules are those of Ollama v0.17.4: template/template.go and thinking/template.go.
"""

from collections.abc import Iterator
from dataclasses import replace

from kvsup.ollama.gotemplate import GoTemplate
from kvsup.ollama.gotemplate.nodes import (
    Action,
    Body,
    Branch,
    Call,
    Command,
    Field,
    Operand,
    Pipe,
    Statement,
    Text,
    Variable,
)


def variables(template: GoTemplate) -> frozenset[str]:
    """Return the names of variables and fields that the template mentions, in lower case.

    Those behind a parenthesis, as in ``(index .A 0).B``, do not count.
    """
    return frozenset(
        name.lower()
        for statement in _statements(template)
        for operand in _operands(_pipe_of(statement))
        for name in _names(operand)
    )


def has_call_without_value(template: GoTemplate) -> bool:
    """Say whether there is a ``{{ template "x" }}`` to which no value is passed."""
    return any(isinstance(node, Call) and not node.pipe for node in _statements(template))


def thinking_tags(template: GoTemplate) -> tuple[str, str]:
    """Return the texts around ``.Thinking`` within ``range .Messages``; either may be empty."""
    opening = closing = ""
    for body in _bodies_with_thinking(template.templates[""], is_of_messages=False):
        first, last = body[0], body[-1]
        opening = first.text.strip() if isinstance(first, Text) else opening
        closing = last.text.strip() if isinstance(last, Text) else closing
    return opening, closing


def up_to_response(template: GoTemplate) -> GoTemplate:
    """Return the template cut behind the first action with ``.Response``."""
    body, _ = _cut_body(template.templates[""])
    return replace(template, templates={**template.templates, "": body})


# --- what is mentioned


def _statements(template: GoTemplate) -> Iterator[Statement]:
    for body in template.templates.values():
        yield from _within(body)


def _within(body: Body) -> Iterator[Statement]:
    for statement in body:
        yield statement
        if isinstance(statement, Branch):
            yield from _within(statement.body)
            yield from _within(statement.otherwise)


def _pipe_of(statement: Statement) -> Pipe | None:
    return statement.pipe if isinstance(statement, Action | Branch | Call) else None


def _operands(pipe: Pipe | None) -> Iterator[Operand]:
    for command in pipe.commands if pipe else ():
        for operand in command.operands:
            yield operand
            if isinstance(operand, Pipe):
                yield from _operands(operand)


def _names(operand: Operand) -> tuple[str, ...]:
    if isinstance(operand, Field):
        return operand.names
    return (operand.name, *operand.names) if isinstance(operand, Variable) else ()


def _begins_with(pipe: Pipe | None, name: str) -> bool:
    fields = (operand for operand in _operands(pipe) if isinstance(operand, Field))
    return any(operand.names[0] == name for operand in fields)


# --- tags


def _bodies_with_thinking(body: Body, *, is_of_messages: bool) -> Iterator[Body]:
    """Yield, once for each time, the body whose actions or conditions mention ``.Thinking``."""
    for statement in body:
        pipe = _pipe_of(statement)
        is_inside = is_of_messages
        if isinstance(statement, Branch) and statement.word == "range":
            is_inside = _begins_with(pipe, "Messages")
        if is_inside and _begins_with(pipe, "Thinking"):
            yield body
        if isinstance(statement, Branch):
            yield from _bodies_with_thinking(statement.body, is_of_messages=is_inside)
            yield from _bodies_with_thinking(statement.otherwise, is_of_messages=is_inside)


# --- the part before an answer


def _cut_body(body: Body) -> tuple[Body, bool]:
    """Return the statements up to the first action with ``.Response``, and if there is one."""
    kept: list[Statement] = []
    is_cut = False
    for statement in body:
        if is_cut:
            break
        if isinstance(statement, Action):
            pipe, is_cut = _cut_pipe(statement.pipe)
            kept += [Action(statement.position, pipe)] if pipe else []
        elif isinstance(statement, Branch):
            inner, is_cut = _cut_body(statement.body)
            otherwise, is_cut = ((), True) if is_cut else _cut_body(statement.otherwise)
            kept.append(replace(statement, body=inner, otherwise=otherwise))
        else:
            kept.append(statement)
    return tuple(kept), is_cut


def _cut_pipe(pipe: Pipe) -> tuple[Pipe | None, bool]:
    """Return the pipe without what follows ``.Response``, or None if a command loses all."""
    commands: list[Command] = []
    is_cut = False
    for command in pipe.commands:
        operands: list[Operand] = []
        for operand in command.operands:
            if is_cut:
                break
            kept: Operand | None = operand
            if isinstance(operand, Pipe):
                kept, is_cut = _cut_pipe(operand)
            elif isinstance(operand, Field) and "Response" in operand.names:
                is_cut = True
            operands += [kept] if kept else []
        if not operands:
            return None, is_cut
        commands.append(replace(command, operands=tuple(operands)))
    return replace(pipe, commands=tuple(commands)), is_cut
