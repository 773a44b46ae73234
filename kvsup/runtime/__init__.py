"""Processes, sockets and files: the only layer that waits."""
