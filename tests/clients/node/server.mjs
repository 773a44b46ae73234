/** What the kvsup under test serves, as ../models.py says, and what every file asserts. */

import assert from 'node:assert/strict';
import { setTimeout as pause } from 'node:timers/promises';

export const url = process.env.KVSUP_URL;
assert.ok(url, 'KVSUP_URL is not set; run pytest tests/clients/test_node.py');
export const chatModel = 'smollm2';
export const embedModel = 'embedder';
/** It never ends an answer: a cancel comes always in the middle. */
export const endlessModel = 'endless';
export const missingModel = 'no-such-model';
export const vectorLength = 576;

/** It calls `weather` for Paris; once it has the result, it says so. */
export const toolModel = 'caller';
export const weather = {
  name: 'get_weather',
  description: 'Tells the weather in a city.',
  parameters: {
    type: 'object',
    properties: { city: { type: 'string' } },
    required: ['city'],
    additionalProperties: false,
  },
};
export const call = { city: 'Paris' };
export const weatherThere = '18 degrees';
export const afterCall = 'It is sunny.';

/** It thinks before it answers. */
export const thinkingModel = 'thinker';
export const thought = 'Two and two.';
export const afterThought = 'Four.';

/** It takes pictures; it says the same of each. */
export const pictureModel = 'seeing';
export const pictureText = 'Tiny models say what they were told.';
/** A PNG of one colour, in base64. */
export const picture =
  'iVBORw0KGgoAAAANSUhEUgAAACgAAAAeCAIAAADRv8uKAAAAKklEQVR4nO3NsQ0AAAgDoJ7u5/qCWxcSdrKTis4qFovF' +
  'YrFYLBaLxeKXAx/uA7qKDGN/AAAAAElFTkSuQmCC';

/** It takes sound, and says the same of each. */
export const soundModel = 'hearing';

/** Return a tenth of a second of silence as a WAV file: PCM, one channel, 16 bits. */
export function silence() {
  const rateHz = 16_000;
  const nBytes = (2 * rateHz) / 10;
  const file = Buffer.alloc(44 + nBytes);
  file.write('RIFF', 0);
  file.writeUInt32LE(file.length - 8, 4);
  file.write('WAVEfmt ', 8);
  file.writeUInt32LE(16, 16);
  file.writeUInt16LE(1, 20);
  file.writeUInt16LE(1, 22);
  file.writeUInt32LE(rateHz, 24);
  file.writeUInt32LE(2 * rateHz, 28);
  file.writeUInt16LE(2, 32);
  file.writeUInt16LE(16, 34);
  file.write('data', 36);
  file.writeUInt32LE(nBytes, 40);
  return file;
}

export const question = 'Count from one to a hundred, in words.';
export const messages = [{ role: 'user', content: question }];

/** A schema that leaves the model two answers, and so few tokens to write. */
export const verdict = {
  type: 'object',
  properties: { verdict: { type: 'string', enum: ['yes', 'no'] } },
  required: ['verdict'],
  additionalProperties: false,
};

const PATIENCE_MS = 15_000;

/** Assert that `object` is a verdict. */
export function assertVerdict(object) {
  assert.deepEqual(Object.keys(object), ['verdict']);
  assert.ok(verdict.properties.verdict.enum.includes(object.verdict), object.verdict);
}

/** Assert that `vector` is one of this model's, of length one. */
export function assertUnitVector(vector, length = vectorLength) {
  assert.equal(vector.length, length);
  const norm = Math.hypot(...vector);
  assert.ok(Math.abs(norm - 1) < 1e-3, `norm ${norm}`);
}

/** Return how many requests hold a slot of the endless model. */
async function inFlight() {
  const { models } = await (await fetch(`${url}/kvsup/models`)).json();
  return models.find(({ name }) => name === endlessModel).in_flight;
}

/** Wait until nobody holds a slot of the endless model: an answer that nobody reads must end. */
export async function assertSlotsAreFree() {
  const deadlineMs = Date.now() + PATIENCE_MS;
  for (let count; (count = await inFlight()) > 0; await pause(20)) {
    assert.ok(Date.now() < deadlineMs, `${count} requests still hold ${endlessModel}`);
  }
}

/** Assert that one request holds a slot: only then does a cancel prove anything. */
export async function assertSlotIsHeld() {
  assert.equal(await inFlight(), 1);
}
