"""A folder with one model, for tests that copy and delete."""

from pathlib import Path

from kvsup.ollama.names import lookup_keys
from kvsup.plan import Plan
from kvsup.runtime.catalogue import copy_model, delete_model
from tests.runtime.folders import ConfigFolder

QWEN = """\
#:schema ../schemas/model.schema.json
# The model of this house.
model = "{path}"  # fetched by hand
# So that clients find it.
aliases = ["small", "tiny"]
# K and V apart.
kv_cache_type = "q8_0:q5_1"
preload = true
pin = true

# Cooler than its own default.
[options]
temperature = 0.5
top_k = 20  # few

# For agents.
[variants.agent]
kv_cache_type = "f16"
num_ctx = 512
aliases = ["scout"]
preload = true

[variants.agent.options]
temperature = 0.2

# For long texts.
[variants.long]
num_ctx = 1024
"""


class Catalogue:
    """A folder with ``qwen.toml``, served by the code that serves a person's."""

    def __init__(self, folder: ConfigFolder, smollm2: Path, trash: Path) -> None:
        self._folder = folder
        self.path = folder.path
        self.trash = trash
        self.text = QWEN.format(path=smollm2)
        self.other = f'model = "{smollm2}"\nnum_ctx = 300\n'
        folder.write("qwen", self.text)

    def plans(self) -> dict[str, Plan]:
        """Read the folder, which must be right; return each plan by its name."""
        return {plan.name: plan for plan in self._folder.read().plans}

    def find(self, name: str) -> Plan | None:
        """Return the model that has a name or an alias."""
        wanted = lookup_keys(name)[:1]
        for plan in self.plans().values():
            if wanted in {lookup_keys(own)[:1] for own in (plan.name, *plan.model.aliases)}:
                return plan
        return None

    def copy(self, source: str, destination: str) -> Path:
        """Copy as the API does."""
        plan = self.find(source)
        assert plan is not None
        existing = self.find(destination)
        return copy_model(self.path, plan, destination, existing=existing, trash=self.trash)

    def delete(self, name: str) -> None:
        """Delete as the API does."""
        plan = self.find(name)
        assert plan is not None
        delete_model(self.path, plan, name, trash=self.trash)

    def write(self, stem: str, text: str) -> None:
        """Write the file of a model."""
        self._folder.write(stem, text)

    def files(self) -> list[str]:
        """Return the names of all files in the folder, but the host's."""
        return sorted(path.name for path in self.path.iterdir() if path.name != "kvsup.toml")

    def kept(self) -> dict[str, str]:
        """Return what lies in the trash."""
        found = sorted(self.trash.iterdir()) if self.trash.exists() else []
        return {path.name: path.read_text() for path in found}
