/** Vercel's AI SDK on `/v1`: its OpenAI-compatible, OpenAI and Anthropic providers. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { createAnthropic } from '@ai-sdk/anthropic';
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { APICallError, defaultSettingsMiddleware, embedMany, wrapLanguageModel } from 'ai';

import { testLanguageModel } from './ai_sdk.mjs';
import { assertUnitVector, embedModel, missingModel, url, vectorLength } from './server.mjs';

const baseURL = `${url}/v1`;
const compatible = createOpenAICompatible({
  name: 'kvsup',
  baseURL,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const openai = createOpenAI({ baseURL, apiKey: 'none' });
const anthropic = createAnthropic({ baseURL, apiKey: 'none' });

/** The message is that of the body, so its shape was understood. */
function isNotFound(error) {
  assert.ok(APICallError.isInstance(error), error.name);
  assert.equal(error.statusCode, 404);
  assert.match(error.message, /^model ['"]no-such-model['"] not found/);
  return true;
}

testLanguageModel('openai-compatible', { languageModel: compatible, isNotFound });
testLanguageModel('openai responses', { languageModel: openai, isNotFound });
testLanguageModel('openai chat', { languageModel: openai.chat, isNotFound, think: null });
/** By its own choice it would ask for an object through a tool, which this model cannot call. */
const formatted = defaultSettingsMiddleware({
  settings: { providerOptions: { anthropic: { structuredOutputMode: 'outputFormat' } } },
});
const languageModel = (id) => wrapLanguageModel({ model: anthropic(id), middleware: formatted });
testLanguageModel('anthropic', { languageModel, isNotFound });

for (const [name, provider] of [
  ['openai-compatible', compatible],
  ['openai', openai],
]) {
  test(`${name}: vectors come in order, shortened if asked`, async () => {
    const request = { values: ['a cat', 'a house'], maxRetries: 0 };
    const model = provider.embeddingModel(embedModel);
    const providerOptions = { openai: { dimensions: 8 }, kvsup: { dimensions: 8 } };
    const whole = await embedMany({ ...request, model });
    const shortened = await embedMany({ ...request, model, providerOptions });
    const missing = embedMany({ ...request, model: provider.embeddingModel(missingModel) });

    assert.equal(whole.embeddings.length, request.values.length);
    for (const vector of whole.embeddings) assertUnitVector(vector, vectorLength);
    for (const vector of shortened.embeddings) assertUnitVector(vector, 8);
    await assert.rejects(missing, isNotFound);
  });
}
