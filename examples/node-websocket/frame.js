import { TailraceError, fromHex, toHex } from 'tailrace-protocol';

const LAYOUT = 1;
const FIRST = 1;
const CHECKPOINT = 2;
const HEADER = 32;
const HEADER_WITH_CHECKPOINT = 56;

// A chunk of an upload as one binary message. `previous` of its first chunk is null.
export function encodeChunk(request, { offset, hash, previous, data }) {
  const frame = new Uint8Array(HEADER + data.length);
  const view = new DataView(frame.buffer);
  view.setUint8(0, LAYOUT);
  view.setUint8(1, previous === null ? FIRST : 0);
  view.setUint32(4, request);
  view.setBigUint64(8, BigInt(offset));
  frame.set(fromHex(hash), 16);
  if (previous !== null) frame.set(fromHex(previous), 24);
  frame.set(data, HEADER);
  return frame;
}

// The chunk of a download in a binary message, and the request that it belongs to. `data` lies within the frame.
export function decodeChunk(frame) {
  const view = new DataView(frame.buffer, frame.byteOffset, frame.length);
  const unknown = frame.length < HEADER || view.getUint8(0) !== LAYOUT || view.getUint8(1) > (FIRST | CHECKPOINT);
  if (unknown) throw new TailraceError('unsupported', 'a binary message of an unknown layout');
  const flags = view.getUint8(1);
  const header = flags & CHECKPOINT ? HEADER_WITH_CHECKPOINT : HEADER;
  if (frame.length <= header) throw new TailraceError('protocol', 'a chunk without bytes');
  const offset = Number(view.getBigUint64(8));
  const data = frame.subarray(header);
  const chunk = {
    type: 'chunk',
    request: view.getUint32(4),
    offset,
    hash: toHex(frame.subarray(16, 24)),
    previous: flags & FIRST ? null : toHex(frame.subarray(24, 32)),
    checkpoint: null,
    data,
  };
  if (flags & CHECKPOINT) {
    const newlines = Number(view.getBigUint64(32));
    chunk.checkpoint = { size: offset + data.length, newlines, head: toHex(frame.subarray(40, 56)) };
  }
  return chunk;
}
