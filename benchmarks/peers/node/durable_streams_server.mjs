// @durable-streams/server with files and LMDB; the argument is the folder.
import { DurableStreamTestServer } from '@durable-streams/server';

// What the library prints goes to the log; nobody reads the pipe after the port.
console.log = console.info = console.error;

const server = new DurableStreamTestServer({
  host: '127.0.0.1',
  port: 0,
  dataDir: process.argv[1],
  // Random bytes do not get smaller; on a local network it costs time alone.
  compression: false,
});
const { port } = new URL(await server.start());
process.stdout.write(JSON.stringify({ port: Number(port) }) + '\n');
process.on('SIGTERM', async () => {
  await Promise.race([server.stop(), new Promise((resolve) => setTimeout(resolve, 5000))]);
  process.exit(0);
});
