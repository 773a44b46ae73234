"""Losses, answers and speeds of pairs, measured on the real llama-server."""

from pathlib import Path

import msgspec
import pytest

from kvsup.divergence import quality_of, spearman
from kvsup.errors import ConfigError
from kvsup.kvtypes import F16, KVPair, parse_kv_pair
from kvsup.measures import Quality, TokenScores
from kvsup.plan import Plan
from kvsup.tuning import forcing, greedy, perplexity, speed
from kvsup.tuning.forcing import Reference
from kvsup.tuning.measuring import Subject, baseline
from kvsup.tuning.sample import (
    Conversation,
    Sample,
    built_in,
    chat_prompts,
    from_text,
    prepare,
)
from kvsup.tuning.stages import Costs, Schedule
from kvsup.tuning.trial import TrialFailed, trial
from scripts.make_tiny_gguf import chat_template
from tests.runtime.supervised import Folder, processes_with
from tests.tiny import TOOLS, TinyModels

pytestmark = pytest.mark.anyio

TEN_PAIRS = (
    "f16:q8_0", "q8_0:q5_1", "q8_0:q5_0", "q8_0:q4_1", "q8_0:q4_0",
    "q5_1:q5_1", "q5_0:q4_0", "q4_1:q8_0", "q4_0:q8_0", "q4_0:q4_0",
)  # fmt: skip
NUM_CTX = 512

TORN = "naïve 🙂 日本語 𒀀 and hieroglyphs 𓂀𓂁, then plain words again."
"""Characters that the tokenizers of both models take apart, beside some that they do not."""

CALL = (
    '<tool_call>\n{"name": "get_weather", ',
    '"arguments": {"city": "Paris"}}',
    "\n</tool_call>",
)


@pytest.fixture
def plan(folder: Folder) -> Plan:
    """Return the plan of the demo model."""
    folder.write(m="")
    return folder.plan("m")


def _prose() -> str:
    return "\n\n".join(c.messages[-1]["content"] for c in built_in() if c.kind == "prose")


def _asked(question: str, *, answer: str = "Yes.") -> Conversation:
    messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return Conversation("dialogue", messages)


async def _scores(plan: Plan, pair: KVPair, sample: Sample, reference: Reference) -> TokenScores:
    async with trial(plan, pair, num_ctx=NUM_CTX) as running:
        return await forcing.score(running, sample, reference)


async def test_f16_against_itself_loses_nothing_and_k_loses_more_than_v(plan: Plan) -> None:
    """By teacher forcing through llama-server alone, on two conversations."""
    async with trial(plan, F16, num_ctx=NUM_CTX) as running:
        sample = await prepare(running, built_in()[:2], max_scored_tokens=300)
        reference = await forcing.reference(running, sample)
        floor = quality_of(await forcing.score(running, sample, reference))
    coarse_v = quality_of(await _scores(plan, parse_kv_pair("q8_0:q4_0"), sample, reference))
    coarse_k = quality_of(await _scores(plan, parse_kv_pair("q4_0:q8_0"), sample, reference))

    assert len(sample.passages) == 2
    assert floor.mean_kld_nats < 1e-3
    assert floor.same_top > 0.99
    assert coarse_k.mean_kld_nats > 2 * coarse_v.mean_kld_nats > 2 * floor.mean_kld_nats
    assert coarse_k.same_top < coarse_v.same_top


@pytest.mark.parametrize("model", ["smollm2", "gemma3"])
async def test_forced_tokens_are_scored_on_each_build(
    request: pytest.FixtureRequest, tmp_path: Path, any_build: Path, model: str
) -> None:
    """A sliding window (Gemma) is generated under a grammar, another cache is stepped through."""
    folder = Folder(tmp_path, any_build, request.getfixturevalue(model))
    folder.write(m="")
    plan = folder.plan("m")
    told: list[str] = []

    async with trial(plan, F16, num_ctx=256) as running:
        sample = await prepare(running, built_in()[:1], max_scored_tokens=24)
        reference = await forcing.reference(running, sample, n_probs=64)
        scores = await forcing.score(
            running, sample, reference, n_probs=64, on_token=lambda: told.append("token")
        )

    assert len(scores.kld_nats) == sum(scores.blocks) == len(told) == 24
    assert max(scores.kld_nats) < 1e-3
    assert scores.logprob == pytest.approx(scores.reference_logprob, abs=1e-3)


@pytest.mark.parametrize("model", ["smollm2", "gemma3"])
async def test_parts_of_characters_are_read_but_not_scored_on_each_build(
    request: pytest.FixtureRequest, tmp_path: Path, any_build: Path, model: str
) -> None:
    """llama-server tells no probability of a token that ends within a character."""
    folder = Folder(tmp_path, any_build, request.getfixturevalue(model))
    folder.write(m="")

    async with trial(folder.plan("m"), F16, num_ctx=256) as running:
        sample = await prepare(running, [_asked("Hi", answer=TORN)], max_scored_tokens=200)
        reference = await forcing.reference(running, sample, n_probs=16)
        scores = await forcing.score(running, sample, reference, n_probs=16)

    [passage] = sample.passages
    assert sample.n_torn > 0
    assert len(scores.kld_nats) == sample.n_scored == sum(scores.blocks) > 8
    assert sample.n_scored + sample.n_torn == len(passage.tokens) - passage.scored_from
    assert max(scores.kld_nats) < 1e-3


@pytest.mark.parametrize(
    ("conversation", "mend"),
    [
        (Conversation("text", text="One line is too little."), "write some hundred words"),
        (Conversation("text", text="𒀀" * 80), "write in a language that it knows"),
        (_asked("word " * 300), "give the model a larger num_ctx"),
    ],
)
async def test_text_of_which_nothing_is_scored_is_refused_with_the_mend(
    plan: Plan, conversation: Conversation, mend: str
) -> None:
    """It is an operator's error, whose message says which of text and context to change."""
    async with trial(plan, F16, num_ctx=256) as running:
        with pytest.raises(ConfigError, match=mend):
            await prepare(running, [conversation], max_scored_tokens=100)


async def test_both_ways_of_forcing_tell_the_same_of_a_full_window(folder: Folder) -> None:
    """With ``swa_full`` Gemma's cache is stepped through, without it it is generated."""
    logprobs = []

    for rest in ("swa_full = true", "swa_full = false"):
        folder.write(m=rest)
        async with trial(folder.plan("m"), F16, num_ctx=256) as running:
            sample = await prepare(running, built_in()[:1], max_scored_tokens=16)
            reference = await forcing.reference(running, sample, n_probs=8)
        logprobs.append(memoryview(reference.target_logprobs).cast("f").tolist())

    assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-2)


async def test_sample_scores_the_answer_and_nothing_before_it(plan: Plan) -> None:
    """The scored span, as text, is the assistant's; what stands before is the template's."""
    conversation = built_in()[0]

    async with trial(plan, F16, num_ctx=1024) as running:
        sample = await prepare(running, [conversation], max_scored_tokens=10_000)
        [passage] = sample.passages
        scored = passage.tokens[passage.scored_from :]
        answer = await running.ask("/detokenize", {"tokens": scored})
        before = await running.ask("/detokenize", {"tokens": passage.tokens[: -len(scored)]})

    assert answer["content"] == conversation.messages[-1]["content"]
    assert before["content"].endswith("<|im_start|>assistant\n")


async def test_score_against_the_reference_of_another_sample_is_refused(plan: Plan) -> None:
    """Scores of other tokens would be numbers without a meaning."""
    async with trial(plan, F16, num_ctx=NUM_CTX) as running:
        one = await prepare(running, built_in()[:1], max_scored_tokens=4)
        other = await prepare(running, built_in()[1:2], max_scored_tokens=4)
        reference = await forcing.reference(running, one, n_probs=8)

        with pytest.raises(ValueError, match="another sample"):
            await forcing.score(running, other, reference)


@pytest.mark.timeout(300)
async def test_ranking_of_ten_pairs_is_that_of_llama_perplexity(plan: Plan, tmp_path: Path) -> None:
    """Both read the same prose; the order of pairs does not depend on who measures them."""
    tool = perplexity.find(plan.binary)
    assert tool is not None
    text, logits = tmp_path / "prose.txt", tmp_path / "logits"
    text.write_text(_prose(), "utf-8")
    async with trial(plan, F16, num_ctx=NUM_CTX) as running:
        sample = await prepare(running, from_text(_prose()), max_scored_tokens=128)
        reference = await forcing.reference(running, sample)
    await perplexity.base(tool, plan, text, logits, n_ctx=256, n_chunks=2)
    forced: dict[str, Quality] = {}
    judged: dict[str, Quality] = {}

    for name in TEN_PAIRS:
        pair = parse_kv_pair(name)
        forced[name] = quality_of(await _scores(plan, pair, sample, reference))
        judged[name] = await perplexity.divergence(tool, plan, pair, logits, n_ctx=256, n_chunks=2)
    floor = await perplexity.divergence(tool, plan, F16, logits, n_ctx=256, n_chunks=2)

    ours = [forced[name].mean_kld_nats for name in TEN_PAIRS]
    theirs = [judged[name].mean_kld_nats for name in TEN_PAIRS]
    assert spearman(ours, theirs) >= 0.9, list(zip(TEN_PAIRS, ours, theirs, strict=True))
    assert judged["q4_0:q8_0"].mean_kld_nats > judged["q8_0:q4_0"].mean_kld_nats
    assert floor.mean_kld_nats < 1e-3
    assert processes_with(str(logits)) == []


async def test_greedy_answers_of_one_pair_are_the_same_each_time(plan: Plan) -> None:
    """Whatever was asked before: otherwise a difference would say nothing of the pair."""
    prompts = chat_prompts()[:3]

    async with trial(plan, F16, num_ctx=NUM_CTX) as running:
        first = await greedy.answers(running, prompts, n_tokens=16)
        again = await greedy.answers(running, reversed(prompts), n_tokens=16)

    found = greedy.first_differences(first, tuple(reversed(again)))
    assert found.first_difference == (None, None, None)
    assert all(0 < length <= 16 for length in found.lengths)


async def test_tool_calls_are_told_with_their_names_and_arguments(
    tmp_path: Path, llama_server: Path, tiny: TinyModels
) -> None:
    """In their order and decoded, so that neither ids nor blanks make a difference."""
    folder = Folder(tmp_path, llama_server, tiny.two_calls())
    folder.write(m="")
    case = {"messages": [{"role": "user", "content": "Hi"}], "tools": TOOLS, "stream": True}

    async with trial(folder.plan("m"), F16, num_ctx=1024) as running:
        calls = await greedy.tool_calls(running, [case, {**case, "temperature": 2.0}])

    assert msgspec.json.decode(calls[0]) == [
        {"name": "get_weather", "arguments": {"city": "Paris"}},
        {"name": "get_time", "arguments": {"zone": "CET"}},
    ]
    assert calls[1] == calls[0]


async def test_tool_case_without_a_limit_gets_one(
    tmp_path: Path, llama_server: Path, tiny: TinyModels
) -> None:
    """A model that rambles before its call is stopped, unless the case says otherwise."""
    script = [*(f" w{i}." for i in range(greedy.MAX_CALL_TOKENS)), *CALL]
    model = tiny.scripted("rambling", script, template=chat_template(tools=True))
    folder = Folder(tmp_path, llama_server, model)
    folder.write(m="")
    case = {"messages": [{"role": "user", "content": "Hi"}], "tools": TOOLS}

    async with trial(folder.plan("m"), F16, num_ctx=2048) as running:
        stopped, called = await greedy.tool_calls(running, [case, {**case, "max_tokens": 900}])

    assert stopped == "[]"
    assert "get_weather" in called


async def test_tool_case_that_is_refused_is_told_before_anything_is_measured(plan: Plan) -> None:
    """Minutes of the reference are not thrown away for it."""
    subject = Subject(plan=plan, conversations=built_in(), tool_cases=({"messages": "none"},))

    def decide(costs: Costs) -> Schedule:
        pytest.fail(f"it was measured already: {costs}")

    with pytest.raises(TrialFailed, match=r"/v1/chat/completions answered 4\d\d"):
        await baseline(subject, decide, lambda _expected_s: None)


async def test_speed_at_the_beginning_is_measured_anew_each_time(plan: Plan) -> None:
    """A prompt that the cache holds already would be no measurement: that fails."""
    async with trial(plan, F16, num_ctx=NUM_CTX) as running:
        rounds = [
            await speed.speed_at(running, 0, prompt_tokens=16, generation_tokens=4)
            for _ in range(2)
        ]

    assert [one.depth_tokens for one in rounds] == [0, 0]


async def test_speed_is_measured_at_the_depth_that_was_asked_for(plan: Plan) -> None:
    """The cache is filled first, and cut back where it holds more."""
    async with trial(plan, F16, num_ctx=NUM_CTX) as running:
        deep = await speed.speed_at(running, 200, prompt_tokens=16, generation_tokens=4)
        again = await speed.speed_at(running, 100, prompt_tokens=16, generation_tokens=4)

    assert (deep.depth_tokens, again.depth_tokens) == (200, 100)
    assert min(deep.prompt_tokens_per_s, deep.generation_tokens_per_s) > 0


async def test_probe_tells_both_pairs_at_one_depth(plan: Plan) -> None:
    """However little time there is, one step is filled and one round measured."""
    found = await speed.probe(plan, parse_kv_pair("q8_0:q4_0"), time_limit_s=0.5)

    assert found.pair == "q8_0:q4_0"
    assert found.speed.depth_tokens == found.baseline.depth_tokens >= speed.PROBE_STEP_TOKENS
    assert found.generation_ratio > 0
    assert found.graph_splits == found.baseline_splits == 1
    assert processes_with(plan.run_dir) == []
