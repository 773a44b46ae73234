"""How an answer goes on whose llama-server died in the middle of it (b10434, b11434).

A *replay* runs the request again with the same seed: it is exact where the engine is, and samplers,
grammars and parsers stand right by themselves, but it costs every delivered token once more. A
*continuation* puts the delivered text behind the prompt: it costs one prompt, but only plain text
can go on so, and the engine may see it differently in one batch than token by token.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from kvsup.llama.transcript import CHAT, NATIVE, TEXT, Answer, Transcript

Mode = Literal["auto", "replay", "continue", "off"]
"""``ModelConfig.resume``."""

MAX_REPLAY_S = 5.0
"""How long a replay may take at most where a continuation is possible, in mode ``auto``."""

MAX_FRUITLESS = 2
"""After as many replays that died before anything new, a continuation is tried."""

_BUDGETS = ("reasoning_budget_tokens", "thinking_budget_tokens")
_ONE_ANSWER = ("n", "n_cmpl")
_LIMITS = ("n_predict", "max_completion_tokens", "max_tokens")
"""The names of the limit of tokens, the first wins (server-schema.cpp, b11434)."""

_CONTINUABLE = {CHAT, TEXT, *NATIVE} - {"/infill"}

_OPENS_THINKING = ("<think", "[THINK]", "<|channel")
_UNSET: tuple[object, ...] = (None, False, 0, -1, "", [], {})

_OBSTACLES: Mapping[str, str] = {
    "tools": "tools are offered",
    "functions": "tools are offered",
    "grammar": "a grammar constrains it",
    "json_schema": "a schema constrains it",
    "logprobs": "probabilities are asked for",
    "n_probs": "probabilities are asked for",
    "echo": "the prompt is echoed",
    "verbose": "the prompt is told",
    "response_fields": "its last event is asked for in part",
    "n_indent": "the indentation counts",
    "t_max_predict_ms": "the time counts",
}
"""Members of a request that count from its first token; with any of them nothing is continued."""


class _Asked(msgspec.Struct, frozen=True):
    prompt: Any = None
    n: int | None = None
    n_cmpl: int | None = None


@dataclass(frozen=True, slots=True)
class Replay:
    """Post the same request again."""


@dataclass(frozen=True, slots=True)
class Continue:
    """Post the request's ``continued_body``."""

    is_whole: bool = False
    """Whether the text is complete, and only the end of the stream is missing."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of an answer that broke off."""

    has_delivered: bool
    """Whether the client has had anything that matters."""
    is_readable: bool = True
    """Whether kvsup knows the route's events, so that it can compare them."""
    can_replay: bool = True
    """Not if it would give something else, since the answer was continued before."""
    can_continue: bool = False
    is_whole: bool = False
    """Whether only the end of the stream is missing."""
    n_fruitless: int = 0
    """How many attempts in a row died before they gave anything new."""
    n_delivered_tokens: int = 0
    tokens_per_s: float | None = None
    """How fast they were generated; None if unknown."""

    @property
    def replay_s(self) -> float:
        """Return how long it takes to generate the delivered tokens again; 0 if unknown."""
        return self.n_delivered_tokens / self.tokens_per_s if self.tokens_per_s else 0.0


def facts(
    path: str,
    body: Mapping[str, Any],
    transcript: Transcript,
    *,
    can_replay: bool = True,
    can_continue: bool = True,
    n_fruitless: int = 0,
    tokens_per_s: float | None = None,
) -> Facts:
    """Return what is known of the answer to ``body`` of which ``transcript`` was delivered.

    Args:
        path: the route of llama-server.
        body: the request as it was posted first.
        transcript: what the client has had.
        can_replay: not if a replay of it gave something else, or was refused.
        can_continue: not if a continuation of it was refused.
        n_fruitless: as ``Facts``.
        tokens_per_s: as ``Facts``.
    """
    return Facts(
        has_delivered=transcript.has_delivered,
        is_readable=not transcript.is_opaque,
        can_replay=can_replay and not transcript.has_continued,
        can_continue=can_continue and obstacle(path, body, transcript) is None,
        is_whole=_is_whole(body, transcript),
        n_fruitless=n_fruitless,
        n_delivered_tokens=transcript.n_tokens,
        tokens_per_s=tokens_per_s,
    )


def n_answers(path: str, body: bytes) -> int:
    """Return how many ends a stream of ``path`` has: of ``/completion`` one for each answer.

    A ``body`` that cannot be read has one.
    """
    if path not in NATIVE:
        return 1
    try:
        asked = msgspec.json.decode(body, type=_Asked)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 1
    prompt = asked.prompt
    is_several = isinstance(prompt, list) and not any(isinstance(part, int) for part in prompt)
    n_prompts = len(prompt) if is_several and isinstance(prompt, list) else 1
    return max(1, n_prompts) * max(1, asked.n_cmpl or asked.n or 1)


def choose(mode: Mode, facts: Facts) -> Replay | Continue | None:
    """Return how to go on, or None where nothing is right.

    Whoever has had nothing yet always gets a replay: there is nothing to compare. ``continue``
    takes a replay for what cannot be continued.
    """
    if not facts.has_delivered:
        return Replay()
    if mode == "off" or not facts.is_readable:
        return None
    may_continue = facts.can_continue and mode != "replay"
    prefers_continuing = (
        mode == "continue"
        or facts.n_fruitless >= MAX_FRUITLESS
        or facts.replay_s > MAX_REPLAY_S
        or not facts.can_replay
    )
    if may_continue and prefers_continuing:
        return Continue(is_whole=facts.is_whole)
    return Replay() if facts.can_replay else None


def obstacle(path: str, body: Mapping[str, Any], transcript: Transcript) -> str | None:
    """Return why the answer to ``body`` cannot be continued, or None if it can."""
    return next(_obstacles(path, body, transcript), None)


def _obstacles(path: str, body: Mapping[str, Any], transcript: Transcript) -> Iterator[str]:
    if path not in _CONTINUABLE:
        yield "the route's answers cannot be continued"
    if transcript.is_opaque or set(transcript.answers) != {0}:
        yield "there is not one answer"
        return
    yield from (why for name, why in _OBSTACLES.items() if body.get(name) not in _UNSET)
    if any((body.get(name) or 1) != 1 for name in _ONE_ANSWER):
        yield "several answers are asked for"
    answer = transcript.answers[0]
    if answer.calls:
        yield "it holds a tool call"
    if not (answer.content.tell() or answer.reasoning.tell()):
        yield "it has no text yet"
    if path == CHAT:
        yield from _obstacles_of_chat(body, answer)
    elif not _is_one_prompt(body.get("prompt")):
        yield "there is not one prompt"


def _obstacles_of_chat(body: Mapping[str, Any], answer: Answer) -> Iterator[str]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        yield "the request has no messages"
        return
    if messages[-1].get("role") == "assistant" or body.get("continue_final_message"):
        yield "the request itself goes on with a text"
    if body.get("add_generation_prompt") is False:
        yield "the request leaves out the start of the answer"
    form = body.get("response_format")
    if isinstance(form, dict) and form.get("type") not in (None, "text"):
        yield "a schema constrains it"
    if answer.content.getvalue().lstrip().startswith(_OPENS_THINKING):
        yield "its thinking stands in its text"
    if not answer.content.tell() and any(_is_limit(body.get(name)) for name in _BUDGETS):
        yield "the thinking has a budget"


def _is_limit(budget: object) -> bool:
    """Say whether it limits the thinking: -1 does not, nor does what is no number."""
    return isinstance(budget, int | float) and budget >= 0


def continued_body(path: str, body: Mapping[str, Any], transcript: Transcript) -> dict[str, Any]:
    """Return the request that goes on behind what was delivered.

    A chat gets the text as the start of its last message: with both flags the stream holds only
    what is new (server-common.cpp, ``oaicompat_chat_params_parse``, b11434). A prompt gets the ids
    of the tokens where all are known, else the text: the last ids can be of a stop word, whose text
    was not delivered. The limit of tokens is lowered by those
    delivered; where none is left one is asked for, since 0 gives one too.

    Raises:
        ValueError: it cannot be continued; the message says why.
    """
    why = obstacle(path, body, transcript)
    if why is not None:
        raise ValueError(f"the answer cannot be continued: {why}")
    answer = transcript.answers[0]
    continued = {name: value for name, value in body.items() if name not in _LIMITS}
    limit = _limit(body)
    if answer.finish_reason is not None:
        continued["n_predict"] = 1
    elif limit is not None:
        continued["n_predict"] = max(1, limit - answer.n_spoken)
    if path == CHAT:
        return {**continued, **_chat_members(body["messages"], answer)}
    knows_tokens = answer.has_all_token_ids and not body.get("stop")
    tokens = answer.tokens[: answer.n_spoken] if knows_tokens else []
    continued["prompt"] = _prompt_with(body["prompt"], answer.content.getvalue(), tokens)
    return continued


def _chat_members(messages: list[Any], answer: Answer) -> dict[str, Any]:
    content, reasoning = answer.content.getvalue(), answer.reasoning.getvalue()
    message = {"role": "assistant", "content": content}
    if reasoning:
        message["reasoning_content"] = reasoning
    return {
        "messages": [*messages, message],
        "continue_final_message": "content" if content else "reasoning_content",
        "add_generation_prompt": False,
    }


def _is_one_prompt(prompt: object) -> bool:
    """Say whether it is a text, one with media, tokens, or texts and tokens, but not several."""
    if isinstance(prompt, dict):
        return isinstance(prompt.get("prompt_string"), str)
    if isinstance(prompt, list):
        is_mixed = any(isinstance(part, int) for part in prompt)
        return (is_mixed or len(prompt) == 1) and all(isinstance(p, int | str) for p in prompt)
    return isinstance(prompt, str)


def _prompt_with(prompt: Any, text: str, tokens: list[int]) -> object:
    """Return one prompt with what follows it: ``tokens`` if there are any, else ``text``.

    A list of texts and tokens is one prompt, but a list of texts alone is several.
    """
    if isinstance(prompt, dict):
        return {**prompt, "prompt_string": prompt["prompt_string"] + text}
    parts = prompt if isinstance(prompt, list) else [prompt]
    if parts == [""] or (not tokens and len(parts) == 1 and isinstance(parts[0], str)):
        return parts[0] + text
    following: list[Any] = [*tokens] if tokens else [text]
    return [*parts, *following]


def _limit(body: Mapping[str, Any]) -> int | None:
    """Return the limit of tokens, None where there is none."""
    values = (body.get(name) for name in _LIMITS)
    limit = next((value for value in values if value is not None), None)
    return limit if isinstance(limit, int) and limit > 0 else None


def _is_whole(body: Mapping[str, Any], transcript: Transcript) -> bool:
    answer = transcript.answers.get(0)
    if answer is None:
        return False
    limit = _limit(body)
    return answer.finish_reason is not None or (limit is not None and answer.n_tokens >= limit)
