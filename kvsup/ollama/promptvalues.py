"""Messages and tools as a prompt template sees them.

The source is Ollama v0.17.4 (template/template.go, api/types.go). Numbers of JSON are floats there,
whatever they look like, and schema keys that Ollama does not know are dropped.
"""

from collections.abc import Mapping, Sequence

from kvsup.ollama.gotemplate import TemplateError
from kvsup.ollama.gotemplate.values import Named, Struct
from kvsup.ollama.requests import Message, ToolCall

MAX_DEPTH = 40
"""Levels of lists and objects within a tool or an argument."""

_TYPESCRIPT = {
    "string": "string",
    "number": "number",
    "integer": "number",
    "boolean": "boolean",
    "array": "any[]",
    "object": "Record<string, any>",
    "null": "null",
}


def messages_value(messages: Sequence[Message]) -> list[object]:
    """Return the value of ``.Messages``."""
    return [
        Struct(
            "*template.templateMessage",
            {
                "Role": message.role,
                "Content": message.content,
                "Thinking": message.thinking,
                "Images": _slice(list(message.images), "[]api.ImageData"),
                "ToolCalls": _slice(
                    [_tool_call(call) for call in message.tool_calls], "[]template.templateToolCall"
                ),
                "ToolName": message.tool_name,
                "ToolCallID": message.tool_call_id,
            },
        )
        for message in messages
    ]


def tools_value(tools: Sequence[Mapping[str, object]] | None) -> Named:
    """Return the value of ``.Tools``, which prints as JSON.

    Raises:
        TemplateError: a schema is nested too deeply.
    """
    if tools is None:
        return Named([], "template.templateTools", None)
    value: list[object] = [_tool(tool) for tool in tools]
    return Named(value, "template.templateTools", value)


def typescript_type(value: object) -> str:
    """Return a tool's parameter as a type of TypeScript, anything else as ``any``."""
    methods = value.methods if isinstance(value, Struct) else {}
    return str(methods.get("ToTypeScriptType", "any"))


def _slice(items: list[object], type_name: str) -> object:
    return items or Named([], type_name, None, "[]")


def _tool_call(call: ToolCall) -> Struct:
    arguments = _json_object(call.function.arguments)
    fields = {
        "Index": call.function.index,
        "Name": call.function.name,
        "Arguments": Named(arguments, "template.templateArgs", arguments),
    }
    function = Struct("template.templateToolCallFunction", fields)
    return Struct("template.templateToolCall", {"ID": call.id, "Function": function})


def _tool(tool: Mapping[str, object]) -> Struct:
    function = _object(tool.get("function"))
    fields = {
        "Type": _text(tool.get("type")),
        "Items": _json_value(tool.get("items")),
        "Function": _function(function),
    }
    json = {
        "type": fields["Type"],
        **_filled(items=fields["Items"]),
        "function": fields["Function"],
    }
    return Struct("template.templateTool", fields, json)


def _function(function: Mapping[str, object]) -> Struct:
    fields = {
        "Name": _text(function.get("name")),
        "Description": _text(function.get("description")),
        "Parameters": _parameters(_object(function.get("parameters"))),
    }
    json = {name.lower(): value for name, value in fields.items()}
    return Struct("template.templateToolFunction", fields, json)


def _parameters(parameters: Mapping[str, object]) -> Struct:
    fields = {
        "Type": _text(parameters.get("type")),
        "Defs": _json_value(parameters.get("$defs")),
        "Items": _json_value(parameters.get("items")),
        "Required": _json_value(parameters.get("required")) or [],
        "Properties": _properties(parameters.get("properties")),
    }
    json = {
        "type": fields["Type"],
        **_filled(**{"$defs": fields["Defs"]}),
        **_filled(items=fields["Items"], required=fields["Required"]),
        "properties": fields["Properties"],
    }
    return Struct("template.templateToolFunctionParameters", fields, json)


def _properties(schema: object) -> Named:
    if not isinstance(schema, Mapping):
        return Named({}, "template.templateProperties", None, "{}")
    held: dict[str, object] = {name: _property(_object(inner)) for name, inner in schema.items()}
    return Named(held, "template.templateProperties", held)


def _property(schema: Mapping[str, object], depth: int = 0) -> Struct:
    """Return a parameter of a tool; those within it keep their order."""
    _check_depth(depth)
    types = _types(schema.get("type"))
    any_of = [_property(_object(choice), depth + 1) for choice in _items(schema.get("anyOf"))]
    within = schema.get("properties")
    properties = None
    if isinstance(within, Mapping):
        members = {name: _property(_object(inner), depth + 1) for name, inner in within.items()}
        properties = Struct("*api.ToolPropertiesMap", members)
    fields = {
        "AnyOf": any_of,
        "Type": types,
        "Items": _json_value(schema.get("items")),
        "Description": _text(schema.get("description")),
        "Enum": _json_value(_items(schema.get("enum"))),
        "Properties": properties,
        "Required": _json_value(_items(schema.get("required"))),
    }
    json = {
        **_filled(anyOf=any_of, type=types.json, items=fields["Items"]),
        **_filled(description=fields["Description"], enum=fields["Enum"]),
        **_filled(properties=properties, required=fields["Required"]),
    }
    methods = {"ToTypeScriptType": _typescript(any_of, types)}
    return Struct("api.ToolProperty", fields, json, methods)


def _types(schema_type: object) -> Named:
    names = [_text(name) for name in _items(schema_type)] or [_text(schema_type)]
    held: list[object] = [name for name in names if name]
    text = str(held[0]) if len(held) == 1 else f"[{' '.join(map(str, held))}]" if held else ""
    return Named(held, "api.PropertyType", held[0] if len(held) == 1 else held or None, text)


def _typescript(any_of: list[Struct], types: Named) -> str:
    if any_of:
        return " | ".join(typescript_type(choice) for choice in any_of)
    return " | ".join(_TYPESCRIPT.get(str(name), "any") for name in types.value) or "any"


def _filled(**fields: object) -> dict[str, object]:
    """Return the fields that are not empty, as ``omitempty`` has it."""
    return {name: value for name, value in fields.items() if value not in (None, "", [])}


def _json_value(value: object, depth: int = 0) -> object:
    """Return a value of JSON with its numbers as floats and its sequences as lists."""
    _check_depth(depth)
    if isinstance(value, Mapping):
        return _json_object(value, depth)
    if isinstance(value, list | tuple):
        return [_json_value(inner, depth + 1) for inner in value]
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    try:
        return float(value)
    except OverflowError:
        raise TemplateError("a number in tools or arguments is too large") from None


def _json_object(value: Mapping[str, object], depth: int = 0) -> dict[str, object]:
    return {str(key): _json_value(inner, depth + 1) for key, inner in value.items()}


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise TemplateError(f"tools and arguments are nested more than {MAX_DEPTH} levels deep")


def _object(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _items(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else ()


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
