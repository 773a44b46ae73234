"""A configuration folder as a person would write it, for tests that read it."""

import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest

from kvsup.errors import ConfigError
from kvsup.runtime.configdir import Configuration, read_configuration


class ConfigFolder:
    """An empty folder with the host's settings; problems in it are told below ``configs/``."""

    def __init__(self, *, llama_server: Path, state: Path) -> None:
        self.path = Path("configs")
        self.path.mkdir()
        self._settings = f'llama_server = "{llama_server}"\nstate_dir = "{state}"\n'

    def read(
        self, *, host: str = "", environ: Mapping[str, str] | None = None, **files: str
    ) -> Configuration:
        """Write files by their stems, ``host`` from line 3 of kvsup.toml, and read the folder."""
        (self.path / "kvsup.toml").write_text(self._settings + textwrap.dedent(host))
        for stem, text in files.items():
            self.write(stem, text)
        return read_configuration(self.path, environ or {})

    def write(self, stem: str, text: str) -> None:
        """Write the file of a model."""
        (self.path / f"{stem}.toml").write_text(textwrap.dedent(text))

    def problems(
        self, *, host: str = "", environ: Mapping[str, str] | None = None, **files: str
    ) -> list[str]:
        """Return the lines of the error that reading must raise."""
        with pytest.raises(ConfigError) as caught:
            self.read(host=host, environ=environ, **files)
        return str(caught.value).splitlines()
