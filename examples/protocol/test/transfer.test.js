import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Head, Receiver, Sender, chunkHash, parseReference } from '../index.js';

const limits = { chunk_size: 4, max_resource_size: 1000 };

function chunksOf(...texts) {
  const head = new Head();
  let previous = null;
  return texts.map((text) => {
    const data = Buffer.from(text);
    const offset = head.size;
    const { size, value } = head.update(data);
    const chunk = { offset, hash: chunkHash(data), previous, checkpoint: { size, newlines: 0, head: value }, data };
    previous = chunk.hash;
    return chunk;
  });
}

function endOf({ hash, checkpoint }) {
  return { offset: checkpoint.size, previous: hash, status: { ...checkpoint, state: 'COMPLETED' } };
}

test('a sender cuts chunks to their limit and to the window', () => {
  const sender = new Sender({ offset: 0, until: 6, limits });
  const bytes = Buffer.from('0123456789');
  const first = sender.next(bytes);
  const second = sender.next(bytes.subarray(4));
  assert.equal(sender.next(bytes.subarray(6)), undefined);
  sender.window({ until: 5 }); // late, and of no effect
  assert.equal(sender.next(bytes.subarray(6)), undefined);
  sender.window({ until: 10 });
  const third = sender.next(bytes.subarray(6));
  assert.deepEqual([first, second, third].map((chunk) => String(chunk.data)), ['0123', '45', '6789']);
  assert.deepEqual([first, second, third].map((chunk) => chunk.offset), [0, 4, 6]);
  assert.deepEqual([first, second, third].map((chunk) => chunk.previous), [null, first.hash, second.hash]);
  assert.deepEqual(sender.finish(), { size: 10, head: new Head().update(bytes).value });
});

test('a sender refuses checkpoints that go back or ahead', () => {
  const sender = new Sender({ offset: 0, until: 100, limits });
  sender.next(Buffer.from('0123'));
  sender.checkpoint({ size: 3 });
  assert.throws(() => sender.checkpoint({ size: 2 }), { code: 'protocol' });
  assert.throws(() => sender.checkpoint({ size: 5 }), { code: 'protocol' });
});

test('a receiver passes what was sent', () => {
  const chunks = chunksOf('one', 'two', 'three');
  const receiver = new Receiver({ offset: 0 });
  assert.equal(chunks.map((chunk) => receiver.chunk(chunk)).join(''), 'onetwothree');
  receiver.end(endOf(chunks[2]));
});

const damages = {
  'a corrupted byte': ([a, b, c]) => [a, { ...b, data: Buffer.from('twO') }, c],
  'a lost chunk': ([a, , c]) => [a, c],
  'a repeated chunk': ([a, b, c]) => [a, b, b, c],
  'chunks in another order': ([a, b, c]) => [b, a, c],
  'a chunk of another stream': ([a, b, c]) => [a, chunksOf('one', 'owt')[1], c],
  'a head of other bytes': ([a, b, c]) => [a, { ...b, checkpoint: { ...b.checkpoint, head: a.checkpoint.head } }, c],
};
for (const [damage, inflict] of Object.entries(damages)) {
  test(`a receiver finds ${damage}`, () => {
    const receiver = new Receiver({ offset: 0 });
    const chunks = inflict(chunksOf('one', 'two', 'three'));
    assert.throws(() => chunks.forEach((chunk) => receiver.chunk(chunk)), { code: 'integrity' });
  });
}

test('a receiver finds a wrong end', () => {
  const [first, second] = chunksOf('one', 'two');
  const end = endOf(first);
  const wrong = [
    endOf(second),
    { ...end, previous: second.hash },
    { ...end, status: { ...end.status, head: second.checkpoint.head } },
  ];
  for (const message of wrong) {
    const receiver = new Receiver({ offset: 0 });
    receiver.chunk(first);
    assert.throws(() => receiver.end(message), { code: 'integrity' });
  }
  const receiver = new Receiver({ offset: 0, end: 6 });
  receiver.chunk(first);
  assert.throws(() => receiver.end(end), { code: 'integrity' });
});

test('references are taken apart behind the last /r/', () => {
  assert.deepEqual(parseReference('wss://h/r/x/r/0pgc'), { base: 'wss://h/r/x', id: '0pgc' });
  assert.throws(() => parseReference('0pgc'), { code: 'invalid_reference' });
});
