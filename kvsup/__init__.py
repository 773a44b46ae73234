"""kvsup: a supervisor for llama.cpp's llama-server that knows KV cache types."""

__version__ = "0.1.0"
