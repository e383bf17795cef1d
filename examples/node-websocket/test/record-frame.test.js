import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RecordDigest } from 'tailrace-protocol';
import { bytesBehind } from '../../document.js';
import { decodeRecords, encodeRecords } from '../record-frame.js';

const records = [['{"n":10}', ''], ['{"n":20}', 'k2'], ['{"n":333}', '']].map(([data, key]) => ({
  data: Buffer.from(data),
  key: Buffer.from(key),
}));
const frame = bytesBehind('Three records of a bulk as request 17, of which the second one has the key `k2`:');

test('records look as in the document', () => {
  assert.deepEqual(Buffer.from(encodeRecords(17, records)), frame);
  assert.deepEqual(decodeRecords(frame), { type: 'records', request: 17, records });
});

test('the digest is that of the document, whatever the messages', async () => {
  for (const size of [1, 2, 3]) {
    const digest = await RecordDigest.begin();
    for (let at = 0; at < records.length; at += size) digest.update(records.slice(at, at + size));
    assert.equal(digest.end(), 'e67a1222cf2e564091340591be3b5800');
  }
});

test('what does not add up is refused', () => {
  const cut = [15, 30, -1].map((end) => frame.subarray(0, end));
  for (const broken of [...cut, Buffer.concat([frame, frame])]) {
    assert.throws(() => decodeRecords(broken), { code: 'protocol' });
  }
  const none = Buffer.from(frame);
  none[11] = 0;
  assert.throws(() => decodeRecords(none), { code: 'protocol' });
});
