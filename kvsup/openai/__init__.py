"""Everything kvsup knows about OpenAI's API beyond what llama-server does. Pure."""
