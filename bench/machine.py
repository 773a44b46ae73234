"""What the numbers were measured on."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

from kvsup import __version__
from kvsup.runtime.binaries import default_binary
from kvsup.runtime.paths import cache_dir

PACKAGES = ("uvicorn", "uvloop", "httptools", "starlette", "msgspec", "anyio")


def processor() -> str:
    """Return the processor's name as Linux tells it, elsewhere its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def facts() -> dict[str, str]:
    """Return each fact by its name."""
    server = Path(default_binary(cache_dir()) or "none")
    load = ", ".join(f"{n:.1f}" for n in os.getloadavg())
    return {
        "processor": f"{processor()}, {os.cpu_count()} cores, load {load}",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "kvsup": __version__,
        "packages": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
        "llama-server": server.resolve().parent.name,
    }
