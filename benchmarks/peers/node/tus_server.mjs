// @tus/server with its file store; the argument is the folder.
import { Server } from '@tus/server';
import { FileStore } from '@tus/file-store';

// What the library prints goes to the log; nobody reads the pipe after the port.
console.log = console.info = console.error;

const server = new Server({ path: '/files', datastore: new FileStore({ directory: process.argv[1] }) });
const listening = server.listen({ host: '127.0.0.1', port: 0 });
listening.on('listening', () => process.stdout.write(JSON.stringify({ port: listening.address().port }) + '\n'));
process.on('SIGTERM', () => process.exit(0));
