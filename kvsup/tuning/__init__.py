"""Measures KV pairs on a model and machine: their losses, their speeds, their greedy answers."""
