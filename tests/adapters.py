"""LoRAs for tiny scripted models, of which it is known what they make the model say."""

from pathlib import Path

import gguf
import numpy as np

_LOGIT = 1000.0
"""More than what the script leads by."""


def make_lora(
    path: Path, model: Path, *, after: str, says: str, architecture: str = "llama"
) -> Path:
    """Write a LoRA with which a model of ``make_scripted`` says one piece after another.

    Args:
        path: of the file.
        model: that it is made for.
        after: the piece behind which the model says another than its script; "": at the beginning.
        says: that piece of its script.
        architecture: what the file claims to be made for.
    """
    read = gguf.GGUFReader(model)
    field = read.get_field("tokenizer.ggml.tokens")
    assert field is not None
    tokens: list[str] = field.contents()
    tensors = {tensor.name: tensor.data for tensor in read.tensors}
    embedding = tensors["token_embd.weight"]
    place = int(np.argmax(embedding[tokens.index(after or "<s>"), :-1]))
    seen = np.zeros((1, embedding.shape[1]), np.float32)
    seen[0, place] = 1
    said = np.zeros((len(tokens), 1), np.float32)
    said[tokens.index(says)] = _LOGIT

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 1.0)
    writer.add_tensor("output.weight.lora_a", seen)
    writer.add_tensor("output.weight.lora_b", said)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
