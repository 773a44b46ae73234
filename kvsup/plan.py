"""What will be run for a model: the exact command line, the bytes it should take, its identity.

``kvsup argv`` prints a plan and ``Instance`` spawns the same object, so they cannot differ. Pure:
what was read from disk comes in.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec

from kvsup.config import ModelConfig, canonical
from kvsup.gguf import Metadata, Tensor
from kvsup.llama.argv import EMPTY_CONFIG_DIR, build_argv, build_environment
from kvsup.llama.binary import Binary
from kvsup.memory import CELL_TOKENS, Estimate, Launch, estimate
from kvsup.modelshape import ModelShape

ALLOWANCE_BYTES = 64 << 20
"""Counted beside weights, KV cache and compute buffers: the process itself and its HTTP side."""

BATCH_TOKENS = 512
CPU_BATCH_TOKENS = 64
MAX_FILL_IN_TOKENS = 2048
"""Logical batch of a model that fills in: llama-server's own default."""

MAX_EMBEDDING_TOKENS = 8192
"""Longest input to embed; the compute buffer grows with it."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """What the disk says of a model's weights."""

    metadata: Metadata
    """Header of the first part."""
    shape: ModelShape
    n_params: int
    size_bytes: int
    """All parts of a split model together, and the projector."""
    modified_ns: int
    stamp: str
    """Changes when a file is replaced or written, the chat template's included."""
    template: str | None = None
    """The Jinja chat template in force: the file that the TOML names, else the GGUF's own."""
    projector: Metadata | None = None
    """Header of the projector for images or audio."""
    tensors: tuple[Tensor, ...] = ()
    """Those of all parts."""
    has_fim_tokens: bool = False
    """Whether the vocabulary has tokens to fill in a middle with."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One model, decided in full."""

    model: ModelConfig
    """With every number decided."""
    configured: ModelConfig
    """As it was configured, with what was left open."""
    binary: Binary
    file: ModelFile
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    run_dir: str
    socket: str
    estimate: Estimate
    pooling: int | None
    """The GGUF's ``pooling_type``; only models that embed or rerank have one."""
    identity: str
    """Equal for two plans that the same process could serve."""
    digest: str
    """SHA-256 for clients that tell models apart by it; no two catalogue entries share one."""

    notes: tuple[str, ...]
    """What its owner should know of how it was decided."""

    @property
    def name(self) -> str:
        """Return the name that the model is served under."""
        return self.model.name

    @property
    def size_bytes(self) -> int:
        """Return the memory that is set aside for it before it has been measured."""
        return self.estimate.total_bytes + ALLOWANCE_BYTES

    @property
    def slot_tokens(self) -> int:
        """Return the context of one request as it is allocated, in whole cells of 256 tokens."""
        return -(-self.model.num_ctx // CELL_TOKENS) * CELL_TOKENS

    @property
    def trained_tokens(self) -> int | None:
        """Return the context that the model was trained for, where its header says so."""
        return self.file.metadata.integer(f"{self.file.metadata.architecture}.context_length")

    def configured_as(self, configured: ModelConfig) -> "Plan":
        """Return the plan of the same catalogue entry under other settings, with its digest."""
        plan = _decide(
            configured, self.binary, self.file, environment=self.environment, run_dir=self.run_dir
        )
        return replace(plan, digest=self.digest)


def make_plan(
    model: ModelConfig,
    binary: Binary,
    file: ModelFile,
    *,
    inherited: Mapping[str, str],
    run_dir: str,
) -> Plan:
    """Return the plan of ``model``, with ``num_ctx`` clipped to what the model was trained for.

    A larger context would be allocated in full although each slot is capped (b11434).

    Args:
        model: with absolute paths.
        binary: the llama-server that will run it.
        file: its weights.
        inherited: the environment of kvsup.
        run_dir: private folder for sockets; short, since a socket's path has 107 bytes at most.
    """
    config_home = f"{run_dir}/{EMPTY_CONFIG_DIR}"
    environment = build_environment(inherited, model.env, config_home=config_home)
    return _decide(model, binary, file, environment=environment, run_dir=run_dir)


def _decide(
    configured: ModelConfig,
    binary: Binary,
    file: ModelFile,
    *,
    environment: Mapping[str, str],
    run_dir: str,
) -> Plan:
    architecture = file.metadata.architecture
    pooling = file.metadata.integer(f"{architecture}.pooling_type")
    model, notes = _settled(
        configured,
        trained_tokens=file.metadata.integer(f"{architecture}.context_length"),
        is_on_cpu=not binary.devices,
        embeds=pooling is not None or configured.embedding == "on",
        fills_in=file.has_fim_tokens,
    )
    bare = build_argv(binary, model, socket="", pooling=pooling)
    identity = _digest(*bare, *(f"{k}={v}" for k, v in sorted(model.env.items())), file.stamp)
    socket = f"{run_dir}/{identity[:16]}.sock"
    return Plan(
        model=model,
        configured=configured,
        binary=binary,
        file=file,
        argv=build_argv(binary, model, socket=socket, pooling=pooling),
        environment=environment,
        run_dir=run_dir,
        socket=socket,
        estimate=estimate(
            file.shape,
            model.kv_cache_type,
            launch_of(model),
            weights_bytes=file.size_bytes,
        ),
        pooling=pooling,
        identity=identity,
        notes=notes,
        digest=_digest(msgspec.json.encode(canonical(model)).decode(), file.stamp),
    )


def _settled(
    model: ModelConfig,
    *,
    trained_tokens: int | None,
    is_on_cpu: bool,
    embeds: bool,
    fills_in: bool,
) -> tuple[ModelConfig, tuple[str, ...]]:
    """Return ``model`` with every number that it left open, and what its owner should know.

    A client that leaves while its prompt is read is noticed after one or two steps, so on a CPU
    these are short: at 64 tokens a quantized cache reads as fast as at 512, f16 some 13 % slower
    (b11434, SmolLM2, 2 cores). ``--embedding`` demands that a whole input is one physical batch;
    ``/infill`` cuts what stands before and after to three and one quarters of the logical batch
    (server-common.cpp, b11434), so on a device models that fill in get a long one.
    """
    notes = []
    num_ctx = model.num_ctx
    if trained_tokens and trained_tokens < num_ctx:
        notes.append(f"num_ctx {num_ctx} is more than it was trained for; {trained_tokens} is used")
        num_ctx = trained_tokens
    batch = model.batch_size or (CPU_BATCH_TOKENS if is_on_cpu else BATCH_TOKENS)
    ubatch = model.ubatch_size or min(batch, BATCH_TOKENS)
    if fills_in and not is_on_cpu and model.batch_size is None:
        batch = max(batch, min(num_ctx, MAX_FILL_IN_TOKENS))
    if embeds:
        batch = ubatch = max(batch, min(num_ctx, MAX_EMBEDDING_TOKENS))
    settled = msgspec.structs.replace(model, num_ctx=num_ctx, batch_size=batch, ubatch_size=ubatch)
    return settled, tuple(notes)


def launch_of(model: ModelConfig) -> Launch:
    """Return the launch parameters that decide the size of a model's caches."""
    return Launch(
        n_ctx_tokens=model.num_ctx * model.num_parallel,
        n_parallel=model.num_parallel,
        unified=model.kv_unified,
        n_batch=model.batch_size or BATCH_TOKENS,
        n_ubatch=model.ubatch_size or BATCH_TOKENS,
        swa_full=model.swa_full,
        flash_attention=model.flash_attention,
    )


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
