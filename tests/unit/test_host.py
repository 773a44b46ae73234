"""What the machine tells of its disks."""

from pathlib import Path

import pytest

from kvsup.runtime.host import is_network_type, is_on_network


@pytest.mark.parametrize("name", ["nfs4", "cifs", "smbfs", "fuse.sshfs", "9p", "fuse.rclone"])
def test_type_of_a_network_disk_is_known(name: str) -> None:
    """Linux's and macOS's names."""
    assert is_network_type(name)


@pytest.mark.parametrize("name", ["ext4", "xfs", "btrfs", "zfs", "apfs", "tmpfs", "overlay", ""])
def test_type_of_this_machines_disk_is_none(name: str) -> None:
    """Also one that is not told."""
    assert not is_network_type(name)


def test_folder_that_is_not_there_yet_lies_on_its_parents_disk(tmp_path: Path) -> None:
    """It is asked before it is made."""
    assert not is_on_network(tmp_path / "some" / "where")
