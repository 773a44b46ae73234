/** LangChain's Ollama package, which is built on ollama-js. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { HumanMessage, ToolMessage } from '@langchain/core/messages';
import { ChatOllama, OllamaEmbeddings } from '@langchain/ollama';

import {
  afterCall,
  assertSlotIsHeld,
  assertSlotsAreFree,
  assertUnitVector,
  assertVerdict,
  call,
  chatModel,
  embedModel,
  endlessModel,
  missingModel,
  picture,
  pictureModel,
  pictureText,
  question,
  toolModel,
  url,
  verdict,
  weather,
  weatherThere,
} from './server.mjs';

const N_TOKENS = 12;
const settings = { baseUrl: url, temperature: 0, maxRetries: 0 };
const isNotFound = {
  name: 'ResponseError',
  status_code: 404,
  message: /^model ['"].+['"] not found/,
};

function chat(more = {}) {
  return new ChatOllama({ ...settings, model: chatModel, numPredict: N_TOKENS, ...more });
}

test('invoke returns one message with its metadata', async () => {
  const message = await chat().invoke(question);

  assert.ok(message.content.length > 0);
  assert.equal(message.response_metadata.done_reason, 'length');
  assert.equal(message.usage_metadata.output_tokens, N_TOKENS);
});

test('a stream comes in pieces and ends once', async () => {
  const chunks = [];
  for await (const chunk of await chat().stream(question)) chunks.push(chunk);

  assert.ok(chunks.filter(({ content }) => content).length > 1);
  assert.equal(chunks.filter((c) => c.response_metadata?.done_reason).length, 1);
});

test('structured output is what the schema says', async () => {
  const model = chat({ numPredict: 32 });
  const structured = model.withStructuredOutput(verdict, { method: 'jsonSchema' });

  assertVerdict(await structured.invoke(question));
});

test('a tool is called and its result answered', async () => {
  const model = chat({ model: toolModel, numPredict: -1 });
  const caller = model.bindTools([{ type: 'function', function: weather }]);
  const asked = new HumanMessage(question);
  const calling = await caller.invoke([asked]);
  const [toolCall] = calling.tool_calls;
  const result = new ToolMessage({ content: weatherThere, tool_call_id: toolCall.id });
  const after = await caller.invoke([asked, calling, result]);

  assert.equal(toolCall.name, weather.name);
  assert.deepEqual(toolCall.args, call);
  assert.equal(after.content, afterCall);
});

test('a picture is seen', async () => {
  const content = [
    { type: 'text', text: question },
    { type: 'image_url', image_url: `data:image/png;base64,${picture}` },
  ];
  const message = await chat({ model: pictureModel }).invoke([new HumanMessage({ content })]);

  assert.equal(message.content, pictureText);
});

test('embeddings come in order, of length one', async () => {
  const embeddings = new OllamaEmbeddings({ ...settings, model: embedModel });
  const vectors = await embeddings.embedDocuments(['a cat', 'a house']);

  assert.equal(vectors.length, 2);
  for (const vector of vectors) assertUnitVector(vector);
});

test('a missing model is a ResponseError of 404', async () => {
  const embeddings = new OllamaEmbeddings({ ...settings, model: missingModel });

  await assert.rejects(chat({ model: missingModel }).invoke(question), isNotFound);
  await assert.rejects(embeddings.embedQuery(question), isNotFound);
});

test('an aborted stream gives its slot back', async () => {
  const endless = chat({ model: endlessModel, numPredict: -1 });
  const iterator = (await endless.stream(question))[Symbol.asyncIterator]();
  await iterator.next();
  await assertSlotIsHeld();
  // An abort signal would end only the reading: LangChain leaves the connection open.
  endless.client.abort();

  await assertSlotsAreFree();
});
