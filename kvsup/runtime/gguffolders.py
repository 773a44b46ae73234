"""A plain folder of GGUF files, as LM Studio and older builds of llama.cpp keep them."""

import re
from collections.abc import Iterator
from pathlib import Path

from kvsup.runtime.storefiles import files_in, inside, walk
from kvsup.stores.folders import is_model, projector_of, stem_of
from kvsup.stores.stored import Stored

_NO_NAME = re.compile(r"[^A-Za-z0-9_.-]+")
_MAX_NAME_CHARACTERS = 80


class GGUFFolder:
    """A folder with models in it, and in the folders in it; nothing of it is ever changed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folders(self) -> Iterator[Path]:
        """Yield each folder in which a model may appear."""
        yield from walk(self.root)

    def files(self) -> list[Path]:
        """Return each file that is a model by its name."""
        return [p for folder in walk(self.root) for p in files_in(folder) if is_model(p)]

    def stored(self, path: Path) -> Stored:
        """Return the model of a file, with the projector that lies beside it in a folder of theirs.

        Raises:
            ValueError: it leads out of the folder.
        """
        inside(path, self.root)
        beside = [] if path.parent == self.root else files_in(path.parent)
        projector = projector_of(beside, path)
        if projector is not None:
            inside(self.root / projector, self.root)
        name = _NO_NAME.sub("-", stem_of(path)).strip("-._")[:_MAX_NAME_CHARACTERS]
        return Stored(
            reference=str(path),
            name=name,
            weights=str(path),
            table={} if projector is None else {"mmproj": str(projector)},
        )
