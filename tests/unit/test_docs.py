"""The documents held to the code: states, files, keys, defaults, commands, links and examples."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli

from kvsup.cli.main import app
from kvsup.decode import Source, decode_host, decode_models
from kvsup.environment import _VARIABLES, IGNORED
from kvsup.errors import Problem
from kvsup.hostconfig import SHARED_KEYS
from kvsup.kvtypes import STOCK_TYPES, KVType
from kvsup.lifecycle import TRANSITIONS, State
from kvsup.runtime.paths import HOST_FILE
from kvsup.schema import host_schema, model_schema

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
EXAMPLES = sorted([*(ROOT / "configs").glob("*.toml"), *(ROOT / "configs/examples").glob("*.toml")])
NO_ENVIRONMENT = Source("environment", {})


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def _imports() -> set[tuple[str, str]]:
    """Return each pair of a top-level module or folder of kvsup and one that it imports."""
    pairs = set()
    for path in (ROOT / "kvsup").rglob("*.py"):
        own = path.relative_to(ROOT / "kvsup").parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                package, _, inner = node.module.partition(".")
                names = [inner.split(".")[0]] if inner else [alias.name for alias in node.names]
                pairs |= {(own, name) for name in names if package == "kvsup" and name[0] != "_"}
    return pairs


def _closure(arrows: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return each pair of boxes of which the second can be reached from the first."""
    reached = set(arrows)
    while further := {(a, d) for a, b in reached for c, d in arrows if b == c} - reached:
        reached |= further
    return reached


def _described_keys() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each key that has a heading, with its schema: of a model, its tables, the host."""
    model, host = model_schema()["properties"], host_schema()["properties"]
    yield from ((key, schema) for key, schema in model.items() if key != "variants")
    yield from model["restart"]["properties"].items()
    yield from model["watchdog"]["properties"].items()
    yield from host["sources"]["properties"].items()
    yield from ((key, schema) for key, schema in host.items() if key not in SHARED_KEYS)


def _problems_of(text: str, *, is_host: bool) -> list[Problem]:
    source = Source("block.toml", tomli.loads(text), text)
    if is_host:
        return decode_host(source, NO_ENVIRONMENT)[1]
    return decode_models(source, {}, stem="block")[1]


def test_state_diagram_of_architecture_equals_the_table() -> None:
    """The picture has each edge of TRANSITIONS and no other."""
    (diagram,) = (b for b in _blocks(_architecture(), "mermaid") if b.startswith("stateDiagram"))

    drawn = set(re.findall(r"^ *(\w+) --> (\w+)$", diagram, re.MULTILINE))

    assert drawn == {(a.value, b.value) for a, after in TRANSITIONS.items() for b in after}


def test_module_picture_of_architecture_equals_the_imports() -> None:
    """Each import between two boxes follows arrows, and each arrow stands for an import."""
    (picture,) = (b for b in _blocks(_architecture(), "mermaid") if b.startswith("flowchart"))
    boxes = re.findall(r'(\w+)\["([^"·]+)', picture)
    box_of = {module.strip(): box for box, modules in boxes for module in modules.split(",")}
    arrows = {
        (a, b) for a, b in re.findall(r"^ *(\w+)(?:\[.*\])? --> (\w+)$", picture, re.MULTILINE)
    }

    imports = {
        (box_of[a], box_of[b]) for a, b in _imports() if a in box_of and box_of[a] != box_of[b]
    }

    assert {a for a, _ in _imports()} - set(box_of) <= {"__main__"}
    assert arrows <= imports
    assert imports <= _closure(arrows)


def test_file_table_of_architecture_names_every_file_and_no_other() -> None:
    """Each file of kvsup has one row; folders' __init__.py speak for themselves."""
    rows = re.findall(r"^\| `([\w/]+\.py)` \| \S", _architecture(), re.MULTILINE)
    files = (path.relative_to(ROOT / "kvsup") for path in (ROOT / "kvsup").rglob("*.py"))

    assert len(rows) == len(set(rows))
    assert set(rows) == {str(path) for path in files if path.name != "__init__.py"}


def test_states_of_operations_are_all_described() -> None:
    """Each state has a row that says what it means."""
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", _operations(), re.MULTILINE)
    described = {name for row in rows for name in re.findall(r"`(\w+)`", row)}

    assert {state.value for state in State} <= described


def test_keys_of_configuration_each_have_one_heading() -> None:
    """Each key of ModelConfig, RestartConfig and HostConfig has its heading, and no other has."""
    headings = re.findall(r"^### `(\w+)`$", _configuration(), re.MULTILINE)

    assert sorted(headings) == sorted(key for key, _ in _described_keys())


@pytest.mark.parametrize("key", [key for key, _ in _described_keys()])
def test_default_of_a_key_is_that_of_the_code(key: str) -> None:
    """The text under a heading says the default as one would write it, or none."""
    schema = dict(_described_keys())[key]
    section = re.split(rf"^### `{key}`$", _configuration(), flags=re.MULTILINE)[1]
    text = " ".join(section.partition("\n#")[0].split())

    if "default" in schema:
        assert f"Default: `{json.dumps(schema['default'])}`" in text
    elif key == "model":
        assert "required" in text
    else:
        assert "Default: none" in text or key in {"restart", "watchdog"}


def test_shared_keys_of_the_host_are_listed() -> None:
    """The keys that are a model's and the host's are named where the host's keys are."""
    host = _configuration().partition("## Keys of the host")[2]

    assert all(f"`{key}`" in host for key in SHARED_KEYS)


@pytest.mark.parametrize("variable", [*_VARIABLES, *IGNORED])
def test_variables_of_ollama_each_have_a_row(variable: str) -> None:
    """Honoured and ignored variables are both in a table."""
    assert re.search(rf"^\|.*`{variable}`", _configuration(), re.MULTILINE)


def test_commands_each_have_a_row() -> None:
    """Each command of the program is in the table of operations, and no other is."""
    rows = re.findall(r"^\| `kvsup (\w+)", _operations(), re.MULTILINE)
    commands = [c.name or getattr(c.callback, "__name__", "") for c in app.registered_commands]
    groups = [
        str(group.typer_instance and group.typer_instance.info.name)
        for group in app.registered_groups
    ]

    assert sorted(rows) == sorted(commands + groups)


def test_table_of_types_equals_block_sizes() -> None:
    """Each stock type stands in the table with its block, its bytes and its bits an element."""
    text = (DOCS / "kv-cache-types.md").read_text("utf-8")
    rows = re.findall(r"^\| (`[^|]+`) \| (\d+) \| (\d+) \| ([\d.]+) \|$", text, re.MULTILINE)
    told = {
        name: (int(elements), int(size), float(bits))
        for names, elements, size, bits in rows
        for name in re.findall(r"\w+", names)
    }

    assert set(told) == set(STOCK_TYPES)
    for name, (elements, size_bytes, bits) in told.items():
        assert KVType(name).block_elements == elements
        assert KVType(name).row_bytes(elements) == size_bytes
        assert bits == size_bytes * 8 / elements


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_links_resolve(document: Path) -> None:
    """A relative link leads to a file, and its fragment to a heading of it."""
    text = re.sub(r"^```.*?^```$", "", document.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\((?!\w+:)([^)\s]+)\)", text)

    for link in links:
        path, _, fragment = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), f"{_name(document)}: {link}"
        if fragment:
            assert fragment in _anchors(target), f"{_name(document)}: {link}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_toml_of_a_document_decodes(document: Path) -> None:
    """Each TOML block is a model's file that kvsup takes, or a host's if it names no model."""
    for block in _blocks(document.read_text("utf-8"), "toml"):
        assert _problems_of(block, is_host="model" not in tomli.loads(block)) == [], block


@pytest.mark.parametrize("example", EXAMPLES, ids=_name)
def test_example_decodes_and_names_its_schema(example: Path) -> None:
    """Each file of configs/ and configs/examples/ is right and known to editors."""
    text = example.read_text("utf-8")
    schema = re.match(r"#:schema (\S+)\n", text)

    assert schema
    assert (example.parent / schema[1]).is_file()
    assert _problems_of(text, is_host=example.name == HOST_FILE) == []


def test_example_of_the_host_shows_every_key() -> None:
    """configs/examples/kvsup.toml holds each key of HostConfig."""
    table = tomli.loads((ROOT / "configs/examples" / HOST_FILE).read_text("utf-8"))

    assert set(table) == set(host_schema()["properties"])


def test_toml_of_the_readme_is_the_demo_configuration() -> None:
    """What the front page shows is what scripts/run serves, less options."""
    (block,) = _blocks((ROOT / "README.md").read_text("utf-8"), "toml")
    shown, served = tomli.loads(block), tomli.loads((ROOT / "configs/smollm2.toml").read_text())

    del served["variants"]["agent"]["options"]

    assert shown == served


@pytest.mark.parametrize("decision", sorted((DOCS / "decisions").glob("*.md")), ids=_name)
def test_decision_is_short_and_has_its_four_parts(decision: Path) -> None:
    """A decision says context, decision, cost and what would change our mind, in 40 lines."""
    text = decision.read_text("utf-8")
    parts = ["Context", "Decision", "What it costs", "What would change our mind"]

    assert text.startswith(f"# {decision.name[:4]}: ")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == parts
    assert len(text.splitlines()) <= 40


def _architecture() -> str:
    return (DOCS / "architecture.md").read_text("utf-8")


def _configuration() -> str:
    return (DOCS / "configuration.md").read_text("utf-8")


def _operations() -> str:
    return (DOCS / "operations.md").read_text("utf-8")


def _anchors(document: Path) -> set[str]:
    """Return the fragments of a document's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text("utf-8"), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }
