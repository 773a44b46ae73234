"""The command line: parses, asks, prints; it holds no default and no policy."""

from kvsup.cli.main import main

__all__ = ["main"]
