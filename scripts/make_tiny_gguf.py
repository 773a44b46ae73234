"""Write tiny GGUF models that a real llama-server loads, for tests that must know the answer.

``scripted`` is a chat model that says what it was told to say, ``embedding`` and ``rerank`` are
BERTs of one layer with random weights, ``vision`` and ``audio`` are projectors for a scripted
model. Names of keys and tensors are those of llama.cpp at b11434: ``src/llama-arch.cpp``,
``src/models/{llama,bert}.cpp``, ``tools/mtmd/clip.cpp``.
"""

import argparse
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]

END = ""
"""As a piece of a script: the end of one answer; what follows is for ``start_after``."""

TINY_TEXT = ("Tiny", " models", " say", " what", " they", " were", " told", ".")

AFTER_TOOLS = "</tool_response><|im_end|>\n<|im_start|>assistant\n"
"""For ``start_after``: the end of a prompt whose last message is a tool's; Qwen3's template too."""

WITHOUT_THOUGHT = "</think>\n\n"
"""For ``start_after``: the end of a prompt that asks not to think; Qwen3's template too."""

_START = "<|im_start|>"
_FIM = {"prefix": "<|fim_prefix|>", "suffix": "<|fim_suffix|>", "middle": "<|fim_middle|>"}
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_HEAD_DIMS = 64
_N_FEED_FORWARD = 32
_SCRIPT_LOGIT = 100.0
_END_LOGIT = 40.0
_JSON_LOGITS = {'"': 35, "}": 30, "]": 26, ":": 22, "{": 19, "[": 17, ",": 16, "0": 15}
"""What to say where a grammar forbids the script: close what is open, or open what must be."""

_BERT_WIDTH = _CLIP_WIDTH = 32
_IMAGE_PIXELS, _PATCH_PIXELS = 28, 14
_MEL_BINS, _AUDIO_POSITIONS, _AUDIO_STACK = 80, 1500, 60
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'-"


def chat_template(*, thinking: bool = False, tools: bool = False) -> str:
    """Return a Jinja chat template that llama.cpp takes as thinking, as calling tools, or both.

    Turns are ChatML's, thoughts stand between ``<think>`` and ``</think>``, calls as JSON between
    ``<tool_call>`` and ``</tool_call>``. With ``enable_thinking`` false the prompt ends in an empty
    thought.
    """
    listing, calls, thought, no_thought = "", "", "", ""
    result_start, result_end = "", ""
    if tools:
        listing = (
            "{% if tools %}<|im_start|>system\nTools:\n"
            "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
        )
        result_start = "{% if message.role == 'tool' %}<tool_response>\n{% endif %}"
        result_end = "{% if message.role == 'tool' %}</tool_response>{% endif %}"
        calls = (
            "{% for call in message.tool_calls or [] %}<tool_call>\n"
            '{"name": "{{ call.function.name }}", "arguments": '
            "{{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}"
        )
    if thinking:
        thought = (
            "{% if message.reasoning_content %}<think>\n"
            "{{ message.reasoning_content }}\n</think>\n\n{% endif %}"
        )
        no_thought = (
            "{% if enable_thinking is defined and not enable_thinking %}"
            "<think>\n\n</think>\n\n{% endif %}"
        )
    return (
        f"{listing}{{% for message in messages %}}<|im_start|>{{{{ message.role }}}}\n"
        f"{thought}{result_start}{{{{ message.content or '' }}}}{result_end}{calls}"
        f"<|im_end|>\n{{% endfor %}}"
        f"{{% if add_generation_prompt %}}<|im_start|>assistant\n{no_thought}{{% endif %}}"
    )


def make_scripted(
    path: Path,
    *,
    script: Sequence[str] = TINY_TEXT,
    template: str | None = None,
    start_after: Mapping[str, int] | None = None,
    eos: str = "<|im_end|>",
    n_ctx_train: int = 4096,
    fim: bool = False,
    head_dims: int = _HEAD_DIMS,
    part_tensors: int = 0,
) -> int:
    """Write a ``llama`` model whose next token depends on the last one only; return its width.

    After any token that is not of the script comes the first piece, after a piece the next one,
    after the last ``eos``. A text of ``start_after`` is one token of the vocabulary: a prompt that
    ends in it is answered from that index of the script, so the end of the last message or a
    closing tag can choose the answer. The script leads by a logit of 60 or more, so sampling is
    deterministic at any usual temperature. Under a JSON grammar every string is the script, or
    empty where that cannot stand in one, every number 0, and arrays and objects end as soon as they
    may; where it leaves several words open, temperature 0 takes the first by the alphabet. Any
    other text is one token a byte (a space too).

    The width (``llama.embedding_length``) is what a projector for this model must have. With
    ``part_tensors`` it is split into parts of so many tensors, ``STEM-00001-of-0000N.gguf``.

    Raises:
        ValueError: A piece occurs twice, or is a token that the vocabulary has anyway.
    """
    after = dict(start_after or {})
    tokens = _scripted_tokens(script, after, eos=eos, fim=fim)
    ids = {text: index for index, (text, _) in enumerate(tokens)}
    embedding, output = _transitions(ids, script, after, eos)
    width = embedding.shape[1]

    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=part_tensors)
    writer.add_name(path.stem)
    _add_shape(writer, n_ctx=n_ctx_train, width=width, n_feed_forward=_N_FEED_FORWARD)
    writer.add_key_length(head_dims)
    writer.add_value_length(head_dims)
    writer.add_rope_dimension_count(head_dims)
    writer.add_layer_norm_rms_eps(1e-6)
    _add_vocabulary(writer, "llama", tokens)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(ids[eos])
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    for place in _FIM if fim else ():
        writer.add_uint32(f"tokenizer.ggml.fim_{place[:3]}_token_id", ids[_FIM[place]])
    writer.add_chat_template(chat_template() if template is None else template)
    return _finish(writer, _scripted_tensors(embedding, output, head_dims), width)


def make_embedding(path: Path, *, n_ctx_train: int = 64) -> int:
    """Write a ``bert`` with mean pooling; return the length of its vectors."""
    return _make_bert(path, n_ctx_train, gguf.PoolingType.MEAN)


def make_rerank(path: Path, *, n_ctx_train: int = 64) -> int:
    """Write a ``bert`` with rank pooling and one score; return its width."""
    return _make_bert(path, n_ctx_train, gguf.PoolingType.RANK)


def make_vision(path: Path, *, width: int) -> int:
    """Write an image projector (LLaVA's ``mlp``) for a text model of that width.

    An image of any size becomes 4 tokens. Returns ``width``.
    """
    writer = _clip_writer(path, "vision", width)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_image_size(_IMAGE_PIXELS)
    writer.add_vision_patch_size(_PATCH_PIXELS)
    writer.add_vision_image_mean([0.5, 0.5, 0.5])
    writer.add_vision_image_std([0.5, 0.5, 0.5])
    n_patches = (_IMAGE_PIXELS // _PATCH_PIXELS) ** 2
    shapes = {
        "v.patch_embd.weight": (_CLIP_WIDTH, 3, _PATCH_PIXELS, _PATCH_PIXELS),
        "v.position_embd.weight": (n_patches, _CLIP_WIDTH),
        "mm.0.weight": (width, _CLIP_WIDTH),
        "mm.0.bias": (width,),
        "mm.2.weight": (width, width),
        "mm.2.bias": (width,),
        **_clip_layer("v"),
    }
    return _finish(writer, _random(shapes), width)


def make_audio(path: Path, *, width: int) -> int:
    """Write an audio projector (Whisper's encoder, ``voxtral``) for a text model of that width.

    A sound of 30 s or less becomes 25 tokens. Returns ``width``.
    """
    writer = _clip_writer(path, "audio", width)
    writer.add_clip_projector_type("voxtral")
    writer.add_uint32("clip.audio.num_mel_bins", _MEL_BINS)
    writer.add_uint32("clip.audio.projector.stack_factor", _AUDIO_STACK)
    shapes = {
        "a.conv1d.1.weight": (_CLIP_WIDTH, _MEL_BINS, 3),
        "a.conv1d.1.bias": (_CLIP_WIDTH, 1),
        "a.conv1d.2.weight": (_CLIP_WIDTH, _CLIP_WIDTH, 3),
        "a.conv1d.2.bias": (_CLIP_WIDTH, 1),
        "a.position_embd.weight": (_AUDIO_POSITIONS, _CLIP_WIDTH),
        "mm.a.mlp.1.weight": (_CLIP_WIDTH, _CLIP_WIDTH * _AUDIO_STACK),
        "mm.a.mlp.2.weight": (width, _CLIP_WIDTH),
        **_clip_layer("a"),
    }
    return _finish(writer, _random(shapes), width)


def _scripted_tokens(
    script: Sequence[str], starts: Iterable[str], *, eos: str, fim: bool
) -> list[tuple[str, gguf.TokenType]]:
    kind = gguf.TokenType
    tokens = [("<unk>", kind.UNKNOWN), ("<s>", kind.CONTROL), (eos, kind.CONTROL)]
    tokens += [(_byte(value), kind.BYTE) for value in range(256)]
    tokens += [(_SPACE, kind.NORMAL), (_START, kind.CONTROL)]
    tokens += [(text, kind.CONTROL) for text in (_FIM.values() if fim else ())]
    tokens += [(text, kind.USER_DEFINED) for text in starts]  # USER_DEFINED is found in prompts
    for piece in script:
        if piece.startswith("<"):  # so are tags, as in real models; other pieces are hardly ever:
            tokens.append((piece, kind.USER_DEFINED))
        elif piece != END:  # a prompt's spaces become blocks, and a word is not merged from bytes
            tokens.append((piece, kind.NORMAL))
    for text, count in Counter(text for text, _ in tokens).items():
        if count > 1:
            raise ValueError(f"{text!r} is there twice; split or join pieces until each is unique")
    return tokens


def _transitions(
    ids: Mapping[str, int], script: Sequence[str], after: Mapping[str, int], eos: str
) -> tuple[Floats, Floats]:
    """Return what each token says of where the script is, and what each place says next.

    Both are (token, width): a one at the place (0 is before the first piece), and a one in the last
    column for what holds at every place.
    """
    width = 32 * max(2, math.ceil((len(script) + 2) / 32))
    places = {piece: index + 1 for index, piece in enumerate(script) if piece != END}
    embedding = np.zeros((len(ids), width), np.float16)
    for text, token in ids.items():
        embedding[token, after.get(text, places.get(text, 0))] = 1
    embedding[:, -1] = 1
    output = np.zeros_like(embedding)
    for place, piece in enumerate([*script, END]):
        output[ids[eos if piece == END else piece], place] = _SCRIPT_LOGIT
    output[ids[eos], -1] = _END_LOGIT
    for value in range(ord("!"), 127):
        output[ids[_byte(value)], -1] = _JSON_LOGITS.get(chr(value), 4 - value / 64)
    return embedding, output


def _scripted_tensors(embedding: Floats, output: Floats, head_dims: int) -> dict[str, Floats]:
    """Return tensors whose layer adds nothing, so the embedding reaches the output as it is."""
    width = embedding.shape[1]
    ones = np.ones(width, np.float32)
    square = np.zeros((head_dims, width), np.float16)
    wide = np.zeros((_N_FEED_FORWARD, width), np.float16)
    return {
        "token_embd.weight": embedding,
        # Two ones in a row: RMS normalisation makes each sqrt(width / 2); this makes them 1 again.
        "output_norm.weight": ones * math.sqrt(2 / width),
        "output.weight": output,
        "blk.0.attn_norm.weight": ones,
        "blk.0.attn_q.weight": square,
        "blk.0.attn_k.weight": square,
        "blk.0.attn_v.weight": square,
        "blk.0.attn_output.weight": np.ascontiguousarray(square.T),
        "blk.0.ffn_norm.weight": ones,
        "blk.0.ffn_gate.weight": wide,
        "blk.0.ffn_up.weight": wide,
        "blk.0.ffn_down.weight": np.ascontiguousarray(wide.T),
    }


def _make_bert(path: Path, n_ctx_train: int, pooling: gguf.PoolingType) -> int:
    kind = gguf.TokenType
    tokens = [("[PAD]", kind.CONTROL), ("[UNK]", kind.UNKNOWN)]
    tokens += [(text, kind.CONTROL) for text in ("[CLS]", "[SEP]", "[MASK]")]
    tokens += [(_SPACE + letter, kind.NORMAL) for letter in _LETTERS]
    tokens += [(letter, kind.NORMAL) for letter in _LETTERS]
    width = _BERT_WIDTH
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name(path.stem)
    _add_shape(writer, n_ctx=n_ctx_train, width=width, n_feed_forward=2 * width)
    writer.add_layer_norm_eps(1e-6)
    writer.add_causal_attention(False)
    writer.add_pooling_type(pooling)
    _add_vocabulary(writer, "bert", tokens)
    writer.add_token_type_count(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    writer.add_eos_token_id(3)
    writer.add_mask_token_id(4)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (len(tokens), width),
        "token_types.weight": (2, width),
        "position_embd.weight": (n_ctx_train, width),
        "blk.0.ffn_up.weight": (2 * width, width),
        "blk.0.ffn_down.weight": (width, 2 * width),
    }
    for part in ("q", "k", "v", "output"):
        shapes[f"blk.0.attn_{part}.weight"] = (width, width)
    for norm in ("token_embd_norm", "blk.0.attn_output_norm", "blk.0.layer_output_norm"):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    if pooling == gguf.PoolingType.RANK:
        shapes |= {"cls.weight": (width, width), "cls.bias": (width,)}
        shapes |= {"cls.output.weight": (1, width), "cls.output.bias": (1,)}
    return _finish(writer, _random(shapes), width)


def _clip_writer(path: Path, modality: str, width: int) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_name(path.stem)
    writer.add_bool(f"clip.has_{modality}_encoder", True)
    writer.add_uint32(f"clip.{modality}.embedding_length", _CLIP_WIDTH)
    writer.add_uint32(f"clip.{modality}.feed_forward_length", 2 * _CLIP_WIDTH)
    writer.add_uint32(f"clip.{modality}.block_count", 1)
    writer.add_uint32(f"clip.{modality}.projection_dim", width)
    writer.add_uint32(f"clip.{modality}.attention.head_count", 1)
    writer.add_float32(f"clip.{modality}.attention.layer_norm_epsilon", 1e-6)
    return writer


def _clip_layer(prefix: str) -> dict[str, tuple[int, ...]]:
    width = _CLIP_WIDTH
    layer = f"{prefix}.blk.0."
    shapes: dict[str, tuple[int, ...]] = {
        layer + "ffn_up.weight": (2 * width, width),
        layer + "ffn_down.weight": (width, 2 * width),
    }
    for part in ("q", "k", "v", "out"):
        shapes[f"{layer}attn_{part}.weight"] = (width, width)
    for bias in ("attn_q", "attn_v", "ln1", "ln2"):  # Whisper's keys have none
        shapes[f"{layer}{bias}.bias"] = (width,)
    for norm in ("ln1", "ln2"):
        shapes[f"{layer}{norm}.weight"] = (width,)
    return shapes


def _random(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Floats]:
    """Return the same numbers for the same shapes, of a size that keeps activations near 1."""
    source = np.random.default_rng(seed=0)
    tensors: dict[str, Floats] = {}
    for name, shape in shapes.items():
        spread = 1 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.5
        kind = np.float16 if len(shape) > 2 else np.float32  # convolutions want F16
        tensors[name] = source.normal(0, spread, shape).astype(kind)
    return tensors


def _add_shape(writer: gguf.GGUFWriter, *, n_ctx: int, width: int, n_feed_forward: int) -> None:
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(n_feed_forward)
    writer.add_head_count(1)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def _add_vocabulary(
    writer: gguf.GGUFWriter, tokenizer: str, tokens: Sequence[tuple[str, gguf.TokenType]]
) -> None:
    writer.add_tokenizer_model(tokenizer)
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_types([kind for _, kind in tokens])


def _byte(value: int) -> str:
    return f"<0x{value:02X}>"


def _finish(writer: gguf.GGUFWriter, tensors: Mapping[str, Floats], width: int) -> int:
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return width


def main() -> None:
    """Write the file that the command line asks for; say where."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, metavar="OUT.gguf")
    berts = {"embedding": make_embedding, "rerank": make_rerank}
    projectors = {"vision": make_vision, "audio": make_audio}
    kinds = ["scripted", *berts, *projectors]
    parser.add_argument("--kind", choices=kinds, default="scripted")
    parser.add_argument("--piece", action="append", help="a piece of the script; several times")
    parser.add_argument("--template", type=Path, help="a Jinja chat template")
    parser.add_argument("--fim", action="store_true", help="with tokens for filling in the middle")
    arguments = parser.parse_args()
    path, kind, template = arguments.path, arguments.kind, arguments.template
    if kind in berts:
        berts[kind](path)
    else:
        width = make_scripted(
            path,
            script=arguments.piece or TINY_TEXT,
            template=template.read_text() if template else chat_template(thinking=True, tools=True),
            fim=arguments.fim,
        )
        if kind in projectors:
            projectors[kind](path.with_suffix(".mmproj.gguf"), width=width)
    for written in sorted(path.parent.glob(f"{path.stem}*.gguf")):
        print(written)


if __name__ == "__main__":
    main()
