"""What one request of ``/api/chat`` or ``/api/generate`` needs done, beside being relayed."""

import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import ClassVar, Generic, TypeVar

import msgspec

from kvsup.api import listing, prompting
from kvsup.api.exchange import JSON, NDJSON, Header
from kvsup.config import ModelConfig
from kvsup.errors import KvsupError, RequestError
from kvsup.gguf import Array
from kvsup.ollama import gates, to_llama
from kvsup.ollama.from_llama import ChatReplies, Folded, GenerateReplies
from kvsup.ollama.ndjson import encode, rfc3339
from kvsup.ollama.prompt import PromptTemplate, tag_images
from kvsup.ollama.requests import ChatRequest, GenerateRequest, Message
from kvsup.ollama.thinking import CLOSING, OPENING, ThoughtSplitter
from kvsup.ollama.to_llama import CHAT_PATH, COMPLETION_PATH, LlamaCall
from kvsup.ollama.truncation import TOO_LONG, cut_tokens
from kvsup.plan import Plan
from kvsup.runtime.instance import Instance
from kvsup.runtime.keeping import Kept

R = TypeVar("R", ChatRequest, GenerateRequest)
Replies = ChatReplies | GenerateReplies


@dataclass(frozen=True, slots=True)
class KeptCall:
    """A call that is posted, whose body is kept."""

    path: str
    body: Kept

    async def read(self) -> LlamaCall:
        """Return it whole; raises as ``Kept.read``."""
        return LlamaCall(self.path, msgspec.json.decode(await self.body.read()))


class OllamaAnswer:
    """Replies with the clock that they need, and the tokens that a later request can go on from."""

    headers: tuple[Header, ...] = ()

    def __init__(
        self,
        replies: Replies | Folded,
        content_type: bytes,
        *,
        started_ns: int,
        load_ns: int,
        context: Callable[[], Awaitable[Sequence[int]]],
    ) -> None:
        self.content_type = content_type
        self._replies = replies
        self._started_ns = started_ns
        self._load_ns = load_ns
        self._context = context

    def feed(self, data: bytes) -> bytes:
        """Return the lines for ``data``."""
        return self._replies.feed(data, time.time_ns())

    async def finish(self) -> bytes:
        """Return the last line, or the whole folded object."""
        context = await self._context()
        return self._replies.finish(
            time.time_ns(),
            total_ns=time.monotonic_ns() - self._started_ns,
            load_ns=self._load_ns,
            context=context,
        )


class Job(Generic[R]):
    """One request to generate; ``check`` comes first."""

    empty: ClassVar[dict[str, object]]
    """The member that holds the text, without one."""

    def __init__(self, request: R) -> None:
        self.request: R = request
        self._model: ModelConfig | None = None
        self._call: LlamaCall | None = None

    def check(self, plan: Plan) -> None:
        """Raise ``RequestError`` if ``plan``'s model cannot do it, or the request is wrong."""
        raise NotImplementedError

    def _check(self, plan: Plan, gate: Callable[[R, Collection[str]], None]) -> None:
        """Raise as ``gate`` does; then let a model that can think do so unless it was told."""
        can = listing.capabilities(plan)
        gate(self.request, can)
        think = gates.thinks(self.request.think, can, plan.model.reasoning)
        self.request = msgspec.structs.replace(self.request, think=think)

    def _built(self, model: ModelConfig) -> LlamaCall:
        """Return the call under the settings of ``model``; built once where they stay the same."""
        if self._call is None or model is not self._model:
            self._model, self._call = model, self._build(model)
        return self._call

    def _build(self, model: ModelConfig) -> LlamaCall:
        raise NotImplementedError

    async def call(self, instance: Instance) -> LlamaCall:
        """Return what to post to the leased ``instance``."""
        raise NotImplementedError

    def forget(self) -> None:
        """Let go of what only ``call`` needs and may be large; the posted body holds it all."""
        self._call = None

    async def shorter(self, instance: Instance, call: KeptCall) -> LlamaCall | None:
        """Return ``call`` with a prompt that fits, or None where that is not wanted or possible."""
        raise NotImplementedError

    def replies(self, path: str) -> Replies:
        """Return what writes the answer to a call at ``path``."""
        raise NotImplementedError

    @property
    def n_images(self) -> int:
        """Return how many images the request has."""
        raise NotImplementedError

    async def context(self, instance: Instance, call: KeptCall, text: str) -> Sequence[int]:  # noqa: ARG002 - a chat has none
        """Return the tokens from which a later request can go on, after the answer ``text``."""
        return ()

    def bare(self, **rest: object) -> bytes:
        """Return an answer without text, with ``rest`` behind."""
        start = {"model": self.request.model, "created_at": rfc3339(time.time_ns())}
        return encode({**start, **self.empty, **rest})

    async def rendered(self, instance: Instance, call: LlamaCall) -> bytes:
        """Return the answer to ``_debug_render_only``."""
        prompt = await prompt_of(instance, call)
        shown = {"rendered_template": prompt, "image_count": self.n_images}
        return self.bare(done=False, _debug_info=shown)

    def answer(
        self,
        instance: Instance,
        call: KeptCall,
        *,
        started_ns: int,
        load_ns: int,
        beside: dict[str, int],
    ) -> OllamaAnswer:
        """Return what turns llama-server's answer to ``call`` into Ollama's."""
        replies = self.replies(call.path)
        replies.beside = beside
        return OllamaAnswer(
            replies if self.request.stream else Folded(replies),
            NDJSON if self.request.stream else JSON,
            started_ns=started_ns,
            load_ns=load_ns,
            context=lambda: self.context(instance, call, replies.text),
        )


class ChatJob(Job[ChatRequest]):
    """A request of ``/api/chat``."""

    empty: ClassVar[dict[str, object]] = {"message": {"role": "assistant", "content": ""}}

    def check(self, plan: Plan) -> None:
        """Raise as declared."""
        self._check(plan, gates.check_chat)
        self._built(plan.model)

    async def call(self, instance: Instance) -> LlamaCall:
        """Return the chat as it is."""
        return self._built(instance.plan.model)

    def _build(self, model: ModelConfig) -> LlamaCall:
        return to_llama.chat_body(
            self.request,
            model=model.name,
            system=model.system,
            options=model.options,
            num_ctx=model.num_ctx,
            history=_history(model),
        )

    def forget(self) -> None:
        """Let go of the messages."""
        super().forget()
        self.request = msgspec.structs.replace(self.request, messages=())

    async def shorter(self, instance: Instance, call: KeptCall) -> LlamaCall | None:
        """Leave out the oldest messages."""
        if not self.request.truncate:
            return None
        n_ctx = instance.plan.model.num_ctx
        return await prompting.shortened(instance, await call.read(), n_ctx=n_ctx)

    def replies(self, path: str) -> Replies:  # noqa: ARG002 - all go one way
        """Return what writes a chat."""
        return ChatReplies(self.request.model, top_logprobs=self.request.top_logprobs)

    @property
    def n_images(self) -> int:
        """Return how many images all messages have."""
        return sum(len(message.images) for message in self.request.messages)


class GenerateJob(Job[GenerateRequest]):
    """A request of ``/api/generate``."""

    empty: ClassVar[dict[str, object]] = {"response": ""}

    def check(self, plan: Plan) -> None:
        """Raise as declared."""
        request = self.request
        self._template = PromptTemplate.parse(request.template) if request.template else None
        takes_suffix = self._template is not None and self._template.takes_suffix
        self._check(plan, partial(gates.check_generate, template_takes_suffix=takes_suffix))
        request = self.request
        tokens = plan.file.metadata.values.get("tokenizer.ggml.tokens")
        n_vocab = tokens.length if isinstance(tokens, Array) else None
        if any(t < 0 or (n_vocab is not None and t >= n_vocab) for t in request.context or ()):
            raise RequestError(f"context holds a token that {request.model} does not have")
        self._prompt = ""
        self._built(plan.model)

    async def call(self, instance: Instance) -> LlamaCall:
        """Return the call, with the prompt rendered here if the request brings its own way."""
        request = self.request
        model = instance.plan.model
        call = self._built(model)
        if self._template is not None:
            prompt = self._rendered(self._template, model)
        elif request.suffix:
            tokens = await prompting.fill_in(instance, request.prompt, request.suffix)
            return self._completion(tokens, model)
        elif request.context and call.path == CHAT_PATH:
            prompt = await prompting.render(instance, call)
        elif request.raw and request.images:
            prompt = request.prompt
        else:
            return call
        if request.context:
            prompt = await prompting.detokenize(instance, request.context) + prompt
        self._prompt = prompt
        if not request.images:
            return self._completion(prompt, model)
        marker = await prompting.media_marker(instance)
        return self._completion(to_llama.with_media(prompt, request.images, marker=marker), model)

    def forget(self) -> None:
        """Let go of the images; a text that fits a context is never large."""
        super().forget()
        self._has_images = bool(self.request.images)
        self.request = msgspec.structs.replace(self.request, images=())

    async def shorter(self, instance: Instance, call: KeptCall) -> LlamaCall | None:
        """Keep the first tokens and the last ones."""
        request = self.request
        if not request.truncate or self._has_images:
            return None
        if request.shift is False:
            raise RequestError(TOO_LONG)
        model = instance.plan.model
        if request.suffix and self._template is None:
            room = model.num_ctx // 2
            around = await prompting.fill_in(instance, request.prompt, request.suffix, room=room)
            return self._completion(around, model)
        posted = await call.read()
        self._prompt = await prompt_of(instance, posted)
        tokens = await prompting.tokenize(instance, self._prompt, add_special=True)
        kept = cut_tokens(
            tokens,
            n_ctx=model.num_ctx,
            n_keep=int(posted.body.get("n_keep", 0)),  # type: ignore[call-overload]  # options are typed
        )
        return self._completion(kept, model)

    def replies(self, path: str) -> Replies:
        """Return what writes a text."""
        return GenerateReplies(
            self.request.model,
            top_logprobs=self.request.top_logprobs,
            keeps_text=not self.request.raw,
            splitter=self._splitter(path),
        )

    def _splitter(self, path: str) -> ThoughtSplitter | None:
        """Return what parts thoughts from the text, where llama-server does not."""
        request = self.request
        if not request.think or request.raw or path != COMPLETION_PATH:
            return None
        tags = self._template.thinking_tags if self._template is not None else ("", "")
        opening, closing = tags if all(tags) else (OPENING, CLOSING)
        return ThoughtSplitter(opening, closing, prompt=self._prompt)

    @property
    def n_images(self) -> int:
        """Return how many images the prompt has."""
        return len(self.request.images)

    async def context(self, instance: Instance, call: KeptCall, text: str) -> Sequence[int]:
        """Return the tokens of prompt and answer; none if raw, or if they cannot be asked for."""
        if self.request.raw or self.request.suffix:
            return ()
        try:
            whole = await prompt_of(instance, await call.read()) + text
            if self._has_images:  # the process's own word for them would be none in the next
                whole = whole.replace(await prompting.media_marker(instance), "")
            return await prompting.tokenize(instance, whole, add_special=False)
        except KvsupError:  # the answer is there; if it is not complete, that is told anyway
            return ()

    def _build(self, model: ModelConfig) -> LlamaCall:
        return to_llama.generate_body(
            self.request,
            model=model.name,
            system=model.system,
            options=model.options,
            num_ctx=model.num_ctx,
            history=_history(model),
        )

    def _rendered(self, template: PromptTemplate, model: ModelConfig) -> str:
        request, today = self.request, datetime.now().astimezone().date()
        if request.suffix:
            return template.fill(request.prompt, request.suffix, think=request.think, today=today)
        system = request.system or model.system
        messages = [Message(role="system", content=system)] if system else []
        if request.context is None:
            messages += [Message(role=one.role, content=one.content) for one in model.messages]
        messages.append(Message(role="user", content=request.prompt, images=request.images))
        tagged, _ = tag_images(messages)
        return template.render(tagged, tools=(), think=request.think, today=today)

    def _completion(self, prompt: to_llama.Prompt, model: ModelConfig) -> LlamaCall:
        return to_llama.completion_body(
            self.request,
            prompt,
            model=model.name,
            options=model.options,
            num_ctx=model.num_ctx,
        )


def _history(model: ModelConfig) -> list[dict[str, object]]:
    return [{"role": one.role, "content": one.content} for one in model.messages]


async def prompt_of(instance: Instance, call: LlamaCall) -> str:
    """Return the prompt that ``call`` runs, as text."""
    if call.path == CHAT_PATH:
        return await prompting.render(instance, call)
    match call.body["prompt"]:
        case str(text) | {"prompt_string": str(text)}:
            return text
        case tokens:
            return await prompting.detokenize(instance, tokens)  # type: ignore[arg-type]  # tokens
