"""What will be run for a model: the exact command line, the bytes it should take, its identity.

``kvsup argv`` prints a plan and ``Instance`` spawns the same object, so they cannot differ. Pure:
what was read from disk comes in.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import msgspec

from kvsup.capacity import largest_context
from kvsup.config import ModelConfig, canonical
from kvsup.filenames import file_name
from kvsup.gguf import Metadata
from kvsup.kvchoice import Machine, backend_here, fast_pair, slowness
from kvsup.kvtypes import KVPair
from kvsup.ladder import given_up, next_step, stepped
from kvsup.llama.argv import EMPTY_CONFIG_DIR, build_argv, build_environment
from kvsup.llama.binary import Binary
from kvsup.memory import CELL_TOKENS, Estimate, Launch, estimate
from kvsup.modelfile import ModelFile
from kvsup.placement import place
from kvsup.residency import RAM
from kvsup.settling import launch_of, settled
from kvsup.slowpaths import Backend
from kvsup.warmth import Ability, ability

ALLOWANCE_BYTES = 64 << 20
"""Counted beside weights, KV cache and compute buffers: the process itself and its HTTP side."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One model, decided in full."""

    model: ModelConfig
    """With every number decided."""
    configured: ModelConfig
    """As it was configured, with what was left open."""
    binary: Binary
    file: ModelFile
    environment: Mapping[str, str]
    run_dir: str
    kv_dir: str | None
    """Where slots are saved, for all models; None: nowhere."""
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
    learnt: Mapping[str, float] = field(default_factory=dict)
    """Bytes an element of KV types that only earlier loads have told."""
    machine: Machine = field(default_factory=Machine)
    """What is known of running it here."""
    step: int = 0
    """Of its fallback; neither identity nor digest depend on it."""
    slow_kv: str = ""
    """Why its KV pair is slow here, and which is not; empty where nothing is known of it."""

    @property
    def name(self) -> str:
        """Return the name that the model is served under."""
        return self.model.name

    @property
    def argv(self) -> tuple[str, ...]:
        """Return the command line of its llama-server."""
        saved = self.slot_dir
        return build_argv(
            self.binary, self.model, socket=self.socket, pooling=self.pooling, slot_dir=saved
        )

    @property
    def warmth(self) -> Ability:
        """Return how far its conversations outlive their process."""
        return ability(
            self.file.shape,
            swa_full=self.model.swa_full,
            has_draft=self.model.draft_model is not None,
            is_pooled=self.pooling is not None or self.model.embedding == "on",
        )

    @property
    def slot_dir(self) -> str | None:
        """Return the folder of its saved slots; None where none is saved."""
        if self.kv_dir is None or not self.model.warm_swap or self.warmth.reuse == "never":
            return None
        return f"{self.kv_dir}/{file_name(self.name)}"

    @property
    def given_up(self) -> tuple[str, ...]:
        """Return in words what it has not on its step of the fallback; empty on step 0."""
        return given_up(self.configured, self.step)

    @property
    def projector(self) -> Metadata | None:
        """Return the header of the projector that it loads."""
        return None if self.model.mmproj is None else self.file.projector

    @property
    def key(self) -> str:
        """Return what tells its process from one of the same name with another plan."""
        return f"{self.name}#{self.identity[:16]}"

    @property
    def size_bytes(self) -> int:
        """Return the memory that is set aside for it before it has been measured."""
        return self.estimate.total_bytes + ALLOWANCE_BYTES

    @property
    def sizes(self) -> dict[str, int]:
        """Return ``size_bytes`` by where it will lie: ``RAM``, and devices by name."""
        placed = self.placed(self.estimate)
        return {**placed, RAM: placed[RAM] + ALLOWANCE_BYTES}

    def placed(self, result: Estimate) -> dict[str, int]:
        """Return the bytes of an estimate by where they will lie."""
        return place(
            result,
            [(device.name, device.total_bytes) for device in self.binary.devices],
            n_layers=len(self.file.shape.layers),
            gpu_layers=self.model.gpu_layers,
            main_gpu=self.model.main_gpu,
        )

    @property
    def refusal(self) -> str:
        """Return why it must not be served: ``kv_slow = "refuse"`` and a slow pair; else empty."""
        if self.model.kv_slow != "refuse" or not self.slow_kv:
            return ""
        return f'{self.slow_kv}; use that, kv_slow = "warn", or measure again: kvsup probe'

    @property
    def launch(self) -> Launch:
        """Return the parameters that decide its memory."""
        backend = _backend(self.binary, self.model)
        return launch_of(self.model, embeds=self.pooling is not None, backend=backend)

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
        return replace(self._decided(configured), digest=self.digest)

    def with_room(self, room_bytes: int) -> "Plan":
        """Return the plan with the largest context that takes ``room_bytes`` at most.

        Where not even the least fits it is the least; identity and digest stay.
        """
        least = self.configured.num_ctx
        return self.with_num_ctx(max(self.largest_num_ctx(room_bytes) or least, least))

    def with_num_ctx(self, num_ctx: int) -> "Plan":
        """Return the plan of a load that gets ``num_ctx``; identity and digest stay."""
        decided = self._decided(self.configured, num_ctx=num_ctx, step=self.step)
        return replace(decided, notes=self.notes, digest=self.digest)

    def on_step(self, step: int) -> "Plan":
        """Return the plan on a step of its fallback; a context decided at loads stays as it is."""
        if step == self.step:
            return self
        num_ctx = self.model.num_ctx if self.configured.num_ctx_is_auto else None
        decided = self._decided(self.configured, num_ctx=num_ctx, step=step)
        return replace(decided, notes=self.notes, digest=self.digest)

    def lower(self) -> "Plan | None":
        """Return the plan on the next step of its fallback; None where there is none."""
        steps = [self.on_step(step) for step in range(len(self.configured.fallback) + 1)]
        step = next_step(self.step, [plan.size_bytes for plan in steps])
        if step is None:
            return None
        return steps[step].with_prompt_cache(self.model.prompt_cache_bytes)

    def with_prompt_cache(self, room_bytes: int) -> "Plan":
        """Return the plan of a load whose prompt cache gets ``room_bytes``, or what is configured.

        Identity and digest stay: what differs is how many prompts it remembers.
        """
        most_bytes = stepped(self.configured, self.step).prompt_cache_bytes
        size_bytes = max(0, min(most_bytes, room_bytes))
        model = msgspec.structs.replace(self.model, prompt_cache_bytes=size_bytes)
        return replace(self, model=model)

    @property
    def prompt_cache_bytes(self) -> int:
        """Return what its prompt cache may come to hold in RAM, beside all that it loads.

        The limit holds exactly: room is made before a prompt is kept, and one that is larger is not
        (server_prompt_cache::alloc, server-task.cpp, b11434). Only completions are kept
        (get_available_slot, server-context.cpp), so a model made for embeddings has none.
        """
        return 0 if self.pooling is not None else self.model.prompt_cache_bytes

    def on(self, machine: Machine) -> "Plan":
        """Return the plan with what is known now of running it here."""
        return replace(self, machine=machine, slow_kv=_slow(self.model, self.file, machine))

    def estimate_of(self, pair: KVPair) -> Estimate:
        """Return what it would take with another pair."""
        return estimate(
            self.file.shape,
            pair,
            self.launch,
            weights_bytes=self.file.weights_bytes(self.model),
            bytes_per_element=self.learnt,
            draft=self.file.draft_of(self.model),
        )

    def largest_num_ctx(self, room_bytes: int, *, pair: KVPair | None = None) -> int | None:
        """Return the tokens of one request that fit in ``room_bytes``; None where none do.

        At most what the model was trained for; ``pair`` is another than its own.
        """
        wanted = pair or self.model.kv_cache_type
        configured = msgspec.structs.replace(self.configured, kv_cache_type=wanted)
        return largest_context(
            lambda num_ctx: self._decided(configured, num_ctx=num_ctx, step=self.step).size_bytes,
            trained_tokens=self.file.shape.n_ctx_train_tokens,
            budget_bytes=room_bytes,
        )

    def _decided(
        self, configured: ModelConfig, *, num_ctx: int | None = None, step: int = 0
    ) -> "Plan":
        return _decide(
            configured,
            self.binary,
            self.file,
            environment=self.environment,
            run_dir=self.run_dir,
            kv_dir=self.kv_dir,
            learnt=self.learnt,
            machine=self.machine,
            num_ctx=num_ctx,
            step=step,
        )


def make_plan(
    model: ModelConfig,
    binary: Binary,
    file: ModelFile,
    *,
    inherited: Mapping[str, str],
    run_dir: str,
    kv_dir: str | None = None,
    learnt: Mapping[str, float] | None = None,
    note: str = "",
    machine: Machine | None = None,
) -> Plan:
    """Return the plan of ``model``, with ``num_ctx`` clipped to what the model was trained for.

    A larger context would be allocated in full although each slot is capped (b11434).

    Args:
        model: with absolute paths.
        binary: the llama-server that will run it.
        file: its weights.
        inherited: the environment of kvsup.
        run_dir: private folder for sockets; short, since a socket's path has 107 bytes at most.
        kv_dir: folder for the saved slots of all models; None: none is saved.
        learnt: bytes an element of KV types that only earlier loads have told.
        note: what its owner should know of how ``model`` came about.
        machine: what is known of running it here.
    """
    config_home = f"{run_dir}/{EMPTY_CONFIG_DIR}"
    environment = build_environment(inherited, model.env, config_home=config_home)
    plan = _decide(
        model,
        binary,
        file,
        environment=environment,
        run_dir=run_dir,
        kv_dir=kv_dir,
        learnt=learnt or {},
        machine=machine or Machine(binary.kv_types),
    )
    return replace(plan, notes=(*filter(None, [note]), *plan.notes))


def _decide(
    configured: ModelConfig,
    binary: Binary,
    file: ModelFile,
    *,
    environment: Mapping[str, str],
    run_dir: str,
    kv_dir: str | None,
    learnt: Mapping[str, float],
    machine: Machine,
    num_ctx: int | None = None,
    step: int = 0,
) -> Plan:
    """Return a plan; ``num_ctx`` is what this load gets of a context that is decided at loads."""
    architecture = file.metadata.architecture
    pooling = file.metadata.integer(f"{architecture}.pooling_type")
    settle = partial(
        settled,
        trained_tokens=file.metadata.integer(f"{architecture}.context_length"),
        is_on_cpu=not binary.devices,
        embeds=pooling is not None or configured.embedding == "on",
        fills_in=file.has_fim_tokens,
    )
    model, notes = settle(configured)
    bare = build_argv(binary, model, socket="", pooling=pooling)
    auto = ("num_ctx = auto",) if configured.num_ctx_is_auto else ()
    variables = (f"{name}={value}" for name, value in sorted(model.env.items()))
    identity = _digest(*bare, *auto, *variables, file.stamp, binary.stamp)
    digest = _digest(msgspec.json.encode(canonical(model)).decode(), file.stamp)
    if num_ctx is not None or step:
        opened = msgspec.structs.replace(configured, num_ctx=num_ctx or configured.num_ctx)
        model, notes = settle(stepped(opened, step))
    socket = f"{run_dir}/{identity[:16]}.sock"
    return Plan(
        model=model,
        configured=configured,
        binary=binary,
        file=file,
        environment=environment,
        run_dir=run_dir,
        kv_dir=kv_dir,
        socket=socket,
        estimate=estimate(
            file.shape,
            model.kv_cache_type,
            launch_of(model, embeds=pooling is not None, backend=_backend(binary, model)),
            weights_bytes=file.weights_bytes(model),
            bytes_per_element=learnt,
            draft=file.draft_of(model),
        ),
        pooling=pooling,
        identity=identity,
        notes=notes,
        digest=digest,
        learnt=learnt,
        machine=machine,
        step=step,
        slow_kv=_slow(model, file, machine),
    )


def _slow(model: ModelConfig, file: ModelFile, machine: Machine) -> str:
    slow = slowness(model.kv_cache_type, model, file.shape, machine)
    fast = fast_pair(model, file.shape, machine) if slow else None
    return f"{slow}; {fast} is fast here" if fast else slow or ""


def why_replaced(old: Plan, new: Plan | None) -> str:
    """Return in words why the process of ``old`` goes; ``new`` is what its name stands for now."""
    if new is None:
        return "it was removed"
    if (old.binary.path, old.binary.stamp) != (new.binary.path, new.binary.stamp):
        return f"another llama-server is there ({new.binary.label}, it has {old.binary.label})"
    return (
        "its weights changed" if old.file.stamp != new.file.stamp else "its configuration changed"
    )


def _backend(binary: Binary, model: ModelConfig) -> Backend:
    return backend_here(model, [device.name for device in binary.devices])


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
