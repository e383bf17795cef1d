import { Client, parseReference } from 'tailrace-protocol';
import { connect } from 'tailrace-node-websocket';

const element = (id) => document.getElementById(id);
const show = (id, text) => (element(id).textContent = text);

// Run `action` on an event of an element, and show its error.
function on(id, event, output, action) {
  element(id).addEventListener(event, async (happened) => {
    happened.preventDefault();
    try {
      await action();
    } catch (error) {
      show(output, `${error.code ?? 'error'}: ${error.message}`);
    }
  });
}

const reach = async (base) => new Client(await connect(base, { token: element('token').value }));

async function begin(metadata) {
  const client = await reach(element('server').value);
  const upload = await client.upload(metadata);
  upload.finished.finally(() => client.close()).catch(() => {}); // whoever writes or finishes is told
  show('reference', upload.reference);
  show('upload-state', 'IN_PROGRESS');
  return upload;
}

async function finish(upload) {
  const { state, size, head } = await upload.finish();
  show('upload-state', `${state} ${size} ${head}`);
}

on('upload-file', 'submit', 'upload-state', async () => {
  const [file] = element('file').files;
  const upload = await begin({ name: file.name, ...(file.type && { content_type: file.type }) });
  const source = file.stream().getReader();
  for (let part = await source.read(); !part.done; part = await source.read()) await upload.write(part.value);
  await finish(upload);
});

let lines = null; // the upload that lines go to

on('upload-lines', 'submit', 'upload-state', async () => {
  const line = element('line').value;
  element('line').value = '';
  lines ??= begin({ name: 'lines.txt', content_type: 'text/plain', lines: true });
  await (await lines).write(new TextEncoder().encode(`${line}\n`));
});

on('finish', 'click', 'upload-state', async () => {
  const upload = lines;
  lines = null;
  if (upload) await finish(await upload);
});

let following = new AbortController();

on('stop', 'click', 'follow-state', async () => following.abort(new Error('stopped')));

on('follow', 'submit', 'follow-state', async () => {
  const { base, id } = parseReference(element('follow-reference').value);
  following = new AbortController();
  show('content', '');
  show('follow-state', 'IN_PROGRESS');
  const client = await reach(base);
  try {
    const download = await client.follow(id, { signal: following.signal });
    const decoder = new TextDecoder();
    for await (const bytes of download) element('content').append(decoder.decode(bytes, { stream: true }));
    const { state, size, head } = download.status;
    show('follow-state', `${state} ${size} ${head}`);
  } finally {
    client.close();
  }
});

on('bulk', 'submit', 'bulk-state', async () => {
  show('bulk-state', 'sending');
  const client = await reach(element('server').value);
  try {
    const bulk = await client.bulk(element('collection').value);
    for (const line of element('records').value.split('\n')) if (line.trim()) await bulk.send(line);
    const { records, digest } = await bulk.commit();
    show('bulk-state', `COMMITTED ${records} ${digest}`);
  } finally {
    client.close();
  }
});

on('query', 'submit', 'query-state', async () => {
  show('results', '');
  show('query-state', 'asking');
  const client = await reach(element('server').value);
  try {
    const args = Object.fromEntries(new URLSearchParams(element('arguments').value));
    const decoder = new TextDecoder();
    let count = 0;
    for await (const { data } of await client.query(element('source').value, args)) {
      element('results').append(`${decoder.decode(data)}\n`);
      show('query-state', `${++count} so far`);
    }
    show('query-state', `ALL ${count}`);
  } finally {
    client.close();
  }
});
