// The Tailrace protocol without I/O: the same for every transport, and for Node.js and browsers.
export { Bulk } from './bulk.js';
export { Client } from './client.js';
export { TailraceError } from './errors.js';
export { Head } from './head.js';
export { fromHex, toHex } from './hex.js';
export { RecordDigest } from './record-digest.js';
export { Receiver } from './receiver.js';
export { parseReference } from './reference.js';
export { Results } from './results.js';
export { Sender } from './sender.js';
export { BLOCK_SIZE, chunkHash } from './xxh3.js';
