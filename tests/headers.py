"""Headers of models as ``Metadata``, with the keys that decide their memory."""

from collections.abc import Mapping

from kvsup.gguf import Metadata, Value
from kvsup.modelshape import ModelShape, shape_of

SMOLLM2: dict[str, Value] = {
    "block_count": 30,
    "context_length": 8192,
    "embedding_length": 576,
    "feed_forward_length": 1536,
    "attention.head_count": 9,
    "attention.head_count_kv": 3,
    "vocab_size": 49152,
}
GEMMA3: dict[str, Value] = {
    "block_count": 18,
    "context_length": 32768,
    "embedding_length": 640,
    "attention.head_count": 4,
    "attention.head_count_kv": 1,
    "attention.key_length": 256,
    "attention.value_length": 256,
    "attention.sliding_window": 512,
}

SSM: dict[str, Value] = {
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 128,
    "ssm.state_size": 16,
    "ssm.group_count": 2,
}
KV_IN_TWO_OF_SIX: dict[str, Value] = {"attention.head_count_kv": (0, 0, 3, 0, 0, 3)}
MLA: dict[str, Value] = {
    "attention.head_count_kv": 1,
    "attention.key_length": 576,
    "attention.value_length": 512,
    "attention.key_length_mla": 192,
    "attention.value_length_mla": 128,
}


def shape_from(architecture: str, keys: Mapping[str, Value]) -> ModelShape:
    """Return the shape of a model of ``architecture`` whose header has these keys."""
    values: dict[str, Value] = {"general.architecture": architecture}
    values |= {f"{architecture}.{name}": value for name, value in keys.items()}
    return shape_of(Metadata(3, values, ()))
