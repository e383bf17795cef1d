import { TailraceError, protocolError, unsupportedError } from './errors.js';
import { Receiver } from './receiver.js';

// A stream of verified bytes, to be iterated once: for await (const bytes of download). Leaving the loop cancels it.
export class Download {
  #conversation;
  #window;

  // `window` is how many bytes the server may send ahead of what was consumed; 0 leaves the pace to the transport.
  constructor(conversation, started, window) {
    this.#conversation = conversation;
    this.#window = window;
    this.started = started;
    this.status = started.status; // the final one behind the last byte
  }

  async *[Symbol.asyncIterator]() {
    const receiver = new Receiver(this.started);
    let granted = receiver.offset + this.#window;
    try {
      for (;;) {
        const message = await this.#conversation.receive();
        if (message.type === 'chunk') {
          yield receiver.chunk(message);
          const until = receiver.offset + this.#window;
          if (until - granted >= this.#window / 4 && this.#window > 0) {
            this.#conversation.send('window', { until: (granted = until) });
          }
        } else if (message.type === 'end') {
          receiver.end(message);
          this.status = message.status;
          break;
        } else {
          throw unsupportedError(message.type);
        }
      }
    } finally {
      this.#conversation.cancel();
    }
    // A follower has every byte that was announced, but its user must not take that for all of it.
    if (this.started.end == null) {
      const { id, reason, size, state } = this.status;
      if (state === 'FAILED') throw new TailraceError('resource_failed', `failed: ${reason}`, { id, reason, size });
      if (state !== 'COMPLETED') throw protocolError(`a follower's stream ended ${state}`);
    }
  }
}
