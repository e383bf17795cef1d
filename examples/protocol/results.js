import { TailraceError, unsupportedError } from './errors.js';

const OVERHEAD = 8;

// The records of a query, as they are produced: { data, key }, both bytes. Leaving the loop ends the query.
export class Results {
  #conversation;
  #window;
  #digest;

  constructor(conversation, started, window, digest) {
    this.#conversation = conversation;
    this.#window = window;
    this.#digest = digest;
    this.contentType = started.content_type;
  }

  async *[Symbol.asyncIterator]() {
    let count = 0;
    let consumed = 0;
    try {
      for (;;) {
        const message = await this.#conversation.receive();
        if (message.type === 'query_end') {
          if (message.records === count && message.digest === this.#digest.end()) return;
          throw new TailraceError('integrity', `not the ${message.records} records that were sent`, { offset: 0 });
        }
        if (message.type !== 'records') throw unsupportedError(message.type);
        this.#digest.update(message.records);
        count += message.records.length;
        yield* message.records;
        for (const { data, key } of message.records) consumed += data.length + key.length + OVERHEAD;
        if (this.#window) this.#conversation.send('window', { until: consumed + this.#window });
      }
    } finally {
      this.#conversation.cancel();
    }
  }
}
