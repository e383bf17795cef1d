import { createXXHash128, createXXHash3 } from 'hash-wasm';

// Once the WebAssembly is there, hashing is synchronous.
const [xxh3_64, xxh3_128] = await Promise.all([createXXHash3(), createXXHash128()]);

// Bytes of a block, and of a part of a chunk.
export const BLOCK_SIZE = 131_072;

// The hash of a chunk, as 16 hexadecimal digits: a larger one is hashed in parts.
export function chunkHash(data) {
  if (data.length <= BLOCK_SIZE) return xxh3_64.init().update(data).digest('hex');
  const parts = [];
  for (let at = 0; at < data.length; at += BLOCK_SIZE) parts.push(digest(data.subarray(at, at + BLOCK_SIZE)));
  xxh3_64.init();
  for (const part of parts) xxh3_64.update(part);
  return xxh3_64.digest('hex');
}

// The 16 bytes of a digest over some pieces of bytes.
export function digest(...pieces) {
  xxh3_128.init();
  for (const piece of pieces) xxh3_128.update(piece);
  return xxh3_128.digest('binary');
}
