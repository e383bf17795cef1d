import { TailraceError } from 'tailrace-protocol';

export const RECORDS = 2;
const HEADER = 16;
const ENTRY = 8;

// Records { data, key } as one binary message: the lengths of all, then the data of all, then the keys of all.
export function encodeRecords(request, records) {
  const size = records.reduce((sum, { data, key }) => sum + ENTRY + data.length + key.length, HEADER);
  const frame = new Uint8Array(size);
  const view = new DataView(frame.buffer);
  view.setUint8(0, RECORDS);
  view.setUint32(4, request);
  view.setUint32(8, records.length);
  records.forEach(({ data, key }, index) => {
    view.setUint32(HEADER + ENTRY * index, data.length);
    view.setUint32(HEADER + ENTRY * index + 4, key.length);
  });
  let at = HEADER + ENTRY * records.length;
  for (const part of ['data', 'key']) {
    for (const record of records) {
      frame.set(record[part], at);
      at += record[part].length;
    }
  }
  return frame;
}

// The records in a binary message, and the request that they belong to. They lie within the frame.
export function decodeRecords(frame) {
  const view = new DataView(frame.buffer, frame.byteOffset, frame.length);
  const count = frame.length < HEADER ? 0 : view.getUint32(8);
  if (count === 0 || frame.length < HEADER + ENTRY * count) throw broken();
  const entries = Array.from({ length: count }, (_, index) => HEADER + ENTRY * index);
  let at = HEADER + ENTRY * count;
  const take = (length) => frame.subarray(at, (at += length));
  const data = entries.map((entry) => take(view.getUint32(entry)));
  const keys = entries.map((entry) => take(view.getUint32(entry + 4)));
  if (at !== frame.length) throw broken();
  const records = data.map((data, index) => ({ data, key: keys[index] }));
  return { type: 'records', request: view.getUint32(4), records };
}

function broken() {
  return new TailraceError('protocol', 'a binary message whose lengths do not add up');
}
