import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { Client, Head, RecordDigest, chunkHash } from 'tailrace-protocol';
import { WebSocket, WebSocketServer } from 'ws';
import { connect } from '../connection.js';
import { decodeChunk, encodeChunk } from '../frame.js';
import { RECORDS, decodeRecords, encodeRecords } from '../record-frame.js';

const limits = { chunk_size: 4, upload_window: 6, max_download_window: 8, max_resource_size: 20 };
const empty = { state: 'INITIATED', size: 0, head: new Head().value, reference: 'ws://h/r/id' };

// A server that does what `script` says, and a client of it. `script` sends messages, and receives those of the client.
async function play(script, use, options = {}) {
  const server = new WebSocketServer({ port: 0, host: '127.0.0.1', ...options.server });
  const served = once(server, 'connection').then(async ([socket]) => {
    const inbox = [];
    let wake = () => {};
    socket.on('message', (data, binary) => {
      const decode = data[0] === RECORDS ? decodeRecords : decodeChunk;
      inbox.push(binary ? decode(data) : JSON.parse(data));
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

// Records

const recordLimits = { record_bytes: 30, bulk_records: 100, bulk_bytes: 1000, bulk_idle: 60, window: 60 };
const opened = { type: 'bulk_opened', id: 'b', content_type: 'application/json', limits: recordLimits, until: 60 };

const texts = ({ records }) => records.map(({ data, key }) => [String(Buffer.from(data)), String(Buffer.from(key))]);
const record = (data, key = '') => ({ data: Buffer.from(data), key: Buffer.from(key) });

async function digestOf(...records) {
  const digest = await RecordDigest.begin();
  digest.update(records);
  return digest.end();
}

test('a bulk is packed, waits for the window, and ends with its result', async () => {
  const records = [record('{"n":1}'), record('{"n":2}', 'ü'), record('text'), record(Buffer.alloc(30))];
  const digest = await digestOf(...records);
  const result = { id: 'b', collection: 'contacts', records: 4, size: 50, digest, committed_at: 1, repeated: false };
  await play(
    async ({ send, receive }) => {
      const { request, type, collection, reporting } = await receive();
      assert.deepEqual([type, collection, reporting], ['open_bulk', 'contacts', 'all']);
      send({ ...opened, request });
      assert.deepEqual(texts(await receive()), [['{"n":1}', ''], ['{"n":2}', 'ü'], ['text', '']]);
      send({ type: 'window', request, until: 120 });
      assert.equal((await receive()).records[0].data.length, 30);
      assert.deepEqual(await receive(), { type: 'commit_bulk', request, records: 4, digest });
      send({ type: 'bulk_committed', request, result });
    },
    async (client) => {
      const bulk = await client.bulk('contacts', { reporting: 'all' });
      await bulk.send({ n: 1 });
      await bulk.send({ n: 2 }, { key: 'ü' });
      await bulk.send('text');
      await bulk.send(new Uint8Array(30));
      assert.deepEqual(await bulk.commit(), result);
      assert.deepEqual(bulk.result, result);
    },
  );
});

test('a bulk that committed before sends nothing, and compares', async () => {
  const digest = await digestOf(record('{}'));
  const result = { id: 'a', collection: 'c', records: 1, size: 2, digest, committed_at: 1, repeated: true };
  await play(
    async ({ send, receive }) => {
      for (let repeats = 0; repeats < 2; repeats++) {
        const { request, idempotency_key } = await receive();
        assert.equal(idempotency_key, 'key');
        send({ ...opened, request, until: 0, result });
        assert.equal((await receive()).type, 'cancel');
      }
    },
    async (client) => {
      const same = await client.bulk('c', { idempotency_key: 'key' });
      await same.send({});
      assert.deepEqual(await same.commit(), result);
      const other = await client.bulk('c', { idempotency_key: 'key' });
      await other.send({ n: 1 });
      await assert.rejects(other.commit(), { code: 'bulk_conflict', details: { id: 'a' } });
    },
  );
});

test('a bulk that is refused or given up has no result', () =>
  play(
    async ({ send, receive }) => {
      const { request } = await receive();
      send({ ...opened, request });
      assert.equal((await receive()).type, 'records');
      assert.equal((await receive()).type, 'commit_bulk');
      const details = { problems: '[[0,"invalid","name","missing"]]', total: 1 };
      send({ type: 'error', request, code: 'bulk_refused', message: 'record 0', details });
      const second = await receive();
      send({ ...opened, request: second.request });
      assert.deepEqual(await receive(), { type: 'cancel', request: second.request });
    },
    async (client) => {
      const bulk = await client.bulk('contacts');
      await bulk.send({});
      await assert.rejects(bulk.commit(), { code: 'bulk_refused' });
      await assert.rejects(bulk.send({}), { code: 'bulk_refused' });
      (await client.bulk('contacts')).cancel();
    },
  ));

test('what can be no record is refused before it is sent', () =>
  play(
    async ({ send, receive }) => {
      const { request } = await receive();
      send({ ...opened, request });
      await receive();
    },
    async (client) => {
      const bulk = await client.bulk('contacts');
      await assert.rejects(bulk.send('x'.repeat(31)), { code: 'invalid_argument' });
      await assert.rejects(bulk.send('', { key: 'ü'.repeat(128) }), { code: 'invalid_argument' });
      bulk.cancel();
    },
  ));

test('results are granted as they are consumed, and compared at their end', async () => {
  const records = [record('one', 'k'), record('two')];
  await play(
    async ({ send, receive }) => {
      const { request, source, arguments: args, window } = await receive();
      assert.deepEqual([source, args, window], ['numbers', { count: 2 }, 8]);
      send({ type: 'query_started', request, content_type: 'application/json' });
      send(encodeRecords(request, records));
      assert.deepEqual(await receive(), { type: 'window', request, until: 31 });
      send({ type: 'query_end', request, records: 2, digest: await digestOf(...records) });
    },
    async (client) => {
      const results = await client.query('numbers', { count: 2 });
      assert.equal(results.contentType, 'application/json');
      const found = [];
      for await (const each of results) found.push(each);
      assert.deepEqual(texts({ records: found }), [['one', 'k'], ['two', '']]);
    },
  );
});

test('results that are not those that were sent are an error', () =>
  play(
    async ({ send, receive }) => {
      const { request } = await receive();
      send({ type: 'query_started', request, content_type: 'application/json' });
      send(encodeRecords(request, [record('one')]));
      await receive();
      send({ type: 'query_end', request, records: 1, digest: '0'.repeat(32) });
    },
    async (client) => {
      const read = async () => {
        for await (const each of await client.query('numbers')) assert.equal(String(Buffer.from(each.data)), 'one');
      };
      await assert.rejects(read(), { code: 'integrity' });
    },
  ));

test('leaving the loop ends the query', () =>
  play(
    async ({ send, receive }) => {
      const { request } = await receive();
      send({ type: 'query_started', request, content_type: 'application/json' });
      send(encodeRecords(request, [record('one')]));
      assert.deepEqual(await receive(), { type: 'cancel', request });
    },
    async (client) => {
      for await (const each of await client.query('numbers')) {
        assert.equal(each.data.length, 3);
        break;
      }
    },
  ));
