"""Tokens as nodes (text/template/parse/parse.go of Go 1.26)."""

from collections.abc import Collection, Mapping
from types import MappingProxyType

from kvsup.ollama.gotemplate import literals
from kvsup.ollama.gotemplate.nodes import (
    Action,
    Body,
    Branch,
    Call,
    Chain,
    Command,
    Dot,
    Field,
    Function,
    Leave,
    Literal,
    Nil,
    Operand,
    Pipe,
    Statement,
    Text,
    Variable,
)
from kvsup.ollama.gotemplate.tokens import TemplateError, Token, tokenize

MAX_DEPTH = 50
"""Blocks and parentheses within each other, an ``else if`` counting as one more.

Go allows ten thousand parentheses; this bounds the stack.
"""
MAX_VARIABLES = 1000
"""Variables in scope at once, which are looked up one by one; Go has no limit."""

_OPERANDS = (
    "bool", "char", ".", "field", "identifier", "number", "nil", "string", "variable", "(",
)  # fmt: skip


def parse(source: str, functions: Collection[str]) -> Mapping[str, Body]:
    """Return the templates of ``source`` by name; the main one is the empty name.

    Raises:
        TemplateError: it is no template, or is nested too deeply.
    """
    parser = _Parser(source, functions)
    parser.parse_main()
    return MappingProxyType(parser.templates)


class _Parser:
    def __init__(self, source: str, functions: Collection[str]) -> None:
        self.templates: dict[str, Body] = {}
        self._tokens = tokenize(source)
        self._next = 0
        self._furthest = 0
        self._functions = functions
        self._variables = ["$"]
        self._action_line = 0
        self._depth = 0
        self._range_depth = 0

    # --- tokens

    def _peek(self) -> Token:
        self._furthest = max(self._furthest, self._next)
        return self._tokens[self._next]

    def _take(self) -> Token:
        token = self._peek()
        if self._next < len(self._tokens) - 1:
            self._next += 1
        return token

    def _peek_word(self) -> Token:
        while self._peek().kind == "space":
            self._next += 1
        return self._peek()

    def _take_word(self) -> Token:
        self._peek_word()
        return self._take()

    def _expect(self, kind: str, context: str) -> Token:
        token = self._take_word()
        if token.kind != kind:
            raise self._unexpected(token, context)
        return token

    def _error(self, text: str) -> TemplateError:
        return TemplateError(f"template: :{self._tokens[self._furthest].line}: {text}")

    def _unexpected(self, token: Token, context: str) -> TemplateError:
        if token.kind != "error":
            return self._error(f"unexpected {token} in {context}")
        where = ""
        if self._action_line not in (0, token.line):
            joint = "" if token.text.endswith(" action") else " in action"
            where = f"{joint} started at :{self._action_line}"
        return self._error(f"{token}{where}")

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error("max expression depth exceeded")

    # --- statements

    def parse_main(self) -> None:
        """Parse all that there is."""
        body: list[Statement] = []
        while self._peek().kind != "EOF":
            if self._is_definition():
                self._definition()
                continue
            statement = self._statement()
            if isinstance(statement, Token):
                raise self._error(f"unexpected {{{{{statement.kind}}}}}")
            body.append(statement)
        self._add("", tuple(body))

    def _is_definition(self) -> bool:
        if self._peek().kind != "{{":
            return False
        start = self._next
        self._next += 1
        is_definition = self._peek_word().kind == "define"
        self._next = start
        return is_definition

    def _definition(self) -> None:
        context = "define clause"
        self._take()
        self._take_word()
        name = self._unquoted(self._expect("string", context))
        self._expect("}}", context)
        self._add(name, self._separate_body(context))

    def _separate_body(self, context: str) -> Body:
        """Return the body of a definition, which sees no variables, up to its ``end``."""
        outer = self._variables, self._range_depth, self._action_line
        self._variables, self._range_depth, self._action_line = ["$"], 0, 0
        body, end = self._body()
        if end.kind != "end":
            raise self._error(f"unexpected {{{{{end.kind}}}}} in {context}")
        self._variables, self._range_depth, self._action_line = outer
        return body

    def _add(self, name: str, body: Body) -> None:
        if not _is_empty(self.templates.get(name, ())):
            if _is_empty(body):
                return
            raise self._error(f"template: multiple definition of template {literals.quote(name)}")
        self.templates[name] = body

    def _body(self) -> tuple[Body, Token]:
        """Return the statements up to an ``end`` or ``else``, and that."""
        self._enter()
        body: list[Statement] = []
        while self._peek_word().kind != "EOF":
            statement = self._statement()
            if isinstance(statement, Token):
                self._depth -= 1
                return tuple(body), statement
            body.append(statement)
        raise self._error("unexpected EOF")

    def _statement(self) -> Statement | Token:
        token = self._take_word()
        if token.kind == "text":
            return Text(token.position, token.text)
        if token.kind != "{{":
            raise self._unexpected(token, "input")
        self._action_line = token.line
        statement = self._action()
        self._action_line = 0
        return statement

    def _action(self) -> Statement | Token:
        token = self._peek_word()
        match token.kind:
            case "if" | "with" | "range":
                self._take()
                return self._branch(token)
            case "else":
                self._take()
                if self._peek_word().kind not in ("if", "with"):
                    self._expect("}}", "else")
                return token
            case "end":
                self._take()
                self._expect("}}", "end")
                return token
            case "break" | "continue":
                self._take()
                return self._leave(token)
            case "template" | "block":
                self._take()
                return self._call(token)
        return Action(token.position, self._pipe("command", "}}"))

    def _leave(self, word: Token) -> Leave:
        shown = f"{{{{{word.kind}}}}}"
        self._expect("}}", shown)
        if not self._range_depth:
            raise self._error(f"{shown} outside {{{{range}}}}")
        return Leave(word.position, word.kind)

    def _branch(self, word: Token) -> Branch:
        outer = len(self._variables)
        pipe = self._pipe(word.kind, "}}")
        self._range_depth += word.kind == "range"
        body, ending = self._body()
        self._range_depth -= word.kind == "range"
        otherwise: Body = ()
        if ending.kind == "else":
            otherwise = self._else(word)
        del self._variables[outer:]
        return Branch(word.position, word.kind, pipe, body, otherwise)

    def _else(self, word: Token) -> Body:
        """Return what stands behind an ``else``; one with a condition shares the ``end``."""
        following = self._peek()
        if word.kind in ("if", "with") and following.kind == word.kind:
            self._enter()
            self._take()
            branch = self._branch(following)
            self._depth -= 1
            return (branch,)
        body, ending = self._body()
        if ending.kind != "end":
            raise self._error(f"expected end; found {{{{{ending.kind}}}}}")
        return body

    def _call(self, word: Token) -> Call:
        context = f"{word.kind} clause"
        token = self._take_word()
        if token.kind != "string":
            raise self._unexpected(token, context)
        name = self._unquoted(token)
        pipe = None
        if word.kind == "template" and self._peek_word().kind == "}}":
            self._take()
        else:
            pipe = self._pipe(context, "}}")
        if word.kind == "block":
            self._add(name, self._separate_body(context))
        return Call(token.position, name, literals.quote(name), pipe)

    def _unquoted(self, token: Token) -> str:
        try:
            return literals.unquote(token.text)
        except ValueError as error:
            raise self._error(str(error)) from None

    # --- expressions

    def _pipe(self, context: str, end: str) -> Pipe:
        position = self._peek_word().position
        variables, is_assignment = self._declarations(context)
        commands: list[Command] = []
        while (token := self._peek_word()).kind != end:
            if token.kind not in _OPERANDS:
                self._take()
                raise self._unexpected(token, context)
            commands.append(self._command())
        self._take()
        if not commands:
            raise self._error(f"missing value for {context}")
        for stage, command in enumerate(commands[1:], 2):
            if isinstance(command.operands[0], Literal | Dot | Nil):
                raise self._error(f"non executable command in pipeline stage {stage}")
        return Pipe(position, tuple(commands), variables, is_assignment)

    def _declarations(self, context: str) -> tuple[tuple[str, ...], bool]:
        """Return the variables that the pipe sets, and whether they exist already."""
        names: list[str] = []
        while (token := self._peek_word()).kind == "variable":
            start = self._next
            self._take()
            following = self._peek_word()
            is_comma = following.kind == "sign" and following.text == ","
            if following.kind not in (":=", "=") and not is_comma:
                self._next = start
                break
            self._take()
            names.append(token.text)
            self._variables.append(token.text)
            if len(self._variables) > MAX_VARIABLES:
                raise self._error(f"more than {MAX_VARIABLES} variables")
            if not is_comma:
                return tuple(names), following.kind == "="
            if context != "range" or len(names) > 1:
                raise self._error(f"too many declarations in {context}")
            if self._peek_word().kind not in ("variable", "}}", ")"):
                raise self._error("range can only initialize variables")
        return tuple(names), False

    def _command(self) -> Command:
        position = self._peek_word().position
        operands: list[Operand] = []
        while True:
            if self._peek_word().kind in _OPERANDS:
                operands.append(self._operand())
            token = self._peek()
            if token.kind in ("}}", ")"):
                break
            self._take()
            if token.kind == "|":
                break
            if token.kind != "space":
                raise self._unexpected(token, "operand")
        if not operands:
            raise self._error("empty command")
        return Command(position, tuple(operands))

    def _operand(self) -> Operand:
        term = self._term()
        if self._peek().kind != "field":
            return term
        position = self._peek().position
        names: list[str] = []
        while self._peek().kind == "field":
            names.append(self._take().text[1:])
        match term:
            case Field():
                return Field(position, (*term.names, *names))
            case Variable():
                return Variable(position, term.name, (*term.names, *names))
            case Function() | Pipe():
                return Chain(position, term, tuple(names))
        raise self._error(f"unexpected . after term {literals.quote(str(term))}")

    def _term(self) -> Operand:
        token = self._take()
        at = token.position
        term: Operand
        match token.kind:
            case "identifier":
                if token.text not in self._functions:
                    raise self._error(f"function {literals.quote(token.text)} not defined")
                term = Function(at, token.text)
            case ".":
                term = Dot(at)
            case "nil":
                term = Nil(at)
            case "field":
                term = Field(at, (token.text[1:],))
            case "variable":
                if token.text not in self._variables:
                    raise self._error(f"undefined variable {literals.quote(token.text)}")
                term = Variable(at, token.text)
            case "(":
                self._enter()
                term = self._pipe("parenthesized pipeline", ")")
                self._depth -= 1
            case _:
                term = Literal(at, self._constant(token), token.text)
        return term

    def _constant(self, token: Token) -> str | float | bool:
        try:
            match token.kind:
                case "bool":
                    return token.text == "true"
                case "char":
                    return literals.character(token.text)
                case "number":
                    return literals.number(token.text)
            return literals.unquote(token.text)
        except ValueError as error:
            raise self._error(str(error)) from None


def _is_empty(body: Body) -> bool:
    return all(isinstance(node, Text) and not node.text.strip() for node in body)
