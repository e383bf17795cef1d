import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { Client, Head, chunkHash } from 'tailrace-protocol';
import { WebSocket, WebSocketServer } from 'ws';
import { connect } from '../connection.js';
import { decodeChunk, encodeChunk } from '../frame.js';

const limits = { chunk_size: 4, upload_window: 6, max_download_window: 8, max_resource_size: 20 };
const empty = { state: 'INITIATED', size: 0, head: new Head().value, reference: 'ws://h/r/id' };

// A server that does what `script` says, and a client of it. `script` sends messages, and receives those of the client.
async function play(script, use, options = {}) {
  const server = new WebSocketServer({ port: 0, host: '127.0.0.1', ...options.server });
  const served = once(server, 'connection').then(async ([socket]) => {
    const inbox = [];
    let wake = () => {};
    socket.on('message', (data, binary) => {
      inbox.push(binary ? decodeChunk(data) : JSON.parse(data));
      wake();
    });
    const send = (message) => socket.send(message instanceof Uint8Array ? message : JSON.stringify(message));
    const receive = async () => {
      while (inbox.length === 0) await new Promise((resolve) => (wake = resolve));
      return inbox.shift();
    };
    send({ type: 'hello', protocol: 1, limits, keepalive_interval: 20 });
    await script({ send, receive, socket });
  });
  await once(server, 'listening');
  const client = new Client(await connect(`ws://127.0.0.1:${server.address().port}`, { WebSocket, token: options.token }));
  try {
    await Promise.all([use(client), served]);
  } finally {
    client.close();
    server.close();
  }
}

async function collect(download) {
  const pieces = [];
  for await (const bytes of download) pieces.push(Buffer.from(bytes).toString());
  return pieces;
}

test('an upload waits for the window, and finishes with size and head', () =>
  play(
    async ({ send, receive }) => {
      const { request, type, metadata } = await receive();
      assert.deepEqual([type, metadata], ['open_upload', { name: 'x' }]);
      send({ type: 'opened', request, status: empty, token: 't', epoch: 1, offset: 0, until: 6, limits });
      assert.equal(String((await receive()).data), '0123');
      assert.equal(String((await receive()).data), '45');
      send({ type: 'window', request, until: 12 });
      assert.equal(String((await receive()).data), '6789');
      const head = new Head().update(Buffer.from('0123456789')).value;
      assert.deepEqual(await receive(), { type: 'finish', request, size: 10, head });
      send({ type: 'finished', request, status: { ...empty, state: 'COMPLETED' } });
    },
    async (client) => {
      const upload = await client.upload({ name: 'x' });
      await upload.write(Buffer.from('0123456789'));
      assert.equal((await upload.finish()).state, 'COMPLETED');
    },
  ));

test('an upload above the largest resource is aborted', () =>
  play(
    async ({ send, receive }) => {
      const { request } = await receive();
      send({ type: 'opened', request, status: empty, token: 't', epoch: 1, offset: 0, until: 6, limits });
      assert.equal((await receive()).type, 'abort');
      send({ type: 'finished', request, status: { ...empty, state: 'FAILED' } });
    },
    async (client) => {
      const upload = await client.upload({ name: 'x' });
      await assert.rejects(upload.write(Buffer.alloc(21)), { code: 'quota_exceeded' });
    },
  ));

test('a writer that waits for the window is told of the error of the server', () =>
  play(
    async ({ send, receive }) => {
      const { request } = await receive();
      send({ type: 'opened', request, status: empty, token: 't', epoch: 1, offset: 0, until: 4, limits });
      await receive();
      send({ type: 'error', request, code: 'fenced', message: 'a newer session', details: { epoch: 1 } });
    },
    async (client) => {
      const upload = await client.upload({ name: 'x' });
      await assert.rejects(upload.write(Buffer.from('0123456789')), { code: 'fenced', details: { epoch: 1 } });
    },
  ));

test('a reader grants what it consumed', () =>
  play(
    async ({ send, receive }) => {
      const { request, window } = await receive();
      assert.equal(window, 8);
      send({ type: 'started', request, offset: 0, end: 4, status: empty });
      const data = Buffer.from('data');
      send(encodeChunk(request, { offset: 0, hash: chunkHash(data), previous: null, data }));
      assert.deepEqual(await receive(), { type: 'window', request, until: 12 });
      const status = { size: 4, head: new Head().update(data).value };
      send({ type: 'end', request, offset: 4, previous: chunkHash(data), status });
    },
    async (client) => assert.deepEqual(await collect(await client.read('id')), ['data']),
  ));

test('a damaged chunk is not handed out, and the request is cancelled', () =>
  play(
    async ({ send, receive }) => {
      const { request } = await receive();
      send({ type: 'started', request, offset: 0, status: empty });
      const data = Buffer.from('data');
      const frame = encodeChunk(request, { offset: 0, hash: chunkHash(data), previous: null, data });
      frame[frame.length - 1] ^= 1;
      send(frame);
      assert.deepEqual(await receive(), { type: 'cancel', request });
    },
    async (client) => assert.rejects(collect(await client.follow('id')), { code: 'integrity' }),
  ));

test('a follower is cancelled by its signal while it waits', () => {
  const controller = new AbortController();
  return play(
    async ({ send, receive }) => {
      const { request } = await receive();
      send({ type: 'started', request, offset: 0, status: empty });
      assert.deepEqual(await receive(), { type: 'cancel', request });
    },
    async (client) => {
      const reading = collect(await client.follow('id', { signal: controller.signal }));
      controller.abort(new Error('enough'));
      await assert.rejects(reading, { message: 'enough' });
    },
  );
});

test('a follower of a failed resource gets its bytes, and then the failure', () =>
  play(
    async ({ send, receive }) => {
      const { request } = await receive();
      send({ type: 'started', request, offset: 0, status: empty });
      const data = Buffer.from('data');
      send(encodeChunk(request, { offset: 0, hash: chunkHash(data), previous: null, data }));
      const status = { id: 'id', size: 4, head: new Head().update(data).value, state: 'FAILED', reason: 'broken' };
      send({ type: 'end', request, offset: 4, previous: chunkHash(data), status });
    },
    async (client) => {
      const pieces = [];
      const reading = (async () => {
        for await (const bytes of await client.follow('id')) pieces.push(Buffer.from(bytes).toString());
      })();
      await assert.rejects(reading, { code: 'resource_failed', details: { id: 'id', reason: 'broken', size: 4 } });
      assert.deepEqual(pieces, ['data']);
    },
  ));

test('a lost connection ends every conversation', () =>
  play(
    async ({ send, receive, socket }) => {
      const { request } = await receive();
      send({ type: 'started', request, offset: 0, status: empty });
      await receive();
      socket.terminate();
    },
    async (client) => {
      const reading = collect(await client.follow('id'));
      await assert.rejects(client.upload({ name: 'x' }), { code: 'connection_lost' });
      await assert.rejects(reading, { code: 'connection_lost' });
    },
  ));

test('a token travels as a subprotocol', () => {
  const offered = [];
  const handleProtocols = (names) => offered.push(...names) && 'tailrace.v1';
  return play(
    async () => {},
    async () => assert.deepEqual(offered, ['tailrace.v1', 'tailrace.token.fn5-Pz8_YQ']),
    { token: '~~~???a', server: { handleProtocols } },
  );
});
