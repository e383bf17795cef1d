import { createReadStream } from 'node:fs';
import { basename } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { parseArgs } from 'node:util';
import { Client } from './client.js';
import { parseReference } from './reference.js';

const USAGE = `usage: upload [--name NAME] [--lines] [--context ID] FILE|-     the first line of output is the reference
       follow REF
       lines REF FIRST:END                       END is excluded; both may be missing

--server URL, or TAILRACE_SERVER, is where to upload, or to read whatever the reference says.
TAILRACE_TOKEN is the bearer token to show, where the server wants one.`;

class UsageError extends Error {}

async function upload(client, source, metadata, signal) {
  const upload = await client.upload(metadata);
  console.log(upload.reference);
  signal.addEventListener('abort', () => source.destroy(signal.reason));
  upload.finished.catch((error) => source.destroy(error)); // do not wait for input that nobody takes
  try {
    for await (const bytes of source) await upload.write(bytes);
  } catch (error) {
    await upload.abort(error.message); // rejects with what ended the upload, if that came first
    throw error;
  }
  const { state, size, head } = await upload.finish();
  console.log(`${state} ${size} ${head}`);
}

function parseLines(range) {
  const [, first, end] = /^(\d*):(\d*)$/.exec(range) ?? [];
  if (first === undefined) throw new UsageError(`'${range}' is not FIRST:END`);
  return { first: Number(first), count: end ? Math.max(0, Number(end) - Number(first)) : undefined };
}

async function run(connect, argv, signal) {
  const options = {
    server: { type: 'string' },
    name: { type: 'string' },
    lines: { type: 'boolean', default: false },
    context: { type: 'string' },
  };
  let args;
  try {
    args = parseArgs({ args: argv, options, allowPositionals: true });
  } catch (error) {
    throw new UsageError(error.message);
  }
  const { values, positionals: [command, target, range] } = args;
  if (!target || !['upload', 'follow', 'lines'].includes(command) || (command === 'lines') !== (range !== undefined)) {
    throw new UsageError('wrong arguments');
  }
  const server = values.server ?? process.env.TAILRACE_SERVER;
  const place = command === 'upload' ? { base: server } : parseReference(target);
  if (!place.base) throw new UsageError('--server is missing');

  const client = new Client(await connect(server ?? place.base, { token: process.env.TAILRACE_TOKEN }));
  try {
    if (command === 'upload') {
      const source = target === '-' ? process.stdin : createReadStream(target, { highWaterMark: 1 << 20 });
      const name = values.name ?? (target === '-' ? 'stdin' : basename(target));
      await upload(client, source, { name, lines: values.lines, context: values.context }, signal);
    } else {
      const download =
        command === 'follow'
          ? await client.follow(place.id, { signal })
          : await client.readLines(place.id, { ...parseLines(range), signal });
      await pipeline(download, process.stdout, { end: false });
    }
  } finally {
    client.close();
  }
}

// Run the command line over a transport; `connect` takes the base of a server and a token, and returns a connection.
export async function main(connect, argv = process.argv.slice(2)) {
  const interruption = new AbortController();
  process.once('SIGINT', () => interruption.abort(new Error('interrupted')));
  try {
    await run(connect, argv, interruption.signal);
  } catch (error) {
    const wrongUsage = error instanceof UsageError;
    console.error(wrongUsage ? `${error.message}\n\n${USAGE}` : `${error.code ?? 'error'}: ${error.message}`);
    process.exitCode = interruption.signal.aborted ? 130 : wrongUsage ? 2 : 1;
  }
}
