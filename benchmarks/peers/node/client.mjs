// Drives the clients that come from npm: one line of JSON in, a list of method and arguments; one line out, result or
// error. The arguments of the process are the name of the client and its settings. Times are taken within the methods.
import http from 'node:http';
import { randomBytes, randomUUID } from 'node:crypto';
import { createInterface } from 'node:readline';
import { Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';

const MEBIBYTE = 1024 * 1024;
const DATA = randomBytes(MEBIBYTE);
const LINE = Buffer.from('x'.repeat(99) + '\n');

const now = () => performance.now() / 1000;

function* pieces(size) {
  for (let sent = 0; sent < size; sent += MEBIBYTE) yield DATA;
}

// Compares what arrives, in pieces of any length, with repetitions of what was sent.
class Content {
  received = 0;

  constructor(unit = DATA) {
    this.unit = unit;
  }

  feed(piece) {
    for (let done = 0; done < piece.length; ) {
      const begin = this.received % this.unit.length;
      const part = Math.min(piece.length - done, this.unit.length - begin);
      if (this.unit.compare(piece, done, done + part, begin, begin + part) !== 0) {
        throw new Error(`other bytes than those sent arrived at ${this.received} to ${this.received + part}`);
      }
      this.received += part;
      done += part;
    }
  }

  count(piece) {
    this.received += piece.length;
  }

  end(size) {
    expect(this.received, size);
  }
}

function expect(received, size) {
  if (received !== size) throw new Error(`${received} bytes of ${size} arrived`);
}

// Uploads by tus-js-client; downloads by a plain GET, which the server has beyond the protocol.
class Tus {
  constructor({ port, chunk }, { Upload }) {
    this.endpoint = `http://127.0.0.1:${port}/files`;
    this.chunk = chunk;
    this.Upload = Upload;
    this.agent = new http.Agent({ keepAlive: true });
  }

  async #send(parts, size, chunkSize) {
    const begin = now();
    const url = await new Promise((resolve, reject) => {
      const upload = new this.Upload(Readable.from(parts, { objectMode: false, highWaterMark: 4 * MEBIBYTE }), {
        endpoint: this.endpoint,
        uploadSize: size,
        chunkSize,
        retryDelays: null,
        onError: reject,
        onSuccess: () => resolve(upload.url),
      });
      upload.start();
    });
    return [now() - begin, url];
  }

  upload(size) {
    return this.#send(pieces(size), size, this.chunk);
  }

  async #receive(url, take) {
    const response = await new Promise((resolve, reject) => {
      http.get(url, { agent: this.agent }, resolve).on('error', reject);
    });
    if (response.statusCode !== 200) throw new Error(`the server answered ${response.statusCode}`);
    await new Promise((resolve, reject) => {
      response.on('data', take).on('end', resolve).on('error', reject);
    });
  }

  async download(url, size, verify) {
    const content = new Content();
    const begin = now();
    await this.#receive(url, verify ? (piece) => content.feed(piece) : (piece) => content.count(piece));
    const seconds = now() - begin;
    content.end(size);
    return seconds;
  }

  async compare(url, size, unit = DATA) {
    const content = new Content(unit);
    await this.#receive(url, (piece) => content.feed(piece));
    content.end(size);
  }

  // A request of its own for each line: a chunk is what the protocol acknowledges.
  async lines(count) {
    function* all() {
      for (let sent = 0; sent < count; sent++) yield LINE;
    }
    const [seconds, url] = await this.#send(all(), count * LINE.length, LINE.length);
    await this.compare(url, count * LINE.length, LINE);
    return seconds;
  }
}

// Writes by the producer that the client's documentation recommends, reads by its streams.
class DurableStreams {
  constructor({ port }, { DurableStream, IdempotentProducer, stream }) {
    this.base = `http://127.0.0.1:${port}/benchmark`;
    this.DurableStream = DurableStream;
    this.IdempotentProducer = IdempotentProducer;
    this.read = stream;
  }

  #create(contentType = 'application/octet-stream') {
    return this.DurableStream.create({ url: `${this.base}/${randomUUID()}`, contentType });
  }

  async #write(handle, parts) {
    let failure;
    const producer = new this.IdempotentProducer(handle, 'benchmark', {
      maxBatchBytes: 16 * MEBIBYTE,
      onError: (error) => {
        failure ??= error;
      },
    });
    for (const part of parts) {
      if (failure) throw failure;
      producer.append(part);
    }
    await producer.close();
    if (failure) throw failure;
  }

  async upload(size) {
    const begin = now();
    const handle = await this.#create();
    await this.#write(handle, pieces(size));
    return [now() - begin, handle.url];
  }

  async #receive(url, live, take) {
    const response = await this.read({ url, offset: '-1', live });
    for await (const piece of response.bodyStream()) take(piece);
  }

  async download(url, size, verify) {
    const content = new Content();
    const begin = now();
    await this.#receive(url, false, verify ? (piece) => content.feed(piece) : (piece) => content.count(piece));
    const seconds = now() - begin;
    content.end(size);
    return seconds;
  }

  async compare(url, size, unit = DATA) {
    const content = new Content(unit);
    await this.#receive(url, false, (piece) => content.feed(piece));
    content.end(size);
  }

  // The end of the stream is the end of the follower.
  async follow(size) {
    const handle = await this.#create();
    let received = 0;
    const begin = now();
    const following = this.#receive(handle.url, true, (piece) => {
      received += piece.length;
    });
    await Promise.all([this.#write(handle, pieces(size)), following]);
    const seconds = now() - begin;
    expect(received, size);
    await this.compare(handle.url, size);
    await handle.delete();
    return seconds;
  }

  async lines(count) {
    const all = Array.from({ length: count }, () => LINE);
    const begin = now();
    const handle = await this.#create('text/plain');
    await this.#write(handle, all);
    const seconds = now() - begin;
    await this.compare(handle.url, count * LINE.length, LINE);
    await handle.delete();
    return seconds;
  }

  async latencies(count, pause) {
    const handle = await this.#create('text/plain');
    const abort = new AbortController();
    const response = await this.read({ url: handle.url, offset: '-1', live: 'sse', signal: abort.signal });
    const content = new Content(LINE);
    let arrived;
    response.subscribeText(({ text }) => {
      content.feed(Buffer.from(text));
      arrived?.();
    });
    const latencies = [];
    for (let sent = 1; sent <= count; sent++) {
      await sleep(pause * 1000);
      const begin = now();
      const arrival = new Promise((resolve) => {
        arrived = () => content.received === sent * LINE.length && resolve(now() - begin);
      });
      const [seconds] = await Promise.all([arrival, handle.append(LINE)]);
      latencies.push(seconds);
    }
    abort.abort();
    await response.closed.catch(() => {});
    await handle.delete();
    return latencies;
  }

  async delete(url) {
    await this.DurableStream.delete({ url });
  }
}

const [name, settings] = process.argv.slice(1);
const client =
  name === 'tus'
    ? new Tus(JSON.parse(settings), await import('tus-js-client'))
    : new DurableStreams(JSON.parse(settings), await import('@durable-streams/client'));

// What a library prints goes to the log; the answers have the pipe for themselves.
const answers = process.stdout;
console.log = console.info = console.warn = console.error;

for await (const line of createInterface({ input: process.stdin })) {
  const [method, ...args] = JSON.parse(line);
  let answer;
  try {
    answer = { result: method === 'ready' ? true : ((await client[method](...args)) ?? null) };
  } catch (error) {
    console.error(error);
    answer = { error: String(error) };
  }
  answers.write(JSON.stringify(answer) + '\n');
}
process.exit(0);
