import { fileURLToPath } from 'node:url';
import { loadSync } from '@grpc/proto-loader';
import { TailraceError, fromHex, toHex } from 'tailrace-protocol';

const options = { keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true };

// What a server may put into one response to an uploader or a reader, which stands for one after the other.
const TOGETHER = ['opened', 'checkpoint', 'window', 'finished', 'started', 'chunk', 'end'];

export const definitions = loadSync(fileURLToPath(new URL('tailrace.proto', import.meta.url)), options);

// The first message of a call, from the fields of the request.
export function encodeOpen(type, fields) {
  if (type !== 'follow') return { open: fields };
  const { from_offset: offset, ...others } = fields;
  return { open: { ...others, ...(offset !== undefined && { offset }) } };
}

// Any later message of the client.
export function encodeNext(type, fields) {
  if (type === 'chunk') {
    const { offset, hash, previous, data } = fields;
    return { chunk: { offset, hash: fromHex(hash), previous: fromHex(previous ?? ''), data } };
  }
  if (type === 'finish') return { finish: { size: fields.size, head: fromHex(fields.head) } };
  return { [type]: fields };
}

// The messages in a response of the server: the one that is set in its oneof, or all that are there, in order.
export function decode(response) {
  const types = response.message ? [response.message] : TOGETHER.filter((type) => response[type]);
  if (types.length === 0) throw new TailraceError('unsupported', 'a response of an unknown kind');
  return types.map((type) => decodeMessage(type, response[type]));
}

function decodeMessage(type, fields) {
  const message = { ...fields, type };
  if (fields.status) message.status = decodeStatus(fields.status);
  if (fields.head) message.head = toHex(fields.head);
  if (fields.hash) message.hash = toHex(fields.hash);
  if (fields.previous) message.previous = toHex(fields.previous) || null;
  if (fields.checkpoint) message.checkpoint = { ...fields.checkpoint, head: toHex(fields.checkpoint.head) };
  return message;
}

// The error in the trailing metadata entry 'tailrace-error-bin': code, message, and details by name.
export function decodeError(entry) {
  const { code, message, details } = definitions['tailrace.v1.Error'].deserialize(entry);
  const values = Object.entries(details).map(([name, value]) => [name, value[value.kind] ?? null]);
  return { code, message, details: Object.fromEntries(values) };
}

function decodeStatus(status) {
  const state = status.state.replace('RESOURCE_STATE_', '');
  const visibility = status.visibility.replace('VISIBILITY_', '').toLowerCase();
  return { ...status, state, visibility, head: toHex(status.head) };
}
