import grpc from '@grpc/grpc-js';
import { TailraceError } from 'tailrace-protocol';
import { decode, decodeError, definitions, encodeNext, encodeOpen } from './codec.js';

const { Resources, Uploads } = grpc.loadPackageDefinition(definitions).tailrace.v1;
const DEFAULT_PORT = 7070;
const FINAL_SENT = new Set(['finish', 'abort']);
const FINAL_RECEIVED = new Set(['finished', 'end']);

const CHANNEL_OPTIONS = {
  'grpc.keepalive_time_ms': 20_000,
  'grpc.keepalive_timeout_ms': 20_000,
  'grpc.keepalive_permit_without_calls': 1,
};

// What a status means that was made by gRPC or a proxy; all others mean 'protocol'.
const CODES = {
  [grpc.status.CANCELLED]: 'connection_lost',
  [grpc.status.UNKNOWN]: 'internal',
  [grpc.status.DEADLINE_EXCEEDED]: 'connection_lost',
  [grpc.status.NOT_FOUND]: 'unsupported',
  [grpc.status.PERMISSION_DENIED]: 'permission_denied',
  [grpc.status.UNAUTHENTICATED]: 'unauthenticated',
  [grpc.status.ABORTED]: 'connection_lost',
  [grpc.status.UNIMPLEMENTED]: 'unsupported',
  [grpc.status.INTERNAL]: 'internal',
  [grpc.status.UNAVAILABLE]: 'connection_lost',
  [grpc.status.DATA_LOSS]: 'internal',
};

// Connect to a server by its base, grpc://HOST[:PORT] or grpcs://HOST[:PORT]. The first call finds out if it is there.
// `token` is a bearer token, where the server wants one; it is sent with every call.
export function connect(base, { token } = {}) {
  const parts = /^(grpcs?):\/\/([^/]+)$/.exec(base);
  if (!parts) throw new TailraceError('configuration', `'${base}' is not grpc://HOST[:PORT]`);
  const [, scheme, host] = parts;
  const address = /:\d+$/.test(host) ? host : `${host}:${DEFAULT_PORT}`;
  return new Connection(address, grpc.credentials[scheme === 'grpcs' ? 'createSsl' : 'createInsecure'](), token);
}

class Connection {
  window = 0; // the flow control of HTTP/2 sets the pace
  #uploads;
  #resources;
  #metadata = new grpc.Metadata();

  constructor(address, credentials, token) {
    if (token) this.#metadata.set('authorization', `Bearer ${token}`);
    this.#uploads = new Uploads(address, credentials, CHANNEL_OPTIONS);
    this.#resources = new Resources(address, credentials, {
      ...CHANNEL_OPTIONS,
      channelOverride: this.#uploads.getChannel(),
    });
  }

  converse(type, fields) {
    return new Conversation(this.#call(type), type, fields);
  }

  close() {
    this.#uploads.close();
  }

  #call(type) {
    switch (type) {
      case 'open_upload':
        return this.#uploads.Upload(this.#metadata);
      case 'read':
        return this.#resources.Read(this.#metadata);
      case 'follow':
        return this.#resources.Follow(this.#metadata);
      case 'read_lines':
        return this.#resources.ReadLines(this.#metadata);
      default:
        throw new TailraceError('unsupported', `request '${type}'`);
    }
  }
}

// One call.
class Conversation {
  #call;
  #responses;
  #received = []; // of the last response
  #ended = false;
  #reason = null;

  constructor(call, type, fields) {
    this.#call = call;
    call.on('error', () => {}); // who receives is told
    this.#responses = call[Symbol.asyncIterator]();
    call.write(encodeOpen(type, fields));
    // Readers grant nothing later, since they asked without a window.
    if (type !== 'open_upload') call.end();
  }

  send(type, fields) {
    if (this.#ended) return;
    this.#call.write(encodeNext(type, fields));
    if (FINAL_SENT.has(type)) this.#call.end();
  }

  async receive() {
    try {
      if (this.#received.length === 0) {
        const { value, done } = await this.#responses.next();
        if (done) throw new TailraceError('connection_lost', 'the call ended without its last message');
        this.#received = decode(value);
      }
      const message = this.#received.shift();
      if (FINAL_RECEIVED.has(message.type)) this.#finish();
      return message;
    } catch (error) {
      this.#ended = true;
      throw this.#reason ?? (error instanceof TailraceError ? error : errorOf(error));
    }
  }

  cancel(reason = new TailraceError('connection_lost', 'cancelled')) {
    if (this.#ended) return;
    this.#ended = true;
    this.#reason = reason;
    this.#received = [];
    this.#call.cancel();
  }

  // Behind the last message only the status of the call is left; gRPC wants it read.
  #finish() {
    this.#ended = true;
    this.#responses.next().catch(() => {});
  }
}

function errorOf(failure) {
  const [entry] = failure.metadata?.get('tailrace-error-bin') ?? [];
  if (!entry) return new TailraceError(CODES[failure.code] ?? 'protocol', failure.details ?? failure.message);
  const { code, message, details } = decodeError(entry);
  return new TailraceError(code, message, details);
}
