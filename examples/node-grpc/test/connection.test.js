import assert from 'node:assert/strict';
import { promisify } from 'node:util';
import { test } from 'node:test';
import grpc from '@grpc/grpc-js';
import { Client, Head, chunkHash, fromHex } from 'tailrace-protocol';
import { definitions } from '../codec.js';
import { connect } from '../connection.js';

const { Resources } = grpc.loadPackageDefinition(definitions).tailrace.v1;
const data = Buffer.from('data');
const status = { state: 'RESOURCE_STATE_COMPLETED', size: 4, head: fromHex(new Head().update(data).value) };
const started = { started: { offset: 0, status: { state: 'RESOURCE_STATE_IN_PROGRESS' } } };
const chunk = { chunk: { offset: 0, hash: fromHex(chunkHash(data)), data } };
const end = { end: { offset: 4, previous: fromHex(chunkHash(data)), status } };

// Follow on a server whose answer to every Follow is `answer(call)`.
async function follow(answer, signal) {
  const server = new grpc.Server();
  server.addService(Resources.service, { Read: () => {}, Follow: answer, ReadLines: () => {} });
  const bind = promisify(server.bindAsync.bind(server));
  const port = await bind('127.0.0.1:0', grpc.ServerCredentials.createInsecure());
  const client = new Client(connect(`grpc://127.0.0.1:${port}`));
  const pieces = [];
  try {
    for await (const bytes of await client.follow('id', { signal })) pieces.push(String(bytes));
  } finally {
    client.close();
    server.forceShutdown();
  }
  return pieces;
}

// The messages of a server, and the end of the call with status OK.
function say(...messages) {
  return (call) => {
    for (const message of messages) call.write(message);
    call.end();
  };
}

test('a follower gets what was sent', async () => {
  assert.deepEqual(await follow(say(started, chunk, end)), ['data']);
});

test('a server may put messages together', async () => {
  assert.deepEqual(await follow(say({ ...started, ...chunk, ...end })), ['data']);
  assert.deepEqual(await follow(say({ ...started, ...chunk }, end)), ['data']);
});

test('a damaged chunk is not handed out', async () => {
  const damaged = { chunk: { ...chunk.chunk, data: Buffer.from('date') } };
  await assert.rejects(follow(say(started, damaged, end)), { code: 'integrity' });
});

test('a stream without its end is cut off, whatever the status says', async () => {
  await assert.rejects(follow(say(started, chunk)), { code: 'connection_lost' });
});

test('an error is that of the trailing metadata', async () => {
  const error = { code: 'deleted', message: 'gone', details: { id: { string_value: 'x' } } };
  const metadata = new grpc.Metadata();
  metadata.set('tailrace-error-bin', definitions['tailrace.v1.Error'].serialize(error));
  const answer = (call) => call.emit('error', { code: grpc.status.NOT_FOUND, details: 'gone', metadata });
  await assert.rejects(follow(answer), { code: 'deleted', message: 'gone', details: { id: 'x' } });
});

test('a status of a proxy is translated', async () => {
  const answer = (call) => call.emit('error', { code: grpc.status.UNAVAILABLE, details: 'no upstream' });
  await assert.rejects(follow(answer), { code: 'connection_lost', message: 'no upstream' });
});

test('a follower is cancelled by its signal', async () => {
  const controller = new AbortController();
  const answer = (call) => {
    call.write(started);
    controller.abort(new Error('enough'));
  };
  await assert.rejects(follow(answer, controller.signal), { message: 'enough' });
});
