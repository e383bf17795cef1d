import assert from 'node:assert/strict';
import { test } from 'node:test';
import { chunkHash } from 'tailrace-protocol';
import { bytesBehind } from '../../document.js';
import { decode, decodeError, definitions, encodeNext } from '../codec.js';

const compiling = Buffer.from('compiling\n');
const linking = Buffer.from('linking\n');
const first = { offset: 0, hash: chunkHash(compiling), previous: null, data: compiling };
const second = { offset: 10, hash: chunkHash(linking), previous: first.hash, data: linking };

test('chunks are encoded as in the document', () => {
  const encode = (chunk) => definitions['tailrace.v1.UploadRequest'].serialize(encodeNext('chunk', chunk));
  assert.deepEqual(fieldsOf(encode(first)), fieldsOf(bytesBehind('Example: the first chunk of an upload')));
  assert.deepEqual(fieldsOf(encode(second)), fieldsOf(bytesBehind('2a 0a 636f6d70696c696e670a   data, 10 bytes\n```')));
});

test('a chunk with a checkpoint is decoded as in the document', () => {
  const bytes = bytesBehind('The same chunk in a `DownloadResponse`, when 18 bytes are announced');
  const checkpoint = { size: 18, newlines: 2, head: 'ecbfecba7745438a3e2a8b8a0df89e28' };
  const [chunk, ...others] = decode(definitions['tailrace.v1.DownloadResponse'].deserialize(bytes));
  assert.deepEqual(chunk, { type: 'chunk', ...second, checkpoint });
  assert.deepEqual(others, []);
});

test('what came in one response is taken in order', () => {
  const type = definitions['tailrace.v1.DownloadResponse'];
  const encode = (fields) => Buffer.from(type.serialize(fields));
  const status = { state: 'RESOURCE_STATE_COMPLETED', visibility: 'VISIBILITY_LIVE' };
  const [started, end] = [encode({ started: { offset: 3, end: 3, status } }), encode({ end: { offset: 3, status } })];
  const typesOf = (...parts) => decode(type.deserialize(Buffer.concat(parts))).map((message) => message.type);
  assert.deepEqual(typesOf(started, end), ['started', 'end']);
  assert.deepEqual(typesOf(end, encode({ chunk: { data: linking } }), started), ['started', 'chunk', 'end']);
  assert.throws(() => typesOf(Buffer.alloc(0)), { code: 'unsupported' });
});

test('what an uploader is told in one response is taken in order', () => {
  const type = definitions['tailrace.v1.UploadResponse'];
  const news = type.deserialize(type.serialize({ window: { until: 9 }, checkpoint: { size: 3, head: Buffer.alloc(16) } }));
  assert.deepEqual(decode(news), [
    { type: 'checkpoint', size: 3, newlines: 0, head: '0'.repeat(32) },
    { type: 'window', until: 9 },
  ]);
});

test('an error is decoded as in the document', () => {
  assert.deepEqual(decodeError(bytesBehind('Example: the entry of a `range_not_satisfiable`')), {
    code: 'range_not_satisfiable',
    message: 'bytes [0, 100) are not within the 18 bytes that are readable',
    details: { start: 0, end: 100, size: 18 },
  });
});

// A field with its default value may be written or left out, so messages are compared as what they hold.
function fieldsOf(bytes) {
  return definitions['tailrace.v1.UploadRequest'].deserialize(bytes);
}
