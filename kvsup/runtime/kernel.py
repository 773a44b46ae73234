"""What the kernel tells of memory that ran out."""

from pathlib import Path

_VMSTAT = Path("/proc/vmstat")


def n_oom_kills() -> int:
    """Return how many processes this kernel has killed for want of memory since it booted.

    0 where it does not tell, as on macOS. Source: ``oom_kill`` in proc_vmstat(5), Linux 4.13.
    """
    try:
        fields = dict(line.split() for line in _VMSTAT.read_text().splitlines())
        return int(fields["oom_kill"])
    except (OSError, KeyError, ValueError):
        return 0
