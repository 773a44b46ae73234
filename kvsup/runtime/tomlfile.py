"""Read one TOML file, or say what is wrong with it."""

import os
import re
import shlex
import stat
from pathlib import Path

import tomli

from kvsup.decode import Source
from kvsup.errors import Problem


def read_toml(path: Path, shown: str, *, is_secret: bool = False) -> Source | Problem:
    """Return the file at ``path``, parsed, or the problem that it cannot be.

    Args:
        path: the file.
        shown: its path as problems tell it.
        is_secret: refuse it where others than its owner may read or write it.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if is_secret and mode & 0o077:
                mend = f"chmod 600 {shlex.quote(shown)}"
                return Problem(shown, None, "", f"is open to others (mode {mode:04o}); run {mend}")
            text = file.read()
        return Source(shown, tomli.loads(text), text)
    except tomli.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        return Problem(shown, int(line[1]) if line else None, "", f"is no TOML: {error}")
    except RecursionError:
        return Problem(shown, None, "", "is no TOML that can be read: it nests too deep")
    except (OSError, ValueError) as error:  # not UTF-8, or a path with a zero byte
        return Problem(shown, None, "", f"cannot be read: {error}")
