/** Vercel's AI SDK on Ollama's API, with each of its two community providers. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { embedMany } from 'ai';
import { OllamaError, createOllama as createAiSdkOllama } from 'ai-sdk-ollama';
import { Ollama } from 'ollama';
import { createOllama as createProviderV2 } from 'ollama-ai-provider-v2';

import { testLanguageModel } from './ai_sdk.mjs';
import { assertUnitVector, embedModel, missingModel, url } from './server.mjs';

const providerV2 = createProviderV2({ baseURL: `${url}/api` });
const ollama = new Ollama({ host: url });
const aiSdkOllama = createAiSdkOllama({ client: ollama });

/** It cannot read Ollama's errors: status and reason phrase are what it shows. */
const isCallError = { name: 'AI_APICallError', statusCode: 404, message: 'Not Found' };

function isOllamaError(error) {
  assert.ok(error instanceof OllamaError, error.name);
  assert.match(error.message, /^model ['"]no-such-model['"] not found/);
  assert.equal(error.cause.status_code, 404);
  return true;
}

testLanguageModel('ollama-ai-provider-v2', {
  languageModel: providerV2,
  isNotFound: isCallError,
  // Its limit and temperature go to the top level, where Ollama has no such fields.
  limit: (nTokens) => ({
    providerOptions: { ollama: { options: { num_predict: nTokens, temperature: 0 } } },
  }),
  // It says no unless told.
  think: { providerOptions: { ollama: { think: true } } },
});

testLanguageModel('ai-sdk-ollama', {
  languageModel: aiSdkOllama,
  isNotFound: isOllamaError,
  // It hands its abort signal to ollama-js, which takes none: the connection would stay open.
  cancel: () => ollama.abort(),
});

for (const [name, provider, isNotFound] of [
  ['ollama-ai-provider-v2', providerV2, isCallError],
  ['ai-sdk-ollama', aiSdkOllama, isOllamaError],
]) {
  test(`${name}: vectors come in order, of length one`, async () => {
    const request = { values: ['a cat', 'a house'], maxRetries: 0 };
    const answer = await embedMany({ ...request, model: provider.embeddingModel(embedModel) });
    const missing = embedMany({ ...request, model: provider.embeddingModel(missingModel) });

    assert.equal(answer.embeddings.length, request.values.length);
    for (const vector of answer.embeddings) assertUnitVector(vector);
    assert.ok(answer.usage.tokens > 0);
    await assert.rejects(missing, isNotFound);
  });
}
