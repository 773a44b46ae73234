"""``kvsup doctor``: what is there, what is missing, and what to do about it."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import typer

from kvsup import __version__
from kvsup.cli.client import base_url
from kvsup.environment import ignored_variables
from kvsup.errors import ConfigError
from kvsup.runtime import paths
from kvsup.runtime.binaries import default_binary, probe
from kvsup.runtime.configdir import read_configuration
from kvsup.units import format_bytes

Finding = tuple[str, bool, str]
"""What was looked at, whether it is well, and what was found."""


def examine(config_dir: Path | None, *, as_json: bool) -> bool:
    """Print every finding; return whether all is well."""
    findings = [("kvsup", True, __version__), *_binary(), *_configuration(config_dir), *_host()]
    if as_json:
        rows = [{"what": what, "well": well, "found": found} for what, well, found in findings]
        typer.echo(json.dumps(rows))
    else:
        for what, well, found in findings:
            typer.echo(f"{'ok ' if well else 'BAD'} {what}: {found}")
    return all(well for _, well, _ in findings)


def _binary() -> Iterator[Finding]:
    path = default_binary(paths.cache_dir())
    if path is None:
        yield "llama-server", False, "none found; run kvsup setup"
        return
    try:
        binary = probe(path, state=paths.state_dir(None), inherited=os.environ)
    except ValueError as error:
        yield "llama-server", False, str(error)
        return
    yield "llama-server", True, f"{binary.path} ({binary.version}, {binary.label})"
    yield "KV cache types", True, ", ".join(binary.kv_types)
    devices = [
        f"{d.name} {d.description}, {format_bytes(d.free_bytes)} free" for d in binary.devices
    ]
    yield "devices", True, "; ".join(devices) or "CPU only"


def _configuration(argument: Path | None) -> Iterator[Finding]:
    folder = paths.config_dir(str(argument) if argument else None)
    try:
        configuration = read_configuration(folder, os.environ)
    except ConfigError as error:
        for line in str(error).splitlines():
            yield "configuration", False, line
        return
    names = ", ".join(plan.name for plan in configuration.plans)
    yield "configuration", True, f"{folder}: {names}"
    yield "state folder", True, str(configuration.state_dir)


def _host() -> Iterator[Finding]:
    url = base_url()
    address, _, port = url.removeprefix("http://").rpartition(":")
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe_socket:
        answers = probe_socket.connect_ex((address.strip("[]"), int(port))) == 0
    yield "address", True, f"{url}, {'something listens there' if answers else 'free'}"
    if paths.LLAMA_CONFIG.exists():
        word = "is read by every llama-server; remove from it what kvsup's files do not want"
        yield "llama.cpp's own file", False, f"{paths.LLAMA_CONFIG} {word}"
    for name, word in ignored_variables(os.environ).items():
        yield "ignored variable", True, f"{name}: {word}"
    for name in sorted(os.environ):
        if name.startswith(("LLAMA_ARG_", "AIP_")):
            yield "ignored variable", True, f"{name}: kvsup's children do not inherit it"
