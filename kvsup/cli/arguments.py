"""The arguments that commands share, and what they name."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvsup.errors import KvsupError

if TYPE_CHECKING:
    from kvsup.plan import Plan
    from kvsup.runtime.configdir import Configuration
    from kvsup.runtime.remembered import Remembered

ConfigDir = Annotated[
    Path | None,
    typer.Argument(
        help="Folder of TOML files; default: $KVSUP_CONFIG_DIR, ./configs, ~/.config/kvsup.",
        show_default=False,
    ),
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="Folder of TOML files.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Model = Annotated[str, typer.Argument(help="Name of a model.", show_default=False)]
ModelOrFile = Annotated[
    str, typer.Argument(help="Name of a model, or path of a GGUF file.", show_default=False)
]


def configuration_of(folder: Path | None) -> "Configuration":
    """Return the configuration of a folder, or of the one that counts where none is named."""
    from kvsup.runtime.configdir import read_configuration
    from kvsup.runtime.paths import config_dir

    return read_configuration(config_dir(str(folder) if folder else None), os.environ)


def plan_of(name: str, configuration: "Configuration") -> "Plan":
    """Return the plan of a model, by its name or an alias.

    Raises:
        KvsupError: there is none; the message says which there are.
    """
    plan = find_plan(name, configuration)
    if plan is not None:
        return plan
    names = ", ".join(plan.name for plan in configuration.plans)
    raise KvsupError(f"no model {name!r}; there are {names}")


def find_plan(name: str, configuration: "Configuration") -> "Plan | None":
    """Return the plan of a model, by its name or an alias; None if there is none."""
    from kvsup.ollama.names import is_same_name

    for plan in configuration.plans:
        if any(is_same_name(name, own) for own in (plan.name, *plan.model.aliases)):
            return plan
    return None


def plan_or_file(
    model: str, folder: Path | None
) -> tuple["Plan", "Remembered", "Configuration | None"]:
    """Return the plan of a configured model or of a GGUF file, and where measurements are kept.

    The third is the configuration of the model; a mere file has none.
    """
    from kvsup.runtime import paths
    from kvsup.runtime.remembered import Remembered

    fetched = model.removeprefix(paths.FETCHED)
    path = Path(model).expanduser()
    if fetched != model:
        path = paths.cache_dir() / "models" / fetched
    if path.suffix.lower() == ".gguf":
        from kvsup.runtime.adhoc import plan_of_file

        return plan_of_file(path, os.environ), Remembered(paths.state_dir(None)), None
    configuration = configuration_of(folder)
    plan = plan_of(model, configuration)
    return plan, Remembered(configuration.state_dir), configuration
