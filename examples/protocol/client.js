import { Bulk } from './bulk.js';
import { Download } from './download.js';
import { unsupportedError } from './errors.js';
import { RecordDigest } from './record-digest.js';
import { Results } from './results.js';
import { Upload } from './upload.js';

// Uploads and reads resources over a connection of any transport. A connection has
//
//   window                    the download window to ask for, in bytes; 0 leaves the pace to the transport
//   converse(type, fields)    begins a conversation: { send(type, fields), receive(), cancel(reason) }
//   close()                   ends all conversations
//
// Messages have the names and fields of the WebSocket binding in PROTOCOL.md; hashes and heads are hexadecimal.
// Bulks and queries need a connection that also has the messages of records.
// `receive` rejects with a TailraceError when there is no further message, and with `reason` once cancelled.
export class Client {
  #connection;

  constructor(connection) {
    this.#connection = connection;
  }

  // Begin to upload a resource; `metadata` has at least a `name`. Aborting `signal` leaves the upload as it is.
  async upload(metadata, { signal } = {}) {
    const [conversation, opened] = await this.#open('open_upload', { metadata }, 'opened', signal);
    return new Upload(conversation, opened);
  }

  // The bytes [start, end), or those that there are now.
  read(id, { start = 0, end, signal } = {}) {
    return this.#download('read', { id, start, end }, signal);
  }

  // What there is, and then what is added, until the resource ends. `from`: one of from_offset, last_bytes, last_lines.
  follow(id, { signal, ...from } = {}) {
    return this.#download('follow', { id, ...from }, signal);
  }

  // The lines [first, first + count), or all from `first` on that there are now.
  readLines(id, { first = 0, count, signal } = {}) {
    return this.#download('read_lines', { id, first, count }, signal);
  }

  // Begin a bulk into a collection or a queue. Options: idempotency_key, reporting ('first' or 'all'), priority.
  async bulk(collection, { signal, ...options } = {}) {
    const digest = await RecordDigest.begin();
    const [conversation, opened] = await this.#open('open_bulk', { collection, ...options }, 'bulk_opened', signal);
    return new Bulk(conversation, opened, digest);
  }

  // The records of a source for these arguments, as they are produced.
  async query(source, args = {}, { signal } = {}) {
    const { window } = this.#connection;
    const digest = await RecordDigest.begin();
    const fields = { source, arguments: args, window };
    const [conversation, started] = await this.#open('query', fields, 'query_started', signal);
    return new Results(conversation, started, window, digest);
  }

  close() {
    this.#connection.close();
  }

  async #download(type, fields, signal) {
    const { window } = this.#connection;
    const [conversation, started] = await this.#open(type, { ...fields, window }, 'started', signal);
    return new Download(conversation, started, window);
  }

  async #open(type, fields, answer, signal) {
    signal?.throwIfAborted();
    const conversation = this.#connection.converse(type, fields);
    signal?.addEventListener('abort', () => conversation.cancel(signal.reason), { once: true });
    const message = await conversation.receive();
    if (message.type === answer) return [conversation, message];
    conversation.cancel();
    throw unsupportedError(message.type);
  }
}
