"""How much of a model's weights is read into the page cache while it waits for its place."""


def readable_bytes(
    *, file_bytes: int, available_bytes: int, headroom_bytes: int, kept_bytes: int
) -> int:
    """Return how many bytes, from the front of the files, may be read ahead of a load.

    What is read pushes nothing out that is in use: the operating system counts the mapped weights
    of what is loaded as memory to be had, and to read into it would make a model that still serves
    read its weights again. Where not all fits, the front is worth as much a byte as the whole.

    Args:
        file_bytes: the files that the load will read.
        available_bytes: RAM to be had without swapping, page cache included.
        headroom_bytes: what others are left.
        kept_bytes: mapped weights of those that serve on, or serve still.
    """
    return max(0, min(file_bytes, available_bytes - headroom_bytes - kept_bytes))
