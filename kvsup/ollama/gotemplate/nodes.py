"""The nodes of a parsed template, and their text as Go's errors quote it."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Node:
    """Anything in a template; ``position`` counts characters from its start."""

    position: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Dot(Node):
    """The current value."""

    def __str__(self) -> str:
        return "."


@dataclass(frozen=True, slots=True)
class Nil(Node):
    """The word ``nil``."""

    def __str__(self) -> str:
        return "nil"


@dataclass(frozen=True, slots=True)
class Literal(Node):
    """A string, number, character or boolean, and how it was written."""

    value: str | float | bool
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Field(Node):
    """``.A.B``: fields of the current value."""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return "".join(f".{name}" for name in self.names)


@dataclass(frozen=True, slots=True)
class Variable(Node):
    """``$``, ``$x`` or ``$x.A.B``."""

    name: str
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ".".join((self.name, *self.names))


@dataclass(frozen=True, slots=True)
class Function(Node):
    """The name of a function."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Command(Node):
    """An operand, or a function with its arguments."""

    operands: "tuple[Operand, ...]"

    def __str__(self) -> str:
        return " ".join(map(_enclosed, self.operands))


@dataclass(frozen=True, slots=True)
class Pipe(Node):
    """Commands of which each gets the value of the one before as its last argument."""

    commands: tuple[Command, ...]
    variables: tuple[str, ...] = ()
    is_assignment: bool = False
    """``=`` instead of ``:=``."""

    def __str__(self) -> str:
        target = ", ".join(self.variables) + (" = " if self.is_assignment else " := ")
        return (target if self.variables else "") + " | ".join(map(str, self.commands))


@dataclass(frozen=True, slots=True)
class Chain(Node):
    """``(…).A.B``: fields of the value of an operand."""

    operand: "Pipe | Function"
    names: tuple[str, ...]

    def __str__(self) -> str:
        return ".".join((_enclosed(self.operand), *self.names))


Operand = Dot | Nil | Literal | Field | Variable | Function | Pipe | Chain


def _enclosed(operand: Operand) -> str:
    return f"({operand})" if isinstance(operand, Pipe) else str(operand)


@dataclass(frozen=True, slots=True)
class Text(Node):
    """Text between actions."""

    text: str


@dataclass(frozen=True, slots=True)
class Action(Node):
    """``{{ pipe }}``."""

    pipe: Pipe


@dataclass(frozen=True, slots=True)
class Branch(Node):
    """``if``, ``with`` or ``range``."""

    word: str
    pipe: Pipe
    body: "tuple[Statement, ...]"
    otherwise: "tuple[Statement, ...]" = ()


@dataclass(frozen=True, slots=True)
class Call(Node):
    """``{{ template "name" pipe }}``, which a ``block`` becomes, too."""

    name: str
    quoted: str
    pipe: Pipe | None

    def __str__(self) -> str:
        argument = f" {self.pipe}" if self.pipe else ""
        return f"{{{{template {self.quoted}{argument}}}}}"


@dataclass(frozen=True, slots=True)
class Leave(Node):
    """``break`` or ``continue``."""

    word: str


Statement = Text | Action | Branch | Call | Leave
Body = tuple[Statement, ...]
