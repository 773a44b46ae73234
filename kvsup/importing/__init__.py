"""Configurations of other programs, read into kvsup's keys; what has no equivalent is told."""
