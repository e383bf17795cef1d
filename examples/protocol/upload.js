import { TailraceError, unsupportedError } from './errors.js';
import { Sender } from './sender.js';

// A running upload. Others can read `reference` from the beginning.
export class Upload {
  #conversation;
  #limits;
  #sender;
  #failure;
  #wake = () => {};

  constructor(conversation, opened) {
    this.#conversation = conversation;
    this.#limits = opened.limits;
    this.#sender = new Sender(opened);
    this.reference = opened.status.reference;
    // Settles when the upload has ended: with the final status, or with the error that ended it.
    this.finished = this.#receive();
    this.finished.catch(() => {}); // whoever writes or finishes is told
  }

  // Send bytes; waits only while the window is used up.
  async write(bytes) {
    const actual = this.#sender.offset + bytes.length;
    const maximum = this.#limits.max_resource_size;
    if (actual > maximum) {
      const details = { limit: 'max_resource_size', maximum, actual };
      const error = new TailraceError('quota_exceeded', `${actual} bytes; the server takes ${maximum}`, details);
      await this.abort(error.message);
      throw error;
    }
    while (bytes.length > 0) {
      if (this.#failure) throw this.#failure;
      const chunk = this.#sender.next(bytes);
      if (chunk) {
        this.#conversation.send('chunk', chunk);
        bytes = bytes.subarray(chunk.data.length);
      } else {
        await new Promise((resolve) => (this.#wake = resolve));
      }
    }
  }

  // End the input. Returns the final status: both sides agree on size and head, and everything is on disk.
  async finish() {
    this.#conversation.send('finish', this.#sender.finish());
    const status = await this.finished;
    if (status.state !== 'COMPLETED') throw new TailraceError('protocol', `finished as ${status.state}`);
    return status;
  }

  // Give up. The resource is FAILED with this reason; what was stored stays readable.
  async abort(reason) {
    this.#conversation.send('abort', { reason });
    return this.finished;
  }

  async #receive() {
    try {
      for (;;) {
        const message = await this.#conversation.receive();
        if (message.type === 'window') this.#sender.window(message);
        else if (message.type === 'checkpoint') this.#sender.checkpoint(message);
        else if (message.type === 'finished') return message.status;
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
