import { TailraceError, protocolError, unsupportedError } from './errors.js';

const MESSAGE_BYTES = 262_144;
const MESSAGE_RECORDS = 8_192;
const OVERHEAD = 8;
const MAX_KEY = 255;

const encoder = new TextEncoder();

// A bulk on its way: all of its records become visible together when it is committed, or none does.
export class Bulk {
  #conversation;
  #limits;
  #digest;
  #until;
  #packed = { records: [], size: 0 };
  #count = 0;
  #sent = 0;
  #failure;
  #committed;
  #timer;
  #wake = () => {};

  constructor(conversation, opened, digest) {
    this.#conversation = conversation;
    this.#limits = opened.limits;
    this.#digest = digest;
    this.#until = opened.until;
    this.id = opened.id;
    // An earlier bulk with the same key has committed. Nothing is sent, and commit() compares.
    this.result = opened.result ?? null;
    this.#committed = this.result ? Promise.resolve(this.result) : this.#receive();
    this.#committed.catch(() => {}); // whoever sends or commits is told
    if (this.result) conversation.cancel();
  }

  // Hand a record over: an object becomes JSON, text becomes UTF-8. Waits only while the window is used up.
  async send(record, { key = '' } = {}) {
    const encoded = { data: encode(record), key: encoder.encode(key) };
    const size = encoded.data.length + encoded.key.length + OVERHEAD;
    const { record_bytes: most } = this.#limits;
    if (size - OVERHEAD > most) throw invalid('record', `larger than ${most} bytes`);
    if (encoded.key.length > MAX_KEY) throw invalid('key', `longer than ${MAX_KEY} bytes`);
    for (;;) {
      if (this.#failure) throw this.#failure;
      const { records, size: packed } = this.#packed;
      const full = records.length === MESSAGE_RECORDS || packed + size > MESSAGE_BYTES;
      if (records.length > 0 && (full || !this.#fits(packed + size))) this.#flush();
      else if (this.#fits(packed + size)) break;
      else await new Promise((resolve) => (this.#wake = resolve));
    }
    this.#packed.records.push(encoded);
    this.#packed.size += size;
    // What is handed over in one turn of the event loop travels in one message.
    this.#timer ??= setTimeout(() => this.#flush());
  }

  // Make everything visible. Returns the result when it is durable.
  async commit() {
    this.#flush();
    const digest = this.#digest.end();
    if (!this.result) this.#conversation.send('commit_bulk', { records: this.#count, digest });
    const result = await this.#committed;
    if (result.records === this.#count && result.digest === digest) return (this.result = result);
    if (!result.repeated) throw protocolError('the server committed something else');
    throw new TailraceError('bulk_conflict', 'the key was used for other records', { id: result.id });
  }

  // Give up: nothing becomes visible.
  cancel() {
    clearTimeout(this.#timer);
    this.#conversation.cancel();
  }

  #fits(size) {
    return this.result || this.#sent + size <= this.#until;
  }

  #flush() {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const { records, size } = this.#packed;
    if (records.length === 0) return;
    this.#packed = { records: [], size: 0 };
    this.#count += records.length;
    this.#sent += size;
    this.#digest.update(records);
    if (!this.result) this.#conversation.send('records', records);
  }

  async #receive() {
    try {
      for (;;) {
        const message = await this.#conversation.receive();
        if (message.type === 'window') this.#until = Math.max(this.#until, message.until);
        else if (message.type === 'bulk_committed') return message.result;
        else throw unsupportedError(message.type);
        this.#wake();
      }
    } catch (error) {
      this.#failure = error;
      throw error;
    } finally {
      this.#conversation.cancel();
      this.#wake();
    }
  }
}

function encode(record) {
  if (record instanceof Uint8Array) return record;
  return encoder.encode(typeof record === 'string' ? record : JSON.stringify(record));
}

function invalid(field, problem) {
  return new TailraceError('invalid_argument', `${field}: ${problem}`, { field, problem });
}
