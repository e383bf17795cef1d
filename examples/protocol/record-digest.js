import { createXXHash128 } from 'hash-wasm';
import { toHex } from './hex.js';
import { digest } from './xxh3.js';

// The digest of a stream of records: whether all of them arrived as they were, however they were packed.
export class RecordDigest {
  #data;
  #lengths;
  #keys;

  // WebAssembly is made in the background, and each of the parts needs its own.
  static async begin() {
    const [data, lengths, keys] = await Promise.all([createXXHash128(), createXXHash128(), createXXHash128()]);
    return new RecordDigest(data.init(), lengths.init(), keys.init());
  }

  constructor(data, lengths, keys) {
    this.#data = data;
    this.#lengths = lengths;
    this.#keys = keys;
  }

  // Take records { data, key }, both bytes; a key of no bytes is none.
  update(records) {
    for (const { data, key } of records) {
      this.#data.update(data);
      this.#lengths.update(bigEndian(data.length));
      this.#keys.update(bigEndian(key.length)).update(key);
    }
  }

  // The digest of all of them; to be asked for once, when there are no more.
  end() {
    return toHex(digest(...[this.#data, this.#lengths, this.#keys].map((part) => part.digest('binary'))));
  }
}

function bigEndian(number) {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setUint32(0, number);
  return bytes;
}
