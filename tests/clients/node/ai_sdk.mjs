/** What Vercel's AI SDK does with a language model, whatever provider it came from. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Output, generateText, isStepCount, streamText, tool } from 'ai';
import { z } from 'zod';

import {
  afterCall,
  afterThought,
  assertSlotIsHeld,
  assertSlotsAreFree,
  assertVerdict,
  call,
  chatModel,
  endlessModel,
  missingModel,
  picture,
  pictureModel,
  pictureText,
  question,
  thinkingModel,
  thought,
  toolModel,
  weather,
  weatherThere,
} from './server.mjs';

globalThis.AI_SDK_LOG_WARNINGS = false;

const VerdictOutput = Output.object({ schema: z.object({ verdict: z.enum(['yes', 'no']) }) });
const N_TOKENS = 12;

/** Return the text pieces of a stream; an error in it fails the test that asked. */
async function gather(stream) {
  const pieces = [];
  for await (const part of stream) {
    if (part.type === 'error') throw part.error;
    if (part.type === 'text-delta') pieces.push(part.text);
  }
  return pieces;
}

/**
 * Declare the tests of one provider.
 *
 * @param name of the provider, for the tests' names.
 * @param languageModel returns the provider's model of a name.
 * @param isNotFound checks the error of a missing model.
 * @param limit returns the settings that end an answer after so many tokens.
 * @param think the settings that ask for thinking; null where the provider reads none.
 * @param cancel ends the requests of this provider, where its abort signal does not.
 */
export function testLanguageModel(
  name,
  { languageModel, isNotFound, limit = limitOutput, think = {}, cancel = () => {} },
) {
  const request = { model: languageModel(chatModel), prompt: question, maxRetries: 0 };

  test(`${name}: a text is generated whole, with its usage`, async () => {
    const answer = await generateText({ ...request, ...limit(N_TOKENS) });

    assert.ok(answer.text.length > 0);
    assert.equal(answer.finishReason, 'length');
    assert.ok(answer.usage.inputTokens > 0);
    assert.equal(answer.usage.outputTokens, N_TOKENS);
  });

  test(`${name}: a text is streamed in pieces, with its usage`, async () => {
    const answer = streamText({ ...request, ...limit(N_TOKENS) });
    const pieces = await gather(answer.stream);

    assert.ok(pieces.length > 1);
    assert.equal(await answer.text, pieces.join(''));
    assert.equal(await answer.finishReason, 'length');
    assert.equal((await answer.usage).outputTokens, N_TOKENS);
  });

  test(`${name}: an object is what the schema says, whole and streamed`, async () => {
    const asked = { ...request, ...limit(32), output: VerdictOutput };
    const whole = await generateText(asked);
    const streamed = streamText(asked);
    await gather(streamed.stream);

    assertVerdict(whole.output);
    assertVerdict(await streamed.output);
  });

  test(`${name}: a tool is called and its result answered, whole and streamed`, async () => {
    const asked = [];
    const look = tool({
      description: weather.description,
      inputSchema: z.object({ city: z.string() }),
      execute: (input) => {
        asked.push(input);
        return weatherThere;
      },
    });
    const calling = {
      ...request,
      model: languageModel(toolModel),
      tools: { [weather.name]: look },
      stopWhen: isStepCount(2),
    };
    const whole = await generateText(calling);
    const streamed = streamText(calling);
    await gather(streamed.stream);

    assert.equal(whole.text, afterCall);
    assert.equal(await streamed.text, afterCall);
    assert.deepEqual(asked, [call, call]);
  });

  if (think !== null) {
    test(`${name}: thinking comes apart from the text, whole and streamed`, async () => {
      const thinking = { ...request, model: languageModel(thinkingModel), ...think };
      const whole = await generateText(thinking);
      const streamed = streamText(thinking);
      await gather(streamed.stream);

      assert.equal(whole.reasoningText.trim(), thought);
      assert.equal(whole.text, afterThought);
      assert.equal((await streamed.reasoningText).trim(), thought);
      assert.equal(await streamed.text, afterThought);
    });
  }

  test(`${name}: a picture is seen`, async () => {
    const content = [
      { type: 'text', text: question },
      { type: 'file', data: picture, mediaType: 'image/png' },
    ];
    const { text } = await generateText({
      model: languageModel(pictureModel),
      messages: [{ role: 'user', content }],
      maxRetries: 0,
    });

    assert.equal(text, pictureText);
  });

  test(`${name}: a missing model is the provider's own error`, async () => {
    const missing = { ...request, model: languageModel(missingModel) };

    await assert.rejects(generateText(missing), isNotFound);
    await assert.rejects(gather(streamText({ ...missing, onError() {} }).stream), isNotFound);
  });

  test(`${name}: an aborted stream gives its slot back`, async () => {
    const controller = new AbortController();
    const answer = streamText({
      ...request,
      model: languageModel(endlessModel),
      abortSignal: controller.signal,
    });
    for await (const part of answer.stream) {
      if (part.type !== 'text-delta') continue;
      await assertSlotIsHeld();
      controller.abort();
      cancel();
      break;
    }

    await assertSlotsAreFree();
  });
}

/** The AI SDK's own names, which providers of a hosted API pass on. */
function limitOutput(nTokens) {
  return { maxOutputTokens: nTokens, temperature: 0 };
}
