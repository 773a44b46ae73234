"""Writes what a stored run says into the documents, between their markers, and draws it.

    bench/publish [RUN.json]

A block begins with ``<!-- bench: NAME -->`` and ends with ``<!-- /bench -->``; ``report.BLOCKS``
has the names. A run that is given becomes the stored one, ``bench/baseline.json``.
"""

import argparse
import re
import shutil
from pathlib import Path

from bench.check import BASELINE
from bench.plot import drawn
from bench.record import Run, read
from bench.report import BLOCKS

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "performance.md")
PICTURE = ROOT / "docs" / "images" / "bench.svg"
_BLOCK = re.compile(r"(<!-- bench: ([a-z-]+) -->\n).*?(<!-- /bench -->)", re.DOTALL)


def names(text: str) -> list[str]:
    """Return the name of each block of a document."""
    return [found[2] for found in _BLOCK.finditer(text)]


def filled(text: str, run: Run) -> str:
    """Return a document with each block as ``run`` has it.

    Raises:
        KeyError: no block has this name.
    """
    return _BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found[2]](run)}\n{found[3]}", text)


def main() -> None:
    """Write all documents and the picture."""
    parser = argparse.ArgumentParser(
        prog="bench/publish", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("run", type=Path, nargs="?", default=BASELINE)
    path = parser.parse_args().run
    run = read(path)
    if path.resolve() != BASELINE:
        shutil.copyfile(path, BASELINE)
    for document in DOCUMENTS:
        document.write_text(filled(document.read_text("utf-8"), run), "utf-8")
    PICTURE.write_text(drawn(run), "utf-8")


if __name__ == "__main__":
    main()
