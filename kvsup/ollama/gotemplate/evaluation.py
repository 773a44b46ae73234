"""Executing a parsed template (text/template/exec.go of Go 1.26, with ``missingkey=zero``)."""

from collections.abc import Callable, Iterator, Mapping

from kvsup.ollama.gotemplate import printing, values
from kvsup.ollama.gotemplate.literals import quote, to_bytes
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
    Node,
    Operand,
    Pipe,
    Statement,
    Text,
    Variable,
)
from kvsup.ollama.gotemplate.tokens import TemplateError
from kvsup.ollama.gotemplate.values import NO_VALUE, GoError

MAX_DEPTH = 60
"""Bodies, parentheses and called templates within each other; Go stops at 100 000 calls."""
MAX_STEPS = 500_000
"""Bodies and nodes evaluated in one execution; Go has no limit."""


class Signature:
    """What a function takes: ``least`` to ``most`` arguments, the first ``texts`` of them strings.

    ``most`` is None where more may follow; ``texts`` of -1 means all.
    """

    def __init__(
        self, run: Callable[..., object], least: int, most: int | None, *, texts: int = 0
    ) -> None:
        self.run = run
        self.least = least
        self.most = most
        self.texts = texts


def _sized(run: Callable[..., object]) -> Callable[..., object]:
    """Return ``run`` as Go calls it with ``any``: an expression without a value becomes a nil."""
    return lambda *given: run(*(None if value is NO_VALUE else value for value in given))


BUILTINS: Mapping[str, Signature] = {
    "and": Signature(values.truth, 1, None),  # these two evaluate only what they need, and are
    "or": Signature(values.truth, 1, None),  # not called: _first_decisive
    "not": Signature(lambda value: not values.truth(value), 1, 1),
    "len": Signature(values.length, 1, 1),
    "index": Signature(values.element, 1, None),
    "slice": Signature(values.part, 1, None),
    "eq": Signature(values.equal, 1, None),
    "ne": Signature(lambda first, other: not values.equal(first, other), 2, 2),
    "lt": Signature(values.less, 2, 2),
    "le": Signature(lambda a, b: values.less(a, b) or values.equal(a, b), 2, 2),
    "gt": Signature(lambda a, b: not (values.less(a, b) or values.equal(a, b)), 2, 2),
    "ge": Signature(lambda a, b: not values.less(a, b), 2, 2),
    "print": Signature(_sized(printing.print_values), 0, None),
    "println": Signature(_sized(printing.print_line), 0, None),
    "printf": Signature(_sized(printing.print_format), 1, None, texts=1),
    "json": Signature(printing.to_json, 1, 1),
}
"""The functions of every template: Go's but for html, js, urlquery and call, and Ollama's json."""


def execute(
    templates: Mapping[str, Body],
    source: str,
    given: object,
    functions: Mapping[str, Signature],
) -> str:
    """Return the text that the main template of ``source`` makes of the value ``given``.

    Raises:
        TemplateError: an operation failed, or a bound on depth, steps or text was passed.
    """
    execution = _Execution(templates, source, functions)
    execution.run(templates[""], given)
    return to_bytes("".join(execution.output)).decode("utf-8", "replace")


class _Execution:
    def __init__(
        self, templates: Mapping[str, Body], source: str, functions: Mapping[str, Signature]
    ) -> None:
        self.output: list[str] = []
        self._templates = templates
        self._source = source
        self._functions = functions
        self._name = ""
        self._variables: list[tuple[str, object]] = []
        self._at: Node = Text(0, "")
        self._depth = 0
        self._steps = 0
        self._room = printing.MAX_TEXT_CHARS

    def run(self, body: Body, dot: object) -> None:
        """Execute a template with variables of its own."""
        outer, self._variables = self._variables, [("$", dot)]
        self._walk(body, dot)
        self._variables = outer

    # --- bounds and errors

    def _error(self, text: str) -> TemplateError:
        before = self._source[: self._at.position]
        column = len(to_bytes(before[before.rfind("\n") + 1 :]))
        line = before.count("\n") + 1
        where = f":{line}:{column}: executing {quote(self._name)} at <{self._at}>"
        return TemplateError(f"template: {where}: {text}")

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"exceeded maximum template depth ({MAX_DEPTH})")
        self._step()

    def _mark(self, node: Node) -> None:
        self._at = node
        self._step()

    def _step(self) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise self._error(f"exceeded {MAX_STEPS} steps")

    def _charge(self, text: str) -> None:
        """Count text that was made, written or not."""
        self._room -= len(text)
        if self._room < 0:
            raise self._error(f"text exceeds {printing.MAX_TEXT_CHARS} characters")

    def _shown(self, value: object) -> str:
        try:
            return printing.show(value)
        except GoError as error:
            raise self._error(str(error)) from None

    def _write(self, text: str) -> None:
        self._charge(text)
        self.output.append(text)

    # --- statements

    def _walk(self, body: Body, dot: object) -> Leave | None:
        """Execute statements; return the ``break`` or ``continue`` that ended them."""
        self._enter()
        leave = None
        for statement in body:
            leave = self._statement(statement, dot)
            if leave:
                break
        self._depth -= 1
        return leave

    def _statement(self, node: Statement, dot: object) -> Leave | None:
        self._mark(node)
        match node:
            case Text():
                self._write(node.text)
            case Action():
                value = self._pipe(node.pipe, dot)
                if not node.pipe.variables:
                    self._write("<no value>" if value is NO_VALUE else self._shown(value))
            case Leave():
                return node
            case Call():
                self._call_template(node, dot)
            case Branch():
                outer = len(self._variables)
                leave = self._range(node, dot) if node.word == "range" else self._if(node, dot)
                del self._variables[outer:]
                return leave
        return None

    def _if(self, node: Branch, dot: object) -> Leave | None:
        value = self._pipe(node.pipe, dot)
        if values.truth(value):
            return self._walk(node.body, value if node.word == "with" else dot)
        return self._walk(node.otherwise, dot)

    def _range(self, node: Branch, dot: object) -> Leave | None:
        value = self._pipe(node.pipe, dot)
        names = node.pipe.variables
        outer = len(self._variables)
        is_empty = True
        for key, item in self._items(value, is_pair=len(names) > 1):
            is_empty = False
            bound = (key, item)[2 - len(names) :]
            for at, name in enumerate(names):
                if node.pipe.is_assignment:
                    self._assign(name, bound[at])
                else:
                    self._variables[outer - len(names) + at] = (name, bound[at])
            leave = self._walk(node.body, item)
            del self._variables[outer:]
            if leave and leave.word == "break":
                break
        return self._walk(node.otherwise, dot) if is_empty else None

    def _items(self, value: object, *, is_pair: bool) -> Iterator[tuple[object, object]]:
        """Yield each key and element that a range goes over."""
        held = values.plain(value)
        if isinstance(held, list):
            yield from enumerate(held)
        elif isinstance(held, dict):
            yield from sorted(held.items(), key=lambda item: to_bytes(item[0]))
        elif isinstance(held, int) and not isinstance(held, bool):
            if is_pair:
                raise self._error(f"can't use {held} to iterate over more than one variable")
            yield from ((NO_VALUE, number) for number in range(held))
        elif not values.is_nil(held):
            raise self._error(f"range can't iterate over {self._shown(held)}")

    def _call_template(self, node: Call, dot: object) -> None:
        body = self._templates.get(node.name)
        if body is None:
            raise self._error(f"template {quote(node.name)} not defined")
        argument = self._pipe(node.pipe, dot) if node.pipe else NO_VALUE
        outer, self._name = self._name, node.name
        self.run(body, argument)
        self._name = outer

    def _assign(self, name: str, value: object) -> None:
        for at in reversed(range(len(self._variables))):
            if self._variables[at][0] == name:
                self._variables[at] = (name, value)
                return
        raise self._error(f"undefined variable: {name}")

    # --- expressions

    def _pipe(self, node: Pipe, dot: object) -> object:
        self._mark(node)
        self._enter()
        final: tuple[object, ...] = ()
        for command in node.commands:
            value = self._command(command, dot, final)
            final = (NO_VALUE if value is None else value,)
        (value,) = final
        for name in node.variables:
            if node.is_assignment:
                self._assign(name, value)
            else:
                self._variables.append((name, value))
        self._depth -= 1
        return value

    def _command(self, node: Command, dot: object, final: tuple[object, ...]) -> object:
        first = node.operands[0]
        if isinstance(first, Function):
            return self._call(first, node, dot, final)
        self._at = first
        has_arguments = len(node.operands) > 1 or bool(final)
        has_fields = isinstance(first, Field | Chain) or (
            isinstance(first, Variable) and bool(first.names)
        )
        if has_arguments and not has_fields:
            raise self._error(f"can't give argument to non-function {_enclosed(first)}")
        if isinstance(first, Nil):
            raise self._error("nil is not a command")
        value = self._operand(first, dot)
        if has_arguments:
            name = str(first).rpartition(".")[2]
            raise self._error(f"{name} is not a method but has arguments")
        return value

    def _operand(self, node: Operand, dot: object) -> object:
        self._mark(node)
        value: object
        match node:
            case Literal():
                value = node.value
            case Dot():
                value = dot
            case Nil():
                value = NO_VALUE
            case Field():
                value = self._members(dot, node.names)
            case Variable():
                value = self._members(self._variable(node.name), node.names)
            case Function():
                value = self._call(node, Command(node.position, (node,)), dot, ())
            case Pipe():
                value = self._pipe(node, dot)
            case Chain():
                value = self._members(self._operand(node.operand, dot), node.names)
        return value

    def _variable(self, name: str) -> object:
        for known, value in reversed(self._variables):
            if known == name:
                return value
        raise self._error(f"undefined variable: {name}")

    def _members(self, value: object, names: tuple[str, ...]) -> object:
        static_type = values.type_name(value)
        for name in names:
            try:
                inner = values.member(value, name, static_type)
            except GoError as error:
                raise self._error(str(error)) from None
            is_map = isinstance(values.plain(value), dict)
            static_type = "interface {}" if is_map else values.type_name(inner)
            value = inner
        return value

    def _call(
        self,
        node: Function,
        command: Command,
        dot: object,
        final: tuple[object, ...],
    ) -> object:
        self._mark(node)
        operands = command.operands[1:]
        signature = self._functions[node.name]
        self._check_count(node, signature, len(operands), len(operands) + len(final))
        if node.name in ("and", "or"):
            return self._first_decisive(node, operands, dot, final)
        given: list[object] = []
        for at, operand in enumerate(operands):
            value = self._operand(operand, dot)
            if signature.texts in (-1, at + 1):
                self._check_text(operand, value)
            given.append(value)
        if final and signature.texts in (-1, len(given) + 1):
            self._check_text(node, final[0])
        try:
            result = signature.run(*given, *final)
        except GoError as error:
            self._at = command
            raise self._error(f"error calling {node.name}: {error}") from None
        if isinstance(result, str):
            self._charge(result)
        return result

    def _check_count(self, node: Function, signature: Signature, named: int, count: int) -> None:
        if signature.most is None:
            if count < signature.least:
                wanted = f"want at least {signature.least} got {named}"
                raise self._error(f"wrong number of args for {node.name}: {wanted}")
        elif count != signature.most:
            wanted = f"want {signature.most} got {count}"
            raise self._error(f"wrong number of args for {node.name}: {wanted}")

    def _check_text(self, operand: Operand, value: object) -> None:
        if isinstance(value, str):
            return
        if isinstance(operand, Literal):
            raise self._error(f"expected string; found {operand}")
        if isinstance(operand, Nil):
            raise self._error("cannot assign nil to string")
        if value is NO_VALUE:
            raise self._error("invalid value; expected string")
        raise self._error(f"wrong type for value; expected string; got {values.type_name(value)}")

    def _first_decisive(
        self,
        node: Function,
        operands: tuple[Operand, ...],
        dot: object,
        final: tuple[object, ...],
    ) -> object:
        """Return the first value that decides an ``and`` or ``or``, else the last one."""
        value: object = NO_VALUE
        for operand in operands:
            value = self._operand(operand, dot)
            if values.truth(value) == (node.name == "or"):
                return value
        return final[0] if final else value


def _enclosed(node: Operand) -> str:
    return f"({node})" if isinstance(node, Pipe) else str(node)
