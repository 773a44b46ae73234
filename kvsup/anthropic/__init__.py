"""Everything kvsup knows about Anthropic's API beyond what llama-server does. Pure."""
