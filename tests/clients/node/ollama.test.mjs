/** ollama-js: https://github.com/ollama/ollama-js */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Ollama } from 'ollama';

import {
  afterCall,
  afterThought,
  assertSlotIsHeld,
  assertSlotsAreFree,
  assertUnitVector,
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
  thinkingModel,
  thought,
  toolModel,
  url,
  vectorLength,
  verdict,
  weather,
  weatherThere,
} from './server.mjs';

const client = new Ollama({ host: url });
const short = { temperature: 0, num_predict: 12 };

const tools = [{ type: 'function', function: weather }];

const isNotFound = {
  name: 'ResponseError',
  status_code: 404,
  message: /^model ['"].+['"] not found/,
};

/** Return the chunks of a stream; ollama-js itself throws if none of them is the last. */
async function gather(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

function assertMetrics(last) {
  for (const name of ['total_duration', 'eval_duration', 'prompt_eval_count', 'eval_count']) {
    assert.ok(Number.isSafeInteger(last[name]) && last[name] > 0, `${name}: ${last[name]}`);
  }
}

test('list names each model and what it can', async () => {
  const { models } = await client.list();

  const capabilities = Object.fromEntries(models.map((m) => [m.name, m.capabilities]));
  assert.deepEqual(capabilities[`${chatModel}:latest`], ['completion']);
  assert.deepEqual(capabilities[`${embedModel}:latest`], ['completion', 'embedding']);
  assert.ok(models.every((m) => m.model === m.name && m.size > 0 && m.digest.length === 64));
});

test('show tells details, header and capabilities', async () => {
  const shown = await client.show({ model: chatModel });

  assert.equal(shown.details.family, 'llama');
  assert.equal(shown.model_info['general.architecture'], 'llama');
  assert.equal(shown.model_info['llama.embedding_length'], vectorLength);
  assert.deepEqual(shown.capabilities, ['completion']);
  assert.match(shown.modelfile, /^FROM /m);
});

test('version is one that clients can compare', async () => {
  const { version } = await client.version();

  assert.match(version, /^\d+\.\d+\.\d+/);
});

test('chat answers whole, with its metrics', async () => {
  const answer = await client.chat({ model: chatModel, messages, options: short });

  assert.equal(answer.model, chatModel);
  assert.equal(answer.message.role, 'assistant');
  assert.ok(answer.message.content.length > 0);
  assert.equal(answer.done_reason, 'length');
  assert.equal(answer.eval_count, short.num_predict);
  assert.ok(!Number.isNaN(Date.parse(answer.created_at)));
  assertMetrics(answer);
});

test('a streamed chat ends once, and no piece before the end is empty', async () => {
  const stream = await client.chat({ model: chatModel, messages, options: short, stream: true });
  const chunks = await gather(stream);

  const last = chunks.pop();
  assert.ok(last.done);
  assert.equal(last.message.content, '');
  assertMetrics(last);
  assert.ok(chunks.length > 1);
  assert.ok(chunks.every((c) => !c.done && c.message.role === 'assistant' && c.message.content));
});

test('generate answers whole and streamed, and its context goes on', async () => {
  const request = { model: chatModel, prompt: question, options: short };
  const whole = await client.generate(request);
  const chunks = await gather(await client.generate({ ...request, stream: true }));
  const further = await client.generate({ ...request, context: whole.context });

  assert.ok(whole.response.length > 0);
  assert.ok(whole.context.length > whole.eval_count);
  assert.equal(chunks.filter((c) => c.done).length, 1);
  assert.ok(further.prompt_eval_count > whole.prompt_eval_count);
});

test('a schema as format binds chat and generate', async () => {
  const request = {
    model: chatModel,
    format: verdict,
    options: { temperature: 0, num_predict: 32 },
  };
  const chat = await client.chat({ ...request, messages });
  const generated = await client.generate({ ...request, prompt: question });

  assertVerdict(JSON.parse(chat.message.content));
  assertVerdict(JSON.parse(generated.response));
});

test('logprobs tell each token with its rivals', async () => {
  const answer = await client.chat({
    model: chatModel,
    messages,
    options: { temperature: 0, num_predict: 3 },
    logprobs: true,
    top_logprobs: 2,
  });

  assert.equal(answer.logprobs.length, 3);
  assert.ok(
    answer.logprobs.every((entry) => entry.logprob <= 0 && entry.top_logprobs.length === 2),
  );
});

test('thinking of a model that cannot think is refused, no thinking is fine', async () => {
  const request = { model: chatModel, messages, options: short };
  const answer = await client.chat({ ...request, think: false });

  assert.ok(answer.message.content.length > 0);
  await assert.rejects(client.chat({ ...request, think: true }), {
    name: 'ResponseError',
    status_code: 400,
    message: `"${chatModel}" does not support thinking`,
  });
});

test('a tool is called with arguments as an object, whole and streamed', async () => {
  const request = { model: toolModel, messages, tools };
  const answer = await client.chat(request);
  const chunks = await gather(await client.chat({ ...request, stream: true }));

  const calls = [answer, ...chunks].flatMap(({ message }) => message.tool_calls ?? []);
  assert.equal(calls.length, 2);
  assert.ok(calls.every((c) => c.function.name === weather.name));
  assert.ok(calls.every((c) => c.function.arguments.city === call.city));
  assert.equal(answer.message.content, '');
  assert.equal(chunks.at(-1).done_reason, 'stop');
});

test('the result of a tool, by name or by id, is answered', async () => {
  const request = { model: toolModel, messages, tools };
  const { message } = await client.chat(request);
  const result = { role: 'tool', content: weatherThere };

  for (const field of [
    { tool_name: weather.name },
    { tool_call_id: message.tool_calls[0].id },
    {},
  ]) {
    const history = [...messages, message, { ...result, ...field }];
    const answer = await client.chat({ ...request, messages: history });
    assert.equal(answer.message.content, afterCall);
  }
});

test('thinking comes apart from the content, whole and streamed, unless it is off', async () => {
  const request = { model: thinkingModel, messages };
  const whole = await client.chat({ ...request, think: true });
  const chunks = await gather(await client.chat({ ...request, stream: true }));
  const off = await client.chat({ ...request, think: false });
  const generated = await client.generate({ model: thinkingModel, prompt: question, think: true });

  assert.equal(whole.message.thinking.trim(), thought);
  assert.equal(whole.message.content, afterThought);
  assert.equal(
    chunks
      .map((c) => c.message.thinking ?? '')
      .join('')
      .trim(),
    thought,
  );
  assert.equal(chunks.map((c) => c.message.content).join(''), afterThought);
  assert.equal(off.message.thinking, undefined);
  assert.equal(off.message.content, afterThought);
  assert.equal(generated.thinking.trim(), thought);
  assert.equal(generated.response, afterThought);
});

test('a picture is seen, as base64 and as bytes, in chat and generate', async () => {
  const blind = await client.chat({ model: pictureModel, messages });
  for (const image of [picture, new Uint8Array(Buffer.from(picture, 'base64'))]) {
    const seen = [{ ...messages[0], images: [image] }];
    const answer = await client.chat({ model: pictureModel, messages: seen });
    const { response } = await client.generate({
      model: pictureModel,
      prompt: question,
      images: [image],
    });

    assert.equal(answer.message.content, pictureText);
    assert.ok(answer.prompt_eval_count > blind.prompt_eval_count);
    assert.equal(response, pictureText);
  }
});

test('a picture for a model that cannot see is an error in words', async () => {
  const seen = [{ ...messages[0], images: [picture] }];

  await assert.rejects(client.chat({ model: chatModel, messages: seen }), {
    name: 'ResponseError',
    message: /image/,
  });
});

test('tools of a model whose template has none are refused as Ollama does', async () => {
  await assert.rejects(client.chat({ model: chatModel, messages, tools, options: short }), {
    name: 'ResponseError',
    status_code: 400,
    message: /does not support tools$/,
  });
});

test('embed returns unit vectors in order, shortened if asked', async () => {
  const input = ['a cat', 'a house'];
  const whole = await client.embed({ model: embedModel, input });
  const shortened = await client.embed({ model: embedModel, input, dimensions: 8 });

  assert.equal(whole.model, embedModel);
  assert.equal(whole.embeddings.length, input.length);
  assert.ok(whole.prompt_eval_count > 0);
  assert.notDeepEqual(whole.embeddings[0], whole.embeddings[1]);
  for (const vector of whole.embeddings) assertUnitVector(vector);
  for (const vector of shortened.embeddings) assertUnitVector(vector, 8);
});

test('the older embeddings returns one vector', async () => {
  const { embedding } = await client.embeddings({ model: embedModel, prompt: 'a cat' });

  assert.equal(embedding.length, vectorLength);
});

test('a missing model is a ResponseError of 404 everywhere', async () => {
  const model = missingModel;

  await assert.rejects(client.chat({ model, messages }), isNotFound);
  await assert.rejects(client.chat({ model, messages, stream: true }), isNotFound);
  await assert.rejects(client.generate({ model, prompt: question }), isNotFound);
  await assert.rejects(client.embed({ model, input: 'a cat' }), isNotFound);
  await assert.rejects(client.show({ model }), isNotFound);
  await assert.rejects(client.copy({ source: model, destination: 'other' }), isNotFound);
  await assert.rejects(client.delete({ model }), isNotFound);
});

test('a wrong option is told in words', async () => {
  const options = { temperature: 'hot' };

  await assert.rejects(client.chat({ model: chatModel, messages, options }), {
    name: 'ResponseError',
    message: 'option "temperature" must be of type float32',
  });
});

test('models are made, sent, copied, removed and fetched', async () => {
  const name = `${process.env.KVSUP_REGISTRY}/js/made:v1`;
  const said = async (model) => {
    const answer = await client.chat({ model, messages, options: short });
    return answer.message.content;
  };

  const made = [];
  for await (const part of await client.create({
    model: name, from: chatModel, system: 'Be brief.', parameters: { temperature: 0 }, stream: true,
  })) {
    made.push(part.status);
  }
  const first = await said(name);
  const sent = await client.push({ model: name });
  await client.copy({ source: name, destination: 'js-copy' });
  await client.delete({ model: name });
  await assert.rejects(client.show({ model: name }), isNotFound);
  const copied = await client.show({ model: 'js-copy' });
  const fetched = [];
  for await (const part of await client.pull({ model: name, stream: true })) {
    fetched.push(part);
  }
  const second = await said(name);
  await client.delete({ model: name });
  await client.delete({ model: 'js-copy' });

  assert.equal(made.at(-1), 'success');
  assert.equal(sent.status, 'success');
  assert.equal(copied.system, 'Be brief.');
  assert.equal(fetched.at(-1).status, 'success');
  assert.ok(fetched.some((part) => part.digest && part.completed === part.total));
  assert.equal(second, first);
});

test('what cannot be done is refused with an error in words', async () => {
  const isRefused = (error) => {
    assert.equal(error.name, 'ResponseError');
    assert.doesNotMatch(error.message, /page not found|status code/i);
    return true;
  };

  await assert.rejects(client.pull({ model: missingModel }), isRefused);
  await assert.rejects(client.push({ model: chatModel }), isRefused);
  await assert.rejects(client.create({ model: 'other', from: missingModel }), isRefused);
});

test('ps tells what is loaded, and keep_alive 0 unloads it', async () => {
  const request = { model: chatModel, messages: [] };
  const loaded = await client.chat({ ...request, keep_alive: '10m' });
  const before = await client.ps();
  const unloaded = await client.chat({ ...request, keep_alive: 0 });
  const after = await client.ps();

  assert.equal(loaded.done_reason, 'load');
  const entry = before.models.find((m) => m.name === `${chatModel}:latest`);
  assert.ok(Date.parse(entry.expires_at) > Date.now());
  assert.equal(entry.context_length, 2048);
  assert.equal(unloaded.done_reason, 'unload');
  assert.ok(!after.models.some((m) => m.name === `${chatModel}:latest`));
});

test('an aborted stream gives its slot back', async () => {
  const stream = await client.chat({ model: endlessModel, messages, stream: true });
  const iterator = stream[Symbol.asyncIterator]();
  await iterator.next();
  await assertSlotIsHeld();
  stream.abort();

  await assert.rejects(gather({ [Symbol.asyncIterator]: () => iterator }), { name: 'AbortError' });
  await assertSlotsAreFree();
});
