import { toHex } from './hex.js';
import { BLOCK_SIZE, digest } from './xxh3.js';

const NOTHING = new Uint8Array(0);

// The head of a growing prefix of a resource: a chain over full blocks, and the open block behind them.
export class Head {
  size = 0;
  #spine = new Uint8Array(16);
  #block = new Uint8Array(BLOCK_SIZE);

  update(data) {
    for (let taken = 0; taken < data.length; ) {
      const start = this.size % BLOCK_SIZE;
      const piece = data.subarray(taken, taken + BLOCK_SIZE - start);
      this.#block.set(piece, start);
      taken += piece.length;
      this.size += piece.length;
      if (this.size % BLOCK_SIZE === 0) this.#spine = digest(this.#spine, digest(this.#block));
    }
    return this;
  }

  // The head of all bytes up to now, as 32 hexadecimal digits.
  get value() {
    const open = this.#block.subarray(0, this.size % BLOCK_SIZE);
    const size = new DataView(new ArrayBuffer(8));
    size.setBigUint64(0, BigInt(this.size), true);
    return toHex(digest(this.#spine, open.length ? digest(open) : NOTHING, new Uint8Array(size.buffer)));
  }
}
