"""Read what the disk says of a model's weights: headers, sizes, and whether files have changed."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from kvsup.checks import Finding
from kvsup.config import ModelConfig
from kvsup.gguf import GGUFError, Metadata, split_paths
from kvsup.modelfile import ModelFile
from kvsup.modelshape import shape_of
from kvsup.runtime.filestamps import stamp_of
from kvsup.runtime.headers import read_header


def read_model_file(model: ModelConfig) -> tuple[ModelFile | None, list[Finding]]:
    """Return the weights that ``model`` names with absolute paths, or what is wrong with them."""
    beside = {"mmproj": model.mmproj, "template": model.template}
    findings = [
        (key, f"no such file: {named}")
        for key, named in beside.items()
        if named and not _is_file(Path(named))
    ]
    path = Path(model.model)
    if not _is_file(path):
        found = f"no such file: {path}; write the path of a GGUF file"
        return None, [*findings, ("model", found)]
    try:
        parts = split_paths(path)
        headers = [metadata_of(part) for part in parts]
        shape = shape_of(headers[0])
        for part, header in zip(parts, headers, strict=True):
            _check_length(part, header)
    except (GGUFError, OSError) as error:
        return None, [*findings, ("model", f"{path}: {error}")]
    if findings:
        return None, findings
    mmproj = Path(model.mmproj) if model.mmproj else None
    try:
        projector = metadata_of(mmproj) if mmproj else None
    except (GGUFError, OSError) as error:
        return None, [("mmproj", f"{mmproj}: {error}")]
    draft, findings = _draft(model)
    adapters = [Path(named) for named in model.adapters]
    findings += _wrong_adapters(adapters, headers[0].architecture)
    if findings:
        return None, findings
    weights = [*parts, *((mmproj,) if mmproj else ()), *adapters]
    others = [*(Path(named) for named in beside.values() if named), *adapters]
    file = ModelFile(
        metadata=headers[0],
        shape=shape,
        n_params=sum(header.n_params for header in headers),
        size_bytes=sum(weight.stat().st_size for weight in weights),
        modified_ns=path.stat().st_mtime_ns,
        stamp=";".join([*map(_stamp, (*parts, *others)), *([draft.stamp] if draft else [])]),
        parts=(*((str(p), _stamp(p)) for p in parts), *(draft.parts if draft else ())),
        template=_template(model, headers[0]),
        projector=projector,
        tensors=tuple(tensor for header in headers for tensor in header.tensors),
        has_fim_tokens=read_header(parts[0], _stamp(parts[0])).has_fim_tokens,
        draft=draft,
    )
    return file, []


def metadata_of(path: Path) -> Metadata:
    """Return the header of one file, read once while it stays the same.

    Raises:
        GGUFError: the file is no usable GGUF.
        OSError: the file cannot be read.
    """
    return read_header(path, _stamp(path)).metadata


def _check_length(part: Path, header: Metadata) -> None:
    """Raise GGUFError where the file ends within its tensors: a download that broke off."""
    size_bytes, least_bytes = part.stat().st_size, header.header_bytes + (header.tensor_bytes or 0)
    if size_bytes < least_bytes:
        raise GGUFError(
            f"{part.name} has {size_bytes} bytes, its tensors alone end behind {least_bytes}: it is"
            " truncated; fetch it again"
        )


def _draft(model: ModelConfig) -> tuple[ModelFile | None, list[Finding]]:
    if model.draft_model is None:
        return None, []
    file, findings = read_model_file(ModelConfig(model=model.draft_model))
    return file, [("draft_model", message) for _, message in findings]


def _wrong_adapters(adapters: Iterable[Path], architecture: str) -> Iterator[Finding]:
    """Yield what is wrong with files that are to be applied to weights of ``architecture``."""
    for path in adapters:
        if wrong := _why_no_adapter(path, architecture):
            yield "adapters", wrong


def _why_no_adapter(path: Path, architecture: str) -> str:
    """Return why llama-server would not apply a file (llama-adapter.cpp, b11434); empty if it does.

    It parts the names of several by commas.
    """
    if "," in str(path):
        return f"{path} has a comma in its name, which parts those of several; rename it"
    if not _is_file(path):
        return f"no such file: {path}; write the path of a LoRA as a GGUF file"
    try:
        found = metadata_of(path)
        _check_length(path, found)
    except (GGUFError, OSError) as error:
        return f"{path}: {error}"
    if found.text("general.type") != "adapter" or found.text("adapter.type") != "lora":
        return f"{path} is no LoRA; one is made by convert_lora_to_gguf.py of llama.cpp"
    if found.architecture != architecture:
        return (
            f"{path} is made for {found.architecture} models, and this one is {architecture};"
            " name one that was made for it"
        )
    return ""


def _template(model: ModelConfig, header: Metadata) -> str | None:
    if model.template is None:
        return header.text("tokenizer.chat_template")
    return Path(model.template).read_text("utf-8", "replace")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or with a NUL
        return False


def _stamp(path: Path) -> str:
    return str(stamp_of(path))
