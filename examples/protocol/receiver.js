import { integrityError, protocolError } from './errors.js';
import { Head } from './head.js';
import { chunkHash } from './xxh3.js';

// The receiving side of a download: checks offsets, hashes and chain, and the head of what was read from byte 0 on.
export class Receiver {
  offset;
  #end;
  #head;
  #proven;
  #previous = null;

  constructor(started) {
    this.offset = this.#proven = started.offset;
    this.#end = started.end ?? Infinity;
    this.#head = started.offset === 0 ? new Head() : null;
  }

  // Check a chunk and return its bytes. A chunk that fails is not to be used.
  chunk({ offset, hash, previous, checkpoint, data }) {
    if (offset !== this.offset) throw integrityError(this.offset, `a chunk begins at ${offset}`);
    if (previous !== this.#previous) throw integrityError(offset, 'the chain of hashes is broken');
    if (chunkHash(data) !== hash) throw integrityError(offset, 'bytes do not have the hash of their chunk');
    const end = offset + data.length;
    if (data.length === 0 || end > this.#end) throw protocolError(`a chunk of bytes [${offset}, ${end})`);
    this.#head?.update(data);
    if (checkpoint) {
      if (checkpoint.size !== end) throw protocolError(`a checkpoint at ${checkpoint.size} in a chunk up to ${end}`);
      this.#prove(checkpoint.head);
    }
    this.offset = end;
    this.#previous = hash;
    return data;
  }

  // Check that the stream is complete.
  end({ offset, previous, status }) {
    if (offset !== this.offset) throw integrityError(this.offset, `the stream ended at ${offset}`);
    if ((previous ?? null) !== this.#previous) throw integrityError(offset, 'the last chunk is another one');
    if (offset < this.#end && Number.isFinite(this.#end)) throw integrityError(offset, `cut off before ${this.#end}`);
    if (status.size === offset) this.#prove(status.head);
  }

  #prove(head) {
    if (!this.#head) return;
    if (this.#head.value !== head) throw integrityError(this.#proven, 'the head is another one');
    this.#proven = this.#head.size;
  }
}
