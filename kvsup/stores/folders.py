"""Which GGUF files of a folder are models, what they are called, and what goes with them.

Pure: the files' names come in. The names are those that llama.cpp's tools and the repositories of
Hugging Face give: ``STEM-Q4_K_M.gguf``, ``STEM-Q4_K_M-00001-of-00003.gguf``, ``mmproj-STEM.gguf``.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePath

_SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})", re.DOTALL)
_QUANTIZATION = re.compile(
    r"(?:^|[-._])(?P<tag>(?:UD[-_])?(?:I?Q[1-9](?:_[A-Z0-9]+)*|TQ[12]_0|MXFP4(?:_[A-Z]+)*|B?F16|F32))$",
    re.IGNORECASE | re.ASCII,
)
_BESIDE = ("mmproj", "imatrix")
_PREFERRED = ("Q4_K_M", "Q8_0")
"""What llama-server's own ``-hf`` takes where no quantization is named (arg.cpp, b11434)."""

_PROJECTOR_TAGS = ("F16", "BF16", "Q8_0", "F32")


def stem_of(file: PurePath) -> str:
    """Return the name of a file without suffix and without what says which part it is."""
    match = _SPLIT.fullmatch(file.stem)
    return match["stem"] if match else file.stem


def parts_of(file: PurePath, files: Collection[PurePath]) -> list[PurePath]:
    """Return the parts of the model whose first is ``file``, in their order; else it alone.

    Raises:
        ValueError: a part is not among ``files``.
    """
    match = _SPLIT.fullmatch(file.stem)
    if match is None:
        return [file]
    stem, count = match["stem"], match["count"]
    parts = []
    for number in range(1, int(count) + 1):
        part = file.with_name(f"{stem}-{number:05}-of-{count}{file.suffix}")
        if part not in files:
            raise ValueError(
                f"part {number} of {int(count)} is not there: {part}; it may be on its way, so try"
                " again later"
            )
        parts.append(part)
    return parts


def quantization_of(file: PurePath) -> str:
    """Return the quantization that a file's name ends with, in capitals; empty where none does."""
    match = _QUANTIZATION.search(stem_of(file))
    return match["tag"].upper() if match else ""


def is_model(file: PurePath) -> bool:
    """Say whether a file is one that a model is named by: no projector, no later part."""
    if file.suffix != ".gguf" or file.name.startswith("."):
        return False
    match = _SPLIT.fullmatch(file.stem)
    return not any(word in file.name.lower() for word in _BESIDE) and (
        match is None or int(match["number"]) == 1
    )


def tagged(files: Iterable[PurePath]) -> dict[str, PurePath]:
    """Return the models of one repository by their tags: quantizations where those tell them apart.

    Two of one quantization are told apart by their stems, in the order of the files.
    """
    models = [file for file in files if is_model(file)]
    tags = [quantization_of(file) for file in models]
    found: dict[str, PurePath] = {}
    for file, tag in zip(models, tags, strict=True):
        found.setdefault(tag if tag and tags.count(tag) == 1 else stem_of(file), file)
    return found


def chosen(tags: Mapping[str, PurePath], tag: str) -> str:
    """Return which of ``tags`` a person means by ``tag``: that, a file's, or if empty the usual.

    Raises:
        ValueError: there is none, or without a tag there are several.
    """
    if not tags:
        raise ValueError("no GGUF file of it is there")
    spellings = {file.name.lower(): known for known, file in tags.items()}
    spellings |= {known.lower(): known for known in tags}
    if tag:
        if tag.lower() in spellings:
            return spellings[tag.lower()]
        raise ValueError(f"no {tag} of it is there, only {', '.join(sorted(tags))}")
    for usual in _PREFERRED:
        if usual in tags:
            return usual
    if len(tags) == 1:
        return next(iter(tags))
    raise ValueError(f"several files of it are there; add one of :{', :'.join(sorted(tags))}")


def projector_of(files: Iterable[PurePath], model: PurePath) -> PurePath | None:
    """Return the projector for images or audio that goes with ``model``, if any does.

    It lies in the same folder, or in one above where a repository has folders by quantization.
    """
    folders = list(model.parents)
    found = [
        file
        for file in files
        if file.parent in folders and file.suffix == ".gguf" and "mmproj" in file.name.lower()
    ]
    order = {tag: place for place, tag in enumerate(_PROJECTOR_TAGS)}

    def rank(file: PurePath) -> tuple[int, int, PurePath]:
        return folders.index(file.parent), order.get(quantization_of(file), len(order)), file

    return min(found, key=rank, default=None)
