import { protocolError } from './errors.js';
import { Head } from './head.js';
import { chunkHash } from './xxh3.js';

// The sending side of an upload: cuts chunks that fit into the window, chains their hashes, and keeps the head.
export class Sender {
  #opened;
  #head = new Head();
  #until;
  #announced;
  #previous = null;

  constructor(opened) {
    // A new resource begins at 0. To go on with an older one, the head of what it has would have to be known.
    if (opened.offset !== 0) throw protocolError(`a new upload begins at byte ${opened.offset}`);
    this.#opened = opened;
    this.#until = opened.until;
    this.#announced = opened.offset;
  }

  get offset() {
    return this.#head.size;
  }

  // The next chunk, with as many bytes from the start of `bytes` as may be sent; undefined when the window is used up.
  next(bytes) {
    const data = bytes.subarray(0, Math.min(this.#opened.limits.chunk_size, this.#until - this.offset));
    if (data.length === 0) return undefined;
    const chunk = { offset: this.offset, hash: chunkHash(data), previous: this.#previous, data };
    this.#head.update(data);
    this.#previous = chunk.hash;
    return chunk;
  }

  window({ until }) {
    this.#until = Math.max(this.#until, until);
  }

  checkpoint({ size }) {
    if (size < this.#announced || size > this.offset) throw protocolError(`checkpoint at ${size} of ${this.offset}`);
    this.#announced = size;
  }

  finish() {
    return { size: this.offset, head: this.#head.value };
  }
}
