"""Who may import whom: the table of ``docs/architecture.md`` as data, and the code held to it."""

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_LINES = 400

PURE = (
    "errors", "units", "kvtypes", "keylines", "gguf", "modelshape", "memory", "kvrules", "config",
    "decode", "environment", "restart", "lifecycle", "residency", "scheduling", "events", "checks",
    "plan", "schema", "fitting", "ggufnames", "keys", "mending", "tomltext", "openai", "anthropic",
    "measures", "capacity", "placement", "architectures", "kvlooks", "slowpaths", "kvchoice",
    "divergence", "pareto", "history", "why", "ladder", "settling", "watchdog", "filenames",
    "modelfile", "warmth", "eventlines", "importing", "readahead", "stores", "keymarks",
    "hostconfig",
)  # fmt: skip
"""Modules without clock, log, disk or ``await``, beside ``llama`` and ``ollama``."""

BELOW_RUNTIME = (*PURE, "llama", "ollama")

ALLOWED: Mapping[str, tuple[str, ...]] = {
    "errors": (),
    "units": (),
    "kvtypes": (),
    "keylines": (),
    "ggufnames": (),
    "gguf": ("errors", "ggufnames"),
    "tomltext": ("keylines", "tomli", "tomlkit"),
    "architectures": (),
    "modelshape": ("architectures", "gguf"),
    "memory": ("kvtypes", "modelshape", "slowpaths"),
    "placement": ("memory", "residency"),
    "capacity": ("memory",),
    "slowpaths": ("kvtypes",),
    "kvchoice": (
        "config",
        "kvlooks",
        "kvrules",
        "kvtypes",
        "measures",
        "modelshape",
        "slowpaths",
        "msgspec",
    ),
    "measures": ("msgspec",),
    "divergence": ("measures",),
    "pareto": ("divergence", "kvrules", "kvtypes", "measures", "modelshape"),
    "kvlooks": ("kvtypes", "modelshape"),
    "kvrules": ("kvlooks", "kvtypes", "modelshape"),
    "keymarks": ("msgspec",),
    "config": ("keymarks", "kvtypes", "measures", "msgspec"),
    "hostconfig": ("config", "keymarks", "kvtypes", "measures", "msgspec"),
    "decode": ("config", "errors", "hostconfig", "keylines", "kvtypes", "units", "msgspec"),
    "environment": (),
    "restart": ("config",),
    "watchdog": ("config",),
    "lifecycle": (),
    "residency": ("units",),
    "scheduling": ("residency",),
    "ladder": ("config", "restart", "units", "msgspec"),
    "settling": ("config", "memory", "slowpaths", "msgspec"),
    "events": ("units",),
    "eventlines": ("events", "units"),
    "history": ("eventlines", "events", "restart", "units", "msgspec"),
    "why": ("history", "units", "msgspec"),
    "checks": (
        "config",
        "kvlooks",
        "kvrules",
        "kvtypes",
        "ladder",
        "llama",
        "modelshape",
        "ollama",
    ),
    "readahead": (),
    "modelfile": ("config", "gguf", "memory", "modelshape"),
    "stores": ("stores", "msgspec"),
    "stores.jinja": ("ollama.gotemplate", "ollama.prompt", "ollama.requests"),
    "stores.parameters": ("ollama.options",),
    "stores.references": ("ollama.names",),
    "stores.registries": ("ollama.names",),
    "filenames": (),
    "warmth": ("modelshape",),
    "plan": (
        "capacity",
        "config",
        "filenames",
        "gguf",
        "kvchoice",
        "kvtypes",
        "ladder",
        "llama",
        "memory",
        "modelfile",
        "placement",
        "residency",
        "settling",
        "slowpaths",
        "warmth",
        "msgspec",
    ),
    "schema": ("config", "hostconfig", "units", "msgspec"),
    "keys": ("decode", "errors"),
    "fitting": ("config", "errors", "kvrules", "kvtypes", "modelshape", "msgspec"),
    "mending": ("errors", "msgspec"),
    "openai": (
        "llama.sse",
        "llama.vectors",
        "llama.wire",
        "mending",
        "errors",
        "openai",
        "msgspec",
    ),
    "anthropic": ("llama.sse", "llama.wire", "mending", "errors", "anthropic", "msgspec"),
    "llama": ("config", "errors", "restart", "warmth", "llama", "msgspec"),
    "ollama": ("llama.sse", "llama.vectors", "llama.wire", "errors", "units", "ollama", "msgspec"),
    "ollama.creation": ("kvtypes", "ollama"),
    "importing": (
        "config",
        "decode",
        "environment",
        "errors",
        "filenames",
        "hostconfig",
        "kvtypes",
        "llama",
        "ollama",
        "importing",
        "stores",
        "msgspec",
        "tomli",
        "tomlkit",
        "yaml",
    ),
    "runtime.upstream": ("errors", "llama.heartbeat", "restart", "asyncio", "httptools"),
    "runtime.images": ("errors", "runtime.publicnet", "anyio", "httpx"),
    "runtime.outside": ("errors", "runtime.publicnet", "stores", "anyio", "httpx"),
    "runtime.registry": ("errors", "runtime.credentials", "runtime.ollamakey", "stores", "httpx"),
    "runtime.ollamakey": ("errors", "cryptography"),
    "runtime.fetching": ("errors", "runtime", "stores", "anyio", "httpx"),
    "runtime.hub": (
        "errors",
        "ollama.names",
        "stores",
        "anyio",
        "httpx",
        "huggingface_hub",
        "msgspec",
    ),
    "runtime": (*BELOW_RUNTIME, "runtime", "anyio", "psutil", "tomli", "msgspec"),
    "runtime.filestamps": (),
    "runtime.notifying": ("anyio",),
    "runtime.watching": (*BELOW_RUNTIME, "runtime", "anyio", "watchfiles"),
    "api": (*BELOW_RUNTIME, "runtime", "api", "", "starlette", "anyio", "psutil", "msgspec"),
    "api.contentcoding": ("errors", "backports", "compression"),
    "api.heads": (),
    "api.jsonlimits": ("errors",),
    "api.protocol": ("api", "asyncio", "httptools", "uvicorn"),
    "tuning": (*BELOW_RUNTIME, "runtime", "tuning", "anyio", "msgspec"),
    "serve": (*BELOW_RUNTIME, "runtime", "tuning", "api", "", "anyio", "psutil", "uvicorn"),
    "cli": (
        *BELOW_RUNTIME,
        "runtime",
        "tuning",
        "serve",
        "cli",
        "",
        "typer",
        "rich",
        "tomli",
        "tomlkit",
        "anyio",
        "msgspec",
        "matplotlib",
        "plotext",
    ),
    "__main__": ("cli",),
    "": (),
}
"""What a module may import beside the standard library; the nearest row above it counts.

``asyncio`` is named although it is of the standard library; the empty name is ``kvsup`` itself,
which holds the version.
"""

NAMED_STDLIB = ("asyncio",)


def _modules(folder: Path = ROOT / "kvsup") -> dict[str, Path]:
    """Return each module by its dotted name below ``kvsup``, which itself is the empty name."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _imports(tree: ast.AST) -> Iterator[str]:
    """Yield every imported module: those of kvsup without the package's name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            base = node.module or ""
            for alias in node.names:
                full = f"{base}.{alias.name}".removeprefix("kvsup.")
                yield full if base.startswith("kvsup") and full in MODULES else _short(base)
        elif isinstance(node, ast.Import):
            yield from (_short(alias.name) for alias in node.names)


def _short(name: str) -> str:
    return "" if name == "kvsup" else name.removeprefix("kvsup.")


def _row(module: str) -> tuple[str, ...]:
    while module not in ALLOWED:
        assert module, "a module without a row in the table"
        module = module.rpartition(".")[0]
    return ALLOWED[module]


def _is_allowed(imported: str, row: tuple[str, ...]) -> bool:
    top = imported.partition(".")[0]
    if imported not in MODULES and top in sys.stdlib_module_names and top not in NAMED_STDLIB:
        return True
    return any(imported == name or (name and imported.startswith(f"{name}.")) for name in row)


def _forbidden(module: str, tree: ast.AST) -> list[str]:
    row = _row(module)
    return sorted({name for name in _imports(tree) if not _is_allowed(name, row)})


def _asynchronous(tree: ast.AST) -> list[int]:
    kinds = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    return [node.lineno for node in ast.walk(tree) if isinstance(node, kinds)]


@pytest.mark.parametrize("module", MODULES)
def test_imports_of_a_module_are_those_of_the_table(module: str) -> None:
    """Imports go downward only, third-party ones included."""
    tree = ast.parse(MODULES[module].read_text("utf-8"))

    assert _forbidden(module, tree) == []


@pytest.mark.parametrize(
    "module", [name for name in MODULES if name.partition(".")[0] in (*PURE, "llama", "ollama")]
)
def test_pure_module_awaits_nothing(module: str) -> None:
    """What decides takes what it needs as arguments: it waits for nothing."""
    assert _asynchronous(ast.parse(MODULES[module].read_text("utf-8"))) == []


@pytest.mark.parametrize(
    "path",
    [str(p.relative_to(ROOT)) for top in ("kvsup", "tests") for p in (ROOT / top).rglob("*.py")],
)
def test_python_file_is_short_enough(path: str) -> None:
    """A file has one responsibility, and at most 400 lines."""
    assert len((ROOT / path).read_text("utf-8").splitlines()) <= MAX_LINES


def test_table_has_a_row_for_nothing_that_is_gone() -> None:
    """Every row of the table is a module or a package of today."""
    assert [name for name in ALLOWED if name not in MODULES] == []


@pytest.mark.parametrize(
    ("module", "text", "expected"),
    [
        ("units", "from kvsup.errors import Problem", ["errors"]),
        ("units", "def f():\n    import anyio", ["anyio"]),
        ("units", "from kvsup import events", ["events"]),
        ("ollama.options", "from kvsup.llama import sse, fold", ["llama.fold"]),
        ("runtime.fleet", "import asyncio.subprocess", ["asyncio.subprocess"]),
        ("runtime.fleet", "from kvsup.api.relay import copy", ["api.relay"]),
        ("api.relay", "import httpx", ["httpx"]),
        ("gguf", "import struct\nfrom collections.abc import Iterator", []),
    ],
)
def test_layer_check_of_a_wrong_import_names_it(
    module: str, text: str, expected: list[str]
) -> None:
    """The check itself sees imports of every form, also inside functions."""
    assert _forbidden(module, ast.parse(text)) == expected
