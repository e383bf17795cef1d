import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Head, chunkHash } from '../index.js';
import { table } from '../../document.js';

const pattern = Uint8Array.from({ length: 300_000 }, (_, index) => index % 251);

test('heads are those of the document, whatever the pieces', () => {
  const rows = table('| size | full blocks | spine | digest of the open block | head |');
  assert.equal(rows.length, 6);
  for (const [size, , , , expected] of rows) {
    for (const step of [300_000, 131_072, 65_537]) {
      const head = new Head();
      for (let at = 0; at < size; at += step) head.update(pattern.subarray(at, Math.min(at + step, size)));
      assert.equal(head.value, expected, `${size} bytes in steps of ${step}`);
    }
  }
});

test('a head may be asked for at any time', () => {
  const head = new Head();
  assert.equal(head.update(Buffer.from('compiling\n')).value, '975b6e241b1bc884a1b6ad309d7b02d0');
  assert.equal(head.update(Buffer.from('linking\n')).value, 'ecbfecba7745438a3e2a8b8a0df89e28');
});

test('hashes of chunks are those of the document', () => {
  const hashes = Object.fromEntries(table('| bytes | `hash` |'));
  assert.equal(hashes['`compiling\\n` (10 bytes)'], chunkHash(Buffer.from('compiling\n')));
  assert.equal(hashes['`linking\\n` (8 bytes)'], chunkHash(Buffer.from('linking\n')));
  assert.equal(hashes['the first 131,072 bytes of the pattern in section 1.5'], chunkHash(pattern.subarray(0, 131_072)));
  assert.equal(hashes['the first 131,073 bytes of it'], chunkHash(pattern.subarray(0, 131_073)));
  assert.equal(hashes['the first 262,144 bytes of it'], chunkHash(pattern.subarray(0, 262_144)));
  assert.equal(hashes['its 300,000 bytes'], chunkHash(pattern));
});
