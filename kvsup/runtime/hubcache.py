"""Hugging Face's cache, read as it is: ``models--ORG--REPO/snapshots/REVISION/…``.

The files of a snapshot are links into ``blobs`` of the same repository, or files where the system
has no links (huggingface_hub's guide to its cache). llama-server's own ``-hf`` keeps its files
there, too (b11434).
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePath

from kvsup.runtime.storefiles import files_in, folders_in, inside, read_small, walk
from kvsup.stores.folders import chosen, projector_of, tagged
from kvsup.stores.manifest import Blob
from kvsup.stores.references import HUB, HUB_HOST, HubName, parse_reference
from kvsup.stores.stored import Stored

_PREFIX = "models--"
_MAX_REVISION_BYTES = 256


class HubCache:
    """One such folder, of which nothing is ever changed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def is_there(self) -> bool:
        """Say whether there is such a folder that can be read."""
        return bool(folders_in(self.root))

    def folders(self) -> Iterator[Path]:
        """Yield each folder in which a model may appear."""
        yield self.root
        for repository in self._repositories():
            for snapshot in _snapshots(repository):
                yield from (snapshot.parent, *walk(snapshot))

    def names(self) -> list[HubName]:
        """Return the names of all models."""
        found = []
        for folder in self._repositories():
            repository = _repository_of(folder)
            try:
                parse_reference(f"{HUB}{repository}")
            except ValueError:
                continue
            found += [HubName(repository, tag) for tag in _models(folder)]
        return found

    def file_of(self, blob: Blob) -> Path | None:
        """Return where a file lies, None where it is of no repository.

        Large files are called by their SHA-256 (huggingface_hub's guide to its cache).
        """
        for folder in self._repositories():
            with suppress(ValueError, OSError):
                path = inside(folder / "blobs" / blob.digest, folder)
                if path.stat().st_size == blob.size_bytes:
                    return path
        return None

    def stored(self, name: HubName) -> Stored:
        """Return a model; where its tag is left open, ``stores.folders.chosen`` says which.

        Raises:
            ValueError: there is none.
        """
        folder = self._find(name.repository)
        if folder is None:
            known = ", ".join(sorted({n.repository for n in self.names()})) or "no GGUF at all"
            raise ValueError(f"no {name.repository} in {self.root}; there is {known}")
        models = _models(folder)
        try:
            tag = chosen({tag: file for tag, (_, file, _) in models.items()}, name.tag)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None
        snapshot, file, beside = models[tag]
        repository = _repository_of(folder)
        projector = projector_of(beside, file)
        return Stored(
            reference=f"{HUB}{repository}:{tag}",
            name=f"{HUB_HOST}/{repository}:{tag}" if "/" in repository else f"{repository}:{tag}",
            weights=str(snapshot / file),
            table={} if projector is None else {"mmproj": str(snapshot / projector)},
        )

    def _repositories(self) -> list[Path]:
        return [folder for folder in folders_in(self.root) if folder.name.startswith(_PREFIX)]

    def _find(self, repository: str) -> Path | None:
        wanted = f"{_PREFIX}{repository.replace('/', '--')}".lower()
        return next((f for f in self._repositories() if f.name.lower() == wanted), None)


def _repository_of(folder: Path) -> str:
    return folder.name.removeprefix(_PREFIX).replace("--", "/")


def _models(folder: Path) -> dict[str, tuple[Path, PurePath, list[PurePath]]]:
    """Return the models of a repository by tag: snapshot, file, and all GGUF files of it."""
    found: dict[str, tuple[Path, PurePath, list[PurePath]]] = {}
    for snapshot in _snapshots(folder):
        files = list(_files(folder, snapshot))
        for tag, file in tagged(files).items():
            found.setdefault(tag, (snapshot, file, files))
    return found


def _snapshots(folder: Path) -> list[Path]:
    """Return the snapshots of a repository: that of its main branch, then from the newest on."""
    try:
        main = read_small(folder / "refs" / "main", folder, max_bytes=_MAX_REVISION_BYTES).strip()
    except ValueError:
        main = b""
    snapshots = sorted(folders_in(folder / "snapshots"), key=_modified_ns, reverse=True)
    return sorted(snapshots, key=lambda snapshot: snapshot.name.encode() != main)


def _files(folder: Path, snapshot: Path) -> Iterator[PurePath]:
    """Yield the GGUF files of a snapshot that are whole, as far as links tell, by their paths."""
    for inner in walk(snapshot):
        for path in files_in(inner):
            if path.suffix == ".gguf":
                with suppress(ValueError):
                    inside(path, folder)
                    yield path.relative_to(snapshot)


def _modified_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
