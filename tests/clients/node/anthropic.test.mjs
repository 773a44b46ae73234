/** The official Anthropic SDK: https://github.com/anthropics/anthropic-sdk-typescript */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import Anthropic from '@anthropic-ai/sdk';
import { betaTool } from '@anthropic-ai/sdk/helpers/beta/json-schema';
import { zodOutputFormat } from '@anthropic-ai/sdk/helpers/zod';
import { z } from 'zod';

import {
  afterCall,
  afterThought,
  assertSlotIsHeld,
  assertSlotsAreFree,
  assertVerdict,
  call,
  chatModel,
  embedModel,
  endlessModel,
  messages,
  missingModel,
  picture,
  pictureModel,
  pictureText,
  thinkingModel,
  thought,
  toolModel,
  url,
  weather,
  weatherThere,
} from './server.mjs';

const client = new Anthropic({ baseURL: url, apiKey: 'none', maxRetries: 0 });
// The SDK has no temperature; top_k 1 is as certain.
const request = { model: chatModel, messages, max_tokens: 12, top_k: 1 };
const tool = {
  name: weather.name,
  description: weather.description,
  input_schema: weather.parameters,
};
const Verdict = z.object({ verdict: z.enum(['yes', 'no']) });

/** Return a check that an error is of `kind` and its body in Anthropic's shape. */
function isError(kind, type) {
  return (error) => {
    assert.ok(error instanceof kind, `${error.constructor.name}: ${error.message}`);
    assert.equal(error.error.type, 'error');
    assert.equal(error.error.error.type, type);
    assert.equal(typeof error.error.error.message, 'string');
    return true;
  };
}

const isNotFound = isError(Anthropic.NotFoundError, 'not_found_error');
const isBadRequest = isError(Anthropic.BadRequestError, 'invalid_request_error');

async function gather(stream) {
  const items = [];
  for await (const item of stream) items.push(item);
  return items;
}

function assertAnswer(message) {
  assert.equal(message.type, 'message');
  assert.equal(message.role, 'assistant');
  assert.equal(message.model, chatModel);
  assert.equal(message.content[0].type, 'text');
  assert.ok(message.content[0].text.length > 0);
  assert.equal(message.stop_reason, 'max_tokens');
  assert.equal(message.usage.output_tokens, request.max_tokens);
}

test('models lists and retrieves', async () => {
  const listed = await gather(client.models.list());
  const retrieved = await client.models.retrieve(embedModel);

  assert.ok(listed.some(({ id }) => id === `${chatModel}:latest`));
  assert.equal(retrieved.id, embedModel);
});

test('a message answers whole, also of the beta client', async () => {
  assertAnswer(await client.messages.create(request));
  assertAnswer(await client.beta.messages.create(request));
});

test('input tokens are those of the prompt, cached or not', async () => {
  const first = await client.messages.create(request);
  const second = await client.messages.create(request);
  const counted = await client.messages.countTokens({ model: chatModel, messages });

  const total = ({ usage }) => usage.input_tokens + (usage.cache_read_input_tokens ?? 0);
  assert.equal(total(first), counted.input_tokens);
  assert.equal(total(second), counted.input_tokens);
});

test('events of a stream come in their order', async () => {
  const events = await gather(await client.messages.create({ ...request, stream: true }));

  const types = events.map(({ type }) => type).filter((type) => type !== 'ping');
  assert.deepEqual(
    types.filter((type) => type !== 'content_block_delta'),
    ['message_start', 'content_block_start', 'content_block_stop', 'message_delta', 'message_stop'],
  );
  assert.ok(types.filter((type) => type === 'content_block_delta').length > 1);
  assert.equal(events[0].message.model, chatModel);
  assert.deepEqual(events[0].message.content, []);
  const { delta, usage } = events.find(({ type }) => type === 'message_delta');
  assert.equal(delta.stop_reason, 'max_tokens');
  assert.equal(usage.output_tokens, request.max_tokens);
});

test('the stream helper puts the message together', async () => {
  const stream = client.messages.stream(request);
  const pieces = [];
  stream.on('text', (delta) => pieces.push(delta));
  const message = await stream.finalMessage();

  assertAnswer(message);
  assert.equal(message.content[0].text, pieces.join(''));
});

test('system, stop sequences and text blocks are understood', async () => {
  const message = await client.messages.create({
    ...request,
    system: [{ type: 'text', text: 'Answer in one word.' }],
    messages: [{ role: 'user', content: [{ type: 'text', text: 'Say yes.' }] }],
    stop_sequences: ['###'],
    metadata: { user_id: 'somebody' },
  });

  assert.equal(message.content[0].type, 'text');
});

test('a tool is called, whole and streamed, and its result answered', async () => {
  const asked = { ...request, model: toolModel, max_tokens: 64, tools: [tool] };
  const whole = await client.messages.create(asked);
  const streamed = await client.messages.stream(asked).finalMessage();
  const use = whole.content.find(({ type }) => type === 'tool_use');
  const result = { type: 'tool_result', tool_use_id: use.id, content: weatherThere };
  const after = await client.messages.create({
    ...asked,
    messages: [
      ...messages,
      { role: 'assistant', content: whole.content },
      { role: 'user', content: [result] },
    ],
  });

  for (const { content, stop_reason } of [whole, streamed]) {
    assert.equal(stop_reason, 'tool_use');
    const uses = content.filter(({ type }) => type === 'tool_use');
    assert.deepEqual(
      uses.map(({ name, input }) => ({ name, input })),
      [{ name: weather.name, input: call }],
    );
  }
  assert.equal(after.content[0].text, afterCall);
});

test('the block of a tool starts with an empty input', async () => {
  const asked = { ...request, model: toolModel, max_tokens: 64, tools: [tool], stream: true };
  const events = await gather(await client.messages.create(asked));

  const starts = events.filter(({ type }) => type === 'content_block_start');
  const { content_block: block } = starts.find((e) => e.content_block.type === 'tool_use');
  assert.deepEqual(block.input, {});
});

test('the tool runner runs the tool and returns the answer', async () => {
  const asked = [];
  const run = (input) => {
    asked.push(input);
    return weatherThere;
  };
  const message = await client.beta.messages.toolRunner({
    model: toolModel,
    messages,
    max_tokens: 64,
    tools: [betaTool({ ...tool, inputSchema: tool.input_schema, run })],
  });

  assert.equal(message.content[0].text, afterCall);
  assert.deepEqual(asked, [call]);
});

test('thinking is a block of its own, whole and streamed', async () => {
  const asked = { model: thinkingModel, messages, max_tokens: 2048 };
  const thinking = { type: 'enabled', budget_tokens: 1024 };
  const whole = await client.messages.create({ ...asked, thinking });
  const streamed = await client.messages.stream({ ...asked, thinking }).finalMessage();

  for (const { content } of [whole, streamed]) {
    assert.deepEqual(
      content.map(({ type }) => type),
      ['thinking', 'text'],
    );
    assert.equal(content[0].thinking.trim(), thought);
    assert.equal(content[1].text, afterThought);
  }
});

test('a picture is seen', async () => {
  const source = { type: 'base64', media_type: 'image/png', data: picture };
  const content = [
    { type: 'image', source },
    { type: 'text', text: 'What is it?' },
  ];
  const message = await client.messages.create({
    ...request,
    model: pictureModel,
    messages: [{ role: 'user', content }],
  });

  assert.equal(message.content[0].text, pictureText);
});

test('parse returns what the schema says', async () => {
  const message = await client.messages.parse({
    ...request,
    max_tokens: 32,
    output_config: { format: zodOutputFormat(Verdict) },
  });

  assertVerdict(message.parsed_output);
});

test('a missing model raises NotFoundError everywhere', async () => {
  const model = missingModel;

  await assert.rejects(client.messages.create({ ...request, model }), isNotFound);
  await assert.rejects(client.messages.create({ ...request, model, stream: true }), isNotFound);
  await assert.rejects(client.messages.countTokens({ model, messages }), isNotFound);
});

test('a wrong request raises BadRequestError', async () => {
  const { max_tokens: _, ...unlimited } = request;
  const wrong = { ...request, top_p: 'hot' };

  await assert.rejects(client.messages.create({ ...request, messages: [] }), isBadRequest);
  await assert.rejects(client.messages.create(unlimited), isBadRequest);
  await assert.rejects(client.messages.create(wrong), isBadRequest);
});

test('an aborted stream gives its slot back', async () => {
  const endless = { model: endlessModel, messages, max_tokens: 1024 };
  const stream = await client.messages.create({ ...endless, stream: true });
  const iterator = stream[Symbol.asyncIterator]();
  await iterator.next();
  await assertSlotIsHeld();
  stream.controller.abort();

  await assertSlotsAreFree();
});
