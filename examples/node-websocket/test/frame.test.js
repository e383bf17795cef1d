import assert from 'node:assert/strict';
import { test } from 'node:test';
import { chunkHash } from 'tailrace-protocol';
import { bytesBehind } from '../../document.js';
import { decodeChunk, encodeChunk } from '../frame.js';

const compiling = Buffer.from('compiling\n');
const linking = Buffer.from('linking\n');
const first = { offset: 0, hash: chunkHash(compiling), previous: null, data: compiling };
const second = { offset: 10, hash: chunkHash(linking), previous: first.hash, data: linking };

test('chunks are encoded as in the document', () => {
  assert.deepEqual(Buffer.from(encodeChunk(1, first)), bytesBehind('The first chunk of an upload as request 1'));
  assert.deepEqual(Buffer.from(encodeChunk(1, second)), bytesBehind('636f6d70696c696e670a  data\n```'));
});

test('a chunk with a checkpoint is decoded as in the document', () => {
  const chunk = decodeChunk(bytesBehind('The same chunk on its way to a reader'));
  const checkpoint = { size: 18, newlines: 2, head: 'ecbfecba7745438a3e2a8b8a0df89e28' };
  assert.deepEqual({ ...chunk, data: Buffer.from(chunk.data) }, { type: 'chunk', request: 2, ...second, checkpoint });
});

test('unknown layouts and flags are refused', () => {
  const frame = encodeChunk(1, first);
  for (const [position, value] of [[0, 2], [1, 4]]) {
    const changed = Uint8Array.from(frame);
    changed[position] = value;
    assert.throws(() => decodeChunk(changed), { code: 'unsupported' });
  }
  assert.throws(() => decodeChunk(frame.subarray(0, 31)), { code: 'unsupported' });
  assert.throws(() => decodeChunk(frame.subarray(0, 32)), { code: 'protocol' });
});
