"""Everything kvsup knows about llama-server. Pure: bytes and dicts in, values out."""
