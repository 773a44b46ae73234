"""Everything kvsup knows about Ollama's API. Pure: bytes and dicts in, values out."""
