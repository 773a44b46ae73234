/** The official OpenAI SDK: https://github.com/openai/openai-node */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import OpenAI, { toFile } from 'openai';
import { zodResponseFormat, zodTextFormat } from 'openai/helpers/zod';
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
  question,
  silence,
  soundModel,
  thinkingModel,
  thought,
  toolModel,
  url,
  vectorLength,
  weather,
  weatherThere,
} from './server.mjs';

const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0 });
const Verdict = z.object({ verdict: z.enum(['yes', 'no']) });

const chat = { model: chatModel, messages, temperature: 0, max_completion_tokens: 12 };
const response = { model: chatModel, input: question, temperature: 0, max_output_tokens: 16 };

const tools = [{ type: 'function', function: weather }];
const responseTools = [{ type: 'function', strict: true, ...weather }];

/** Return a check that an error is of `kind`, with a text and a type beside its status. */
function isError(kind, type) {
  return (error) => {
    assert.ok(error instanceof kind, `${error.constructor.name}: ${error.message}`);
    assert.equal(error.type, type);
    assert.equal(typeof error.error.message, 'string');
    return true;
  };
}

const isNotFound = isError(OpenAI.NotFoundError, 'not_found_error');
const isBadRequest = isError(OpenAI.BadRequestError, 'invalid_request_error');

async function gather(stream) {
  const items = [];
  for await (const item of stream) items.push(item);
  return items;
}

test('models lists and retrieves', async () => {
  const listed = await gather(client.models.list());
  const retrieved = await client.models.retrieve(embedModel);

  assert.ok(listed.some(({ id }) => id === `${chatModel}:latest`));
  assert.equal(retrieved.id, embedModel);
  assert.equal(retrieved.object, 'model');
});

test('a chat answers whole, cut by max_completion_tokens', async () => {
  const answer = await client.chat.completions.create(chat);

  assert.equal(answer.object, 'chat.completion');
  assert.equal(answer.model, chatModel);
  assert.equal(answer.choices[0].message.role, 'assistant');
  assert.ok(answer.choices[0].message.content.length > 0);
  assert.equal(answer.choices[0].finish_reason, 'length');
  assert.equal(answer.usage.completion_tokens, chat.max_completion_tokens);
});

test('a streamed chat has one id, one end, and usage last', async () => {
  const chunks = await gather(
    await client.chat.completions.create({
      ...chat,
      stream: true,
      stream_options: { include_usage: true },
    }),
  );

  const last = chunks.at(-1);
  assert.equal(new Set(chunks.map(({ id }) => id)).size, 1);
  assert.deepEqual(last.choices, []);
  assert.equal(last.usage.completion_tokens, chat.max_completion_tokens);
  const reasons = chunks.flatMap((c) => c.choices.map((choice) => choice.finish_reason));
  assert.deepEqual(reasons.filter(Boolean), ['length']);
});

test('the stream helper of chats puts the message together', async () => {
  const stream = client.chat.completions.stream(chat);
  const pieces = [];
  stream.on('content', (delta) => pieces.push(delta));
  const final = await stream.finalChatCompletion();

  assert.ok(pieces.length > 1);
  assert.equal(final.choices[0].message.content, pieces.join(''));
});

test('parse of a chat returns what the schema says', async () => {
  const answer = await client.chat.completions.parse({
    ...chat,
    max_completion_tokens: 32,
    response_format: zodResponseFormat(Verdict, 'verdict'),
  });

  assertVerdict(answer.choices[0].message.parsed);
});

test('a tool is called in a chat, whole and streamed', async () => {
  const request = { model: toolModel, messages, tools };
  const whole = await client.chat.completions.create(request);
  const streamed = await client.chat.completions.stream(request).finalChatCompletion();

  for (const { choices } of [whole, streamed]) {
    assert.equal(choices[0].finish_reason, 'tool_calls');
    assert.equal(choices[0].message.tool_calls.length, 1);
    assert.equal(choices[0].message.tool_calls[0].function.name, weather.name);
    assert.deepEqual(JSON.parse(choices[0].message.tool_calls[0].function.arguments), call);
  }
});

test('the tool runner of chats runs the tool and returns the answer', async () => {
  const asked = [];
  const look = (given) => {
    asked.push(given);
    return weatherThere;
  };
  const runner = client.chat.completions.runTools({
    model: toolModel,
    messages,
    tools: [{ type: 'function', function: { ...weather, function: look, parse: JSON.parse } }],
  });

  assert.equal(await runner.finalContent(), afterCall);
  assert.deepEqual(asked, [call]);
});

test('a picture is seen in a chat and in a response', async () => {
  const address = `data:image/png;base64,${picture}`;
  const parts = [
    { type: 'text', text: question },
    { type: 'image_url', image_url: { url: address } },
  ];
  const items = [
    { type: 'input_text', text: question },
    { type: 'input_image', image_url: address, detail: 'auto' },
  ];
  const blind = await client.chat.completions.create({ model: pictureModel, messages });
  const seen = await client.chat.completions.create({
    model: pictureModel,
    messages: [{ role: 'user', content: parts }],
  });
  const answered = await client.responses.create({
    model: pictureModel,
    input: [{ role: 'user', content: items }],
  });

  assert.equal(seen.choices[0].message.content, pictureText);
  assert.ok(seen.usage.prompt_tokens > blind.usage.prompt_tokens);
  assert.equal(answered.output_text, pictureText);
});

test('sound is transcribed', async () => {
  const file = await toFile(silence(), 'silence.wav');
  const answer = await client.audio.transcriptions.create({ file, model: soundModel });
  const missing = client.audio.transcriptions.create({ file, model: missingModel });

  assert.equal(answer.text, pictureText);
  await assert.rejects(missing, isNotFound);
});

test('completions answer whole and streamed', async () => {
  const request = { model: chatModel, prompt: 'One, two, three,', temperature: 0, max_tokens: 12 };
  const whole = await client.completions.create(request);
  const chunks = await gather(await client.completions.create({ ...request, stream: true }));

  assert.ok(whole.choices[0].text.length > 0);
  assert.equal(whole.usage.completion_tokens, request.max_tokens);
  assert.ok(chunks.map((c) => c.choices[0]?.text ?? '').join('').length > 0);
});

test('embeddings come as base64 by default and as numbers if asked, with dimensions', async () => {
  const request = { model: embedModel, input: ['a cat', 'a house'] };
  const packed = await client.embeddings.create(request);
  const plain = await client.embeddings.create({ ...request, encoding_format: 'float' });
  const shortened = await client.embeddings.create({ ...request, dimensions: 8 });

  assert.deepEqual(
    packed.data.map(({ index }) => index),
    [0, 1],
  );
  assert.equal(packed.data[0].embedding.length, vectorLength);
  assert.equal(plain.data[1].embedding.length, vectorLength);
  assert.ok(Math.abs(plain.data[1].embedding[0] - packed.data[1].embedding[0]) < 1e-3);
  assert.ok(shortened.data.every(({ embedding }) => embedding.length === 8));
});

test('a response answers whole and says that it was cut', async () => {
  const answer = await client.responses.create(response);

  assert.equal(answer.object, 'response');
  assert.ok(answer.created_at > 0);
  assert.equal(answer.completed_at, null);
  assert.ok(answer.output_text.length > 0);
  assert.equal(answer.status, 'incomplete');
  assert.equal(answer.incomplete_details.reason, 'max_output_tokens');
  assert.equal(answer.usage.output_tokens, response.max_output_tokens);
});

test('events of a streamed response count up and have their indexes', async () => {
  const events = await gather(await client.responses.create({ ...response, stream: true }));

  assert.deepEqual(
    events.map((e) => e.sequence_number),
    [...events.keys()],
  );
  assert.equal(events[0].type, 'response.created');
  assert.deepEqual(events[0].response.output, []);
  assert.ok(events[0].response.created_at > 0);
  const deltas = events.filter((e) => e.type === 'response.output_text.delta');
  assert.ok(deltas.length > 1);
  assert.ok(deltas.every((e) => e.output_index === 0 && e.content_index === 0 && e.item_id));
  assert.equal(events.at(-1).type, 'response.incomplete');
});

test('the stream helper of responses puts the answer together', async () => {
  const final = await client.responses.stream(response).finalResponse();

  assert.ok(final.output_text.length > 0);
  assert.equal(final.output[0].content[0].text, final.output_text);
});

test('a tool is called in a response, and its result answered', async () => {
  const request = { model: toolModel, input: question, tools: responseTools };
  const whole = await client.responses.create(request);
  const streamed = await client.responses.stream(request).finalResponse();
  const called = whole.output.find((item) => item.type === 'function_call');
  const result = { type: 'function_call_output', call_id: called.call_id, output: weatherThere };
  const asked = { role: 'user', content: question };
  const after = await client.responses.create({ ...request, input: [asked, called, result] });

  for (const { output, status } of [whole, streamed]) {
    const calls = output.filter((item) => item.type === 'function_call');
    assert.deepEqual(
      calls.map((item) => item.name),
      [weather.name],
    );
    assert.deepEqual(JSON.parse(calls[0].arguments), call);
    assert.equal(status, 'completed');
  }
  assert.equal(after.output_text, afterCall);
});

test('thinking of a response is an item of its own, whole and streamed', async () => {
  const request = { model: thinkingModel, input: question };
  const whole = await client.responses.create(request);
  const streamed = await client.responses.stream(request).finalResponse();

  for (const { output, output_text } of [whole, streamed]) {
    assert.deepEqual(
      output.map((item) => item.type),
      ['reasoning', 'message'],
    );
    assert.equal(output[0].summary[0].text.trim(), thought);
    assert.equal(output_text, afterThought);
  }
});

test('parse of a response returns what the schema says', async () => {
  const answer = await client.responses.parse({
    ...response,
    max_output_tokens: 32,
    text: { format: zodTextFormat(Verdict, 'verdict') },
  });

  assertVerdict(answer.output_parsed);
  assert.equal(answer.status, 'completed');
});

test('a missing model raises NotFoundError everywhere', async () => {
  const model = missingModel;

  await assert.rejects(client.chat.completions.create({ ...chat, model }), isNotFound);
  await assert.rejects(
    client.chat.completions.create({ ...chat, model, stream: true }),
    isNotFound,
  );
  await assert.rejects(client.completions.create({ model, prompt: question }), isNotFound);
  await assert.rejects(client.embeddings.create({ model, input: question }), isNotFound);
  await assert.rejects(client.responses.create({ ...response, model }), isNotFound);
  await assert.rejects(client.models.retrieve(model), isNotFound);
});

test('a wrong request raises BadRequestError', async () => {
  const wrong = { ...chat, temperature: 'hot' };
  const nowhere = { ...response, input: [{ type: 'no_such_item' }] };

  await assert.rejects(client.chat.completions.create({ ...chat, messages: [] }), isBadRequest);
  await assert.rejects(client.chat.completions.create(wrong), isBadRequest);
  await assert.rejects(client.responses.create(nowhere), isBadRequest);
  await assert.rejects(client.embeddings.create({ model: embedModel, input: [] }), isBadRequest);
});

test('an aborted stream gives its slot back', async () => {
  for (const start of [
    () => client.chat.completions.create({ model: endlessModel, messages, stream: true }),
    () => client.responses.create({ model: endlessModel, input: question, stream: true }),
  ]) {
    const stream = await start();
    const iterator = stream[Symbol.asyncIterator]();
    await iterator.next();
    await assertSlotIsHeld();
    stream.controller.abort();

    await assertSlotsAreFree();
  }
});
