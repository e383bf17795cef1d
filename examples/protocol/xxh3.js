import { createXXHash128, createXXHash3 } from 'hash-wasm';

// Once the WebAssembly is there, hashing is synchronous.
const [xxh3_64, xxh3_128] = await Promise.all([createXXHash3(), createXXHash128()]);

// The hash of a chunk, as 16 hexadecimal digits.
export function chunkHash(data) {
  return xxh3_64.init().update(data).digest('hex');
}

// The 16 bytes of a digest over some pieces of bytes.
export function digest(...pieces) {
  xxh3_128.init();
  for (const piece of pieces) xxh3_128.update(piece);
  return xxh3_128.digest('binary');
}
