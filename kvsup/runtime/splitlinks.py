"""Names for the parts of a split model that a store has by their digests.

llama-server finds the parts of a model by their names (llama_split_path of llama.h, b11434), so
they get links with such names, in kvsup's cache folder.
"""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from kvsup.runtime import paths


def linked(files: Sequence[Path]) -> Path:
    """Return the first part of a model; links are made where they are missing.

    Raises:
        ValueError: they cannot be made.
    """
    key = hashlib.sha256("\0".join(map(str, files)).encode()).hexdigest()[:32]
    folder = paths.cache_dir() / "parts" / key
    links = [folder / f"model-{n:05}-of-{len(files):05}.gguf" for n in range(1, len(files) + 1)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for link, file in zip(links, files, strict=True):
            with suppress(FileExistsError):
                link.symlink_to(file)
    except OSError as error:
        raise ValueError(f"{folder} cannot be made: {error.strerror}") from None
    return links[0]
