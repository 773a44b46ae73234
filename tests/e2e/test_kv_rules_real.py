"""Each rule about KV pairs on a bare llama-server: that it really does what the rule says."""

import math
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from kvsup.gguf import read_metadata_of
from kvsup.kvlooks import Setup
from kvsup.kvrules import RULES, Finding, findings
from kvsup.kvtypes import STOCK_TYPES, FlashAttention, KVPair, parse_kv_pair
from kvsup.llama.logscan import KVCacheSize, Rotation, SlotContext, scan
from kvsup.modelshape import shape_of
from tests.e2e.commands import run
from tests.headsizes import make_grok, make_latent, make_plain, make_recurrent, make_windowed
from tests.tiny import TinyModels

START_TIMEOUT_S = 30.0
PROMPT_TOKENS = list(range(5, 13))

MAKERS: dict[str, Callable[[Path], Path]] = {
    "heads of 64": lambda path: make_plain(path, head=64),
    "heads of 80": lambda path: make_plain(path, head=80),
    "heads of 96": lambda path: make_plain(path, head=96),
    "windows of 64": lambda path: make_windowed(path, head=128, head_window=64),
    "windows of 80": lambda path: make_windowed(path, head=128, head_window=80),
    "windows of 96": lambda path: make_windowed(path, head=128, head_window=96),
    "windows of 128": lambda path: make_windowed(path, head=96, head_window=128),
    "one head of 40": lambda path: make_plain(path, head=40, n_head=1),
    "latent": make_latent,
    "grok": make_grok,
    "recurrent": make_recurrent,
}
REPORTED = {"qwen2-keys", "gpt-oss", "gemma4", "deepseek4-keys"}
"""Rules that rest on what others reported of models too large for a test."""

OF_A_FORK = {"layer-types"}
"""Rules about ik_llama.cpp, which is not built here."""


class Case(NamedTuple):
    """A pair that a rule refuses."""

    rule: str
    kind: str
    pair: str
    flash_attention: FlashAttention
    said: str
    """By llama-server, in its log."""


REFUSED = [
    Case("known-types", "heads of 64", "q3_k:f16", "auto", "Unsupported cache type: q3_k"),
    Case(
        "one-type", "latent", "q8_0:f16", "auto", "does not support different K (q8_0) and V (f16)"
    ),
    Case("grok-values", "grok", "q8_0:q8_0", "auto", "quantized V cache requires flash_attn"),
    Case("flash-for-values", "heads of 64", "q8_0:q4_0", "off", "quantized V cache requires flash"),
    Case(
        "flash-for-values", "recurrent", "f16:q4_0", "off", "quantized V cache requires flash_attn"
    ),
    Case("flash-for-values", "latent", "q8_0:q8_0", "off", "quantized V cache requires flash_attn"),
    Case("key-blocks", "heads of 80", "q8_0:f16", "auto", "does not divide n_embd_head_k=80"),
    Case("value-blocks", "heads of 80", "f16:q8_0", "auto", "does not divide n_embd_head_v=80"),
    Case(
        "key-blocks-without-flash", "one head of 40", "q8_0:f16", "off", "GGML_ASSERT(view_src =="
    ),
]
WARNED = {"used-types", "rotation-on", "rotated-keys", "rotated-values", "trained-context"}


class Bare:
    """A llama-server without kvsup: what it logs, and what it answers unless it has exited."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, uds: Path) -> None:
        self.process, self._log, self._uds = process, log, uds
        transport = httpx.HTTPTransport(uds=str(uds))
        self.client = httpx.Client(base_url="http://llama", transport=transport, timeout=60)

    @property
    def log(self) -> str:
        """Everything it has logged."""
        return self._log.read_text("utf-8", "replace")

    @property
    def facts(self) -> list[Any]:
        """What kvsup reads in its log."""
        return [fact for line in self.log.splitlines() if (fact := scan(line))]

    def wait(self) -> int | None:
        """Wait until it answers or has exited; return None or the exit code."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline_s, self.log
            with socket.socket(socket.AF_UNIX) as attempt, suppress(OSError):
                attempt.settimeout(START_TIMEOUT_S)
                attempt.connect(str(self._uds))
                attempt.sendall(b"GET /health HTTP/1.0\r\n\r\n")
                if b" 200 " in attempt.recv(64):
                    return None
            time.sleep(0.02)
        return self.process.returncode

    def log_probabilities(self, n_tokens: int = 4) -> list[float | None]:
        """Return those of the likeliest tokens; llama-server writes null for NaN."""
        body = {"prompt": PROMPT_TOKENS, "n_predict": n_tokens, "temperature": 0, "n_probs": 1}
        answer = self.client.post("/completion", json=body)
        assert answer.status_code == 200, answer.text
        return [token["logprob"] for token in answer.json()["completion_probabilities"]]


@contextmanager
def bare(binary: Path, model: Path, *arguments: str, **environment: str) -> Iterator[Bare]:
    """Start a llama-server on a socket beside the model; it is ended at last."""
    uds, log = model.with_suffix(".sock"), model.with_suffix(".log")
    uds.unlink(missing_ok=True)
    quiet = {"GGML_NO_BACKTRACE": "1", "XDG_CONFIG_HOME": "/nonexistent"}
    words = [
        binary, "--model", model, "--host", uds, "--parallel", "1", "--threads", "1",
        "--fit", "off", "--log-verbosity", "4", "--log-colors", "off", *arguments,
    ]  # fmt: skip
    with (
        log.open("wb") as out,
        subprocess.Popen(
            [str(word) for word in words],
            stdout=out,
            stderr=out,
            env={**os.environ, **quiet, **environment},
        ) as process,
    ):
        server = Bare(process, log, uds)
        try:
            with server.client:
                yield server
        finally:
            process.kill()


def types(pair: KVPair | str, flash_attention: str = "auto", *, n_ctx: int = 256) -> list[str]:
    """Return the arguments of a pair."""
    k, _, v = str(pair).partition(":")
    context = ["--ctx-size", str(n_ctx), "--flash-attn", flash_attention]
    return ["--cache-type-k", k, "--cache-type-v", v, *context]


def held_to(
    rule: str, model: Path, pair: str, flash_attention: FlashAttention = "auto", **settings: Any
) -> Finding:
    """Return what the rule says of the model."""
    setup = Setup(
        pair=parse_kv_pair(pair),
        flash_attention=flash_attention,
        shape=shape_of(read_metadata_of(model)),
        **{"kv_types": STOCK_TYPES, **settings},
    )
    return next(found for found in findings(setup) if found.rule == rule)


def rotations(server: Bare) -> dict[str, bool]:
    """Return for each half whether its log says that it is rotated, in every cache or in none."""
    told: dict[str, set[bool]] = {}
    for fact in server.facts:
        if isinstance(fact, Rotation):
            told.setdefault(fact.half, set()).add(fact.size > 0)
    return {half: rotated for half, (rotated,) in told.items()}


def test_rules_are_all_tried_here_but_those_of_others() -> None:
    """A row of the table that no llama-server was asked about is said to be reported."""
    tried = {case.rule for case in REFUSED} | WARNED

    assert {rule.id for rule in RULES} == tried | REPORTED | OF_A_FORK


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case.rule} {case.kind}")
def test_pair_that_is_refused_ends_llama_server_and_the_nearest_one_answers(
    tmp_path: Path, any_build: Path, case: Case
) -> None:
    """What kvsup refuses does not run, and what it offers instead does."""
    model = MAKERS[case.kind](tmp_path / "m.gguf")

    found = held_to(case.rule, model, case.pair, case.flash_attention)
    code, log, n_tries = None, "", 0
    while case.said not in log and (n_tries := n_tries + 1) < 6:  # a busy machine loses the log
        with bare(any_build, model, *types(case.pair, case.flash_attention)) as server:
            code, log = server.wait(), server.log
    with bare(any_build, model, *types(found.nearest or "f16:f16", case.flash_attention)) as server:
        nearest_code = server.wait()

    assert found.verdict == "refused"
    assert code not in {None, 0}
    assert case.said in log
    assert nearest_code is None


def test_quantized_keys_without_flash_attention_and_heads_of_80_answer_nan_with_200(
    tmp_path: Path, any_build: Path
) -> None:
    """Llama-server checks nothing then, so kvsup must."""
    model = MAKERS["heads of 80"](tmp_path / "m.gguf")

    with bare(any_build, model, *types("q8_0:f16", "off")) as server:
        assert server.wait() is None
        broken = server.log_probabilities()
    with bare(any_build, model, *types("f16:f16", "off")) as server:
        assert server.wait() is None
        sound = server.log_probabilities(n_tokens=1)
    found = held_to("key-blocks-without-flash", model, "q8_0:f16", "off")

    assert len(broken) == 4
    assert all(value is None or math.isnan(value) for value in broken)
    assert sound[0] is not None
    assert (found.verdict, str(found.nearest)) == ("refused", "f16:f16")


def test_kvsup_refuses_quantized_keys_without_flash_attention_and_heads_of_80(
    tmp_path: Path, llama_server: Path
) -> None:
    """With the line of the file, what it would answer, and what to write."""
    make_plain(tmp_path / "m.gguf", head=80)
    (tmp_path / "kvsup.toml").write_text(f'state_dir = "s"\nllama_server = "{llama_server}"\n')
    (tmp_path / "m.toml").write_text(
        'model = "m.gguf"\nkv_cache_type = "q8_0:f16"\nflash_attention = "off"\n'
    )

    done = run("check", ".", cwd=tmp_path)

    assert done.returncode == 2
    assert done.stderr == (
        "m.toml:2: kv_cache_type: K as q8_0 is stored in blocks of 32, which do not divide this "
        "model's heads of 80: without flash attention it loads all the same, and answers NaN or "
        "nonsense with status 200; use f16:f16\n"
        "    expected: the blocks of K divide the heads, which nothing checks without flash"
        " attention; known from: tried on b11434 and b10434: NaN, nonsense or an abort\n"
    )


def test_check_prints_each_rule_with_its_evidence_and_what_is_better(
    tmp_path: Path, llama_server: Path
) -> None:
    """The line of a model that can run comes first."""
    make_plain(tmp_path / "m.gguf", head=96)
    (tmp_path / "kvsup.toml").write_text(f'state_dir = "s"\nllama_server = "{llama_server}"\n')
    (tmp_path / "m.toml").write_text('model = "m.gguf"\nkv_cache_type = "q8_0:f16"\nnum_ctx = 256')

    lines = run("check", ".", cwd=tmp_path).stdout.splitlines()
    assert lines[0] == "m: q8_0:f16, 256 tokens: fine"
    assert lines[1].split() == ["EXPECTED", "OBSERVED", "EVIDENCE"]
    assert any(line.split()[:4] == ["warn", "quantized", "K", "is"] for line in lines)
    assert lines[-1].endswith("heads of 96 are no multiple of 64; use f16:f16")


@pytest.mark.parametrize(
    ("kind", "pair", "rotated"),
    [
        ("heads of 64", "q8_0:q4_0", {"k": True, "v": True}),
        ("heads of 64", "q8_0:f16", {"k": True, "v": False}),
        ("heads of 96", "q8_0:q4_0", {"k": False, "v": False}),
        ("windows of 64", "q8_0:q4_0", {"k": True, "v": True}),
        ("windows of 96", "q8_0:q4_0", {"k": False, "v": False}),
        ("windows of 128", "q8_0:q4_0", {"k": True, "v": True}),
    ],
)
def test_quantized_half_is_rotated_where_its_rule_is_kept(
    tmp_path: Path, any_build: Path, kind: str, pair: str, rotated: dict[str, bool]
) -> None:
    """The log says of each half what kvsup foretold."""
    model = MAKERS[kind](tmp_path / "m.gguf")

    with bare(any_build, model, *types(pair)) as server:
        assert server.wait() is None
        told = rotations(server)
    keys = held_to("rotated-keys", model, pair)

    assert told == rotated
    assert (keys.verdict == "ok") == rotated["k"]


def test_rotation_that_is_disabled_is_off_for_both_halves(tmp_path: Path, any_build: Path) -> None:
    """By the variable that kvsup warns of; another number of the same meaning as none is none."""
    model = MAKERS["heads of 64"](tmp_path / "m.gguf")
    found = held_to("rotation-on", model, "q8_0:q4_0", unrotated_because="it is disabled")

    with bare(any_build, model, *types("q8_0:q4_0"), LLAMA_ATTN_ROT_DISABLE="-1") as server:
        assert server.wait() is None
        disabled = rotations(server)
    with bare(any_build, model, *types("q8_0:q4_0"), LLAMA_ATTN_ROT_DISABLE="true") as server:
        assert server.wait() is None
        kept = rotations(server)

    assert disabled == {"k": False, "v": False}
    assert kept == {"k": True, "v": True}
    assert found.verdict == "warn"


def test_keys_of_latent_attention_are_not_rotated_whatever_the_log_says(
    tmp_path: Path, llama_server: Path
) -> None:
    """The log tells a rotation, but the numbers are the same without it; plain ones are not."""
    answers: dict[str, list[list[float | None]]] = {"latent": [], "heads of 64": []}
    for kind, both in answers.items():
        model = MAKERS[kind](tmp_path / f"{kind}.gguf")
        for disabled in ("0", "1"):
            environment = {"LLAMA_ATTN_ROT_DISABLE": disabled}
            with bare(llama_server, model, *types("q4_0:q4_0"), **environment) as server:
                assert server.wait() is None
                assert rotations(server)["k"] == (disabled == "0")
                both.append(server.log_probabilities())
    found = held_to("rotated-keys", tmp_path / "latent.gguf", "q4_0:q4_0")

    assert answers["latent"][0] == answers["latent"][1]
    assert answers["heads of 64"][0] != answers["heads of 64"][1]
    assert found.verdict == "warn"


@pytest.mark.parametrize("pair", ["f16:f16", "q8_0:q4_0"])
def test_types_of_a_recurrent_model_have_no_effect(
    tmp_path: Path, any_build: Path, pair: str
) -> None:
    """It takes any, and has no cache to store in them."""
    model = make_recurrent(tmp_path / "m.gguf")

    with bare(any_build, model, *types(pair)) as server:
        assert server.wait() is None
        caches = [fact for fact in server.facts if isinstance(fact, KVCacheSize)]
    found = held_to("used-types", model, pair)

    assert caches == []
    assert found.verdict == ("ok" if pair == "f16:f16" else "warn")


def test_types_of_an_encoder_have_no_effect(any_build: Path, tiny: TinyModels) -> None:
    """It attends to its input without a cache."""
    model = tiny.embedding()

    with bare(any_build, model, *types("q8_0:q8_0"), "--embedding") as server:
        assert server.wait() is None
        caches = [fact for fact in server.facts if isinstance(fact, KVCacheSize)]

    assert caches == []
    assert held_to("used-types", model, "q8_0:q8_0").verdict == "warn"


def test_context_beyond_training_is_allocated_but_not_given(
    tmp_path: Path, any_build: Path
) -> None:
    """Its memory is lost, which is why kvsup warns and clips."""
    model = MAKERS["heads of 64"](tmp_path / "m.gguf")

    with bare(any_build, model, *types("f16:f16", n_ctx=1024)) as server:
        assert server.wait() is None
        [cache] = [fact for fact in server.facts if isinstance(fact, KVCacheSize)]
        [slot] = [fact for fact in server.facts if isinstance(fact, SlotContext)]

    assert (cache.cells, slot.n_tokens) == (1024, 512)
    assert held_to("trained-context", model, "f16:f16", num_ctx=1024).verdict == "warn"


@pytest.mark.parametrize(
    "case",
    [
        Case("flash-for-values", "heads of 64", "q8_0:q4_0", "off", "requires flash_attn"),
        Case("key-blocks", "heads of 80", "q8_0:f16", "auto", "n_embd_head_k=80"),
        Case("value-blocks", "heads of 80", "f16:q8_0", "auto", "n_embd_head_v=80"),
        Case("known-types", "heads of 64", "q3_k:f16", "auto", "Unsupported cache type: q3_k"),
    ],
    ids=lambda case: case.rule,
)
def test_pair_of_a_draft_model_is_held_to_the_same_rules(
    tmp_path: Path, any_build: Path, case: Case
) -> None:
    """The draft has a cache of its own; its fault ends the whole llama-server."""
    model = MAKERS["heads of 64"](tmp_path / "m.gguf")
    draft = MAKERS[case.kind](tmp_path / "d.gguf")
    k, _, v = case.pair.partition(":")
    of_draft = ("--cache-type-k-draft", k, "--cache-type-v-draft", v, "--model-draft", str(draft))

    with bare(any_build, model, *types("f16:f16", case.flash_attention), *of_draft) as server:
        code = server.wait()
        log = server.log
    found = held_to(
        f"draft-{case.rule}",
        model,
        "f16:f16",
        case.flash_attention,
        draft=parse_kv_pair(case.pair),
        draft_shape=shape_of(read_metadata_of(draft)),
    )

    assert code not in {None, 0}
    assert case.said in log
    assert (found.verdict, found.key) == ("refused", "draft_kv_cache_type")
