import { TailraceError } from 'tailrace-protocol';
import { decodeChunk, encodeChunk } from './frame.js';
import { RECORDS, decodeRecords, encodeRecords } from './record-frame.js';

const WINDOW = 4 << 20;
const LAST_MESSAGES = new Set(['finished', 'end', 'bulk_committed', 'query_end']);

// Connect to a server by its base, ws://HOST:PORT[/PREFIX] or the same with wss, http or https.
//
// `WebSocket` is that of a browser or of the package ws; both have what is used here. `token` is a bearer token, where
// the server wants one: pages cannot set headers, so it travels as a subprotocol.
export async function connect(base, { WebSocket = globalThis.WebSocket, token } = {}) {
  const subprotocols = ['tailrace.v1', ...(token ? [`tailrace.token.${base64url(token)}`] : [])];
  const connection = new Connection(new WebSocket(`${base.replace(/^http/, 'ws')}/v1/connect`, subprotocols));
  await connection.ready;
  return connection;
}

// Without padding; tokens are ASCII.
function base64url(text) {
  return btoa(text).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');
}

class Connection {
  window = WINDOW;
  #socket;
  #conversations = new Map();
  #lastRequest = 0;
  #failure = null;
  #keepalive;
  #pongMissing = false;

  constructor(socket) {
    this.#socket = socket;
    socket.binaryType = 'arraybuffer';
    // Settles when the server said hello, or did not.
    this.ready = new Promise((resolve, reject) => {
      this.hello = resolve;
      this.refused = reject;
    });
    socket.addEventListener('message', ({ data }) => this.#receive(data));
    socket.addEventListener('error', () => this.#fail(lost('no connection')));
    socket.addEventListener('close', ({ code }) => this.#fail(lost(`the connection was closed with ${code}`)));
  }

  converse(type, fields) {
    const request = ++this.#lastRequest;
    const conversation = new Conversation(
      (type, fields) => this.#send(type, request, fields),
      () => this.#conversations.delete(request),
    );
    if (this.#failure) {
      conversation.fail(this.#failure);
    } else {
      this.#conversations.set(request, conversation);
      conversation.send(type, fields);
    }
    return conversation;
  }

  close() {
    this.#fail(lost('closed'));
    this.#socket.close(1000);
  }

  #send(type, request, fields) {
    if (type === 'chunk') this.#socket.send(encodeChunk(request, fields));
    else if (type === 'records') this.#socket.send(encodeRecords(request, fields));
    else this.#socket.send(JSON.stringify({ type, request, ...fields }));
  }

  #receive(data) {
    let message;
    try {
      message = typeof data === 'string' ? JSON.parse(data) : decode(new Uint8Array(data));
    } catch (error) {
      return this.#end(error);
    }
    if (message.request) this.#conversations.get(message.request)?.deliver(message);
    else if (message.type === 'hello') this.#start(message);
    else if (message.type === 'pong') this.#pongMissing = false;
    else if (message.type === 'error') this.#end(errorOf(message));
    else this.#end(new TailraceError('unsupported', `message '${message.type}'`));
  }

  #start({ protocol, limits, keepalive_interval }) {
    if (protocol !== 1) return this.#end(new TailraceError('unsupported', `version ${protocol} of the protocol`));
    this.window = Math.min(WINDOW, limits.max_download_window);
    this.#keepalive = setInterval(() => this.#ping(), keepalive_interval * 1000);
    this.hello();
  }

  // Pages cannot send pings of WebSocket, so this sends the message of that name.
  #ping() {
    if (this.#pongMissing) return this.#end(lost('the server does not answer'));
    this.#pongMissing = true;
    this.#socket.send(JSON.stringify({ type: 'ping' }));
  }

  #end(error) {
    this.#fail(error);
    this.#socket.close();
  }

  #fail(error) {
    this.#failure ??= error;
    clearInterval(this.#keepalive);
    this.refused(this.#failure);
    for (const conversation of this.#conversations.values()) conversation.fail(this.#failure);
  }
}

// The messages of one request.
class Conversation {
  #transmit;
  #forget;
  #inbox = [];
  #waiting = null;
  #failure = null;
  #ended = false;

  constructor(transmit, forget) {
    this.#transmit = transmit;
    this.#forget = forget;
  }

  send(type, fields) {
    if (!this.#ended) this.#transmit(type, fields);
  }

  receive() {
    return new Promise((resolve, reject) => {
      this.#waiting = { resolve, reject };
      this.#settle();
    });
  }

  cancel(reason = new TailraceError('connection_lost', 'cancelled')) {
    this.send('cancel');
    this.#inbox = [];
    this.fail(reason);
  }

  deliver(message) {
    if (message.type === 'error') return this.fail(errorOf(message));
    this.#inbox.push(message);
    if (LAST_MESSAGES.has(message.type)) this.fail(lost('the conversation is over'));
    this.#settle();
  }

  // No further message comes; those that came are still received.
  fail(error) {
    if (this.#ended) return;
    this.#ended = true;
    this.#failure = error;
    this.#forget();
    this.#settle();
  }

  #settle() {
    if (!this.#waiting) return;
    if (this.#inbox.length > 0) this.#waiting.resolve(this.#inbox.shift());
    else if (this.#ended) this.#waiting.reject(this.#failure);
    else return;
    this.#waiting = null;
  }
}

function decode(frame) {
  return frame[0] === RECORDS ? decodeRecords(frame) : decodeChunk(frame);
}

function errorOf({ code, message, details }) {
  return new TailraceError(code, message, details ?? {});
}

function lost(why) {
  return new TailraceError('connection_lost', why);
}
