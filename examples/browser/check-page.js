// Uses the page in headless Chromium as a person would: check-page.js CHROMIUM SERVER FILE.
// Prints the references that it made.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { extname } from 'node:path';
import { chromium } from 'playwright-core';

const ROOT = new URL('..', import.meta.url);
const TYPES = { '.html': 'text/html', '.js': 'text/javascript' };
const FLAGS = [
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
];

const [executablePath, server, file] = process.argv.slice(2);

// Any server of static files will do; the page has no build step.
const files = createServer(async (request, response) => {
  const { pathname } = new URL(request.url, 'http://localhost');
  try {
    const content = await readFile(new URL(`.${pathname}`, ROOT));
    response.writeHead(200, { 'content-type': TYPES[extname(pathname)] ?? 'application/octet-stream' }).end(content);
  } catch {
    response.writeHead(404).end();
  }
});
files.listen(0, '127.0.0.1');
await once(files, 'listening');

const browser = await chromium.launch({ executablePath, headless: true, args: FLAGS });
const problems = [];

async function open() {
  const page = await browser.newPage();
  page.on('pageerror', (error) => problems.push(error.message));
  page.on('console', (message) => message.type() === 'error' && problems.push(message.text()));
  await page.goto(`http://127.0.0.1:${files.address().port}/browser/index.html`, { waitUntil: 'networkidle' });
  await page.fill('#server', server);
  return page;
}

// Wait until an element shows a text that begins so; return all of it.
async function shown(page, id, text) {
  const shows = ([id, text]) => {
    const { textContent } = document.getElementById(id);
    return textContent.startsWith(text) && textContent;
  };
  return (await page.waitForFunction(shows, [id, text])).jsonValue();
}

try {
  const [writer, reader] = [await open(), await open()];

  await writer.setInputFiles('#file', file);
  await writer.click('#upload-file button');
  await shown(writer, 'upload-state', 'COMPLETED ');
  const uploaded = await shown(writer, 'reference', 'ws://');

  await writer.fill('#line', 'compiling');
  await writer.press('#line', 'Enter');
  await shown(writer, 'upload-state', 'IN_PROGRESS');
  const live = await shown(writer, 'reference', 'ws://');
  await reader.fill('#follow-reference', live);
  await reader.click('#follow button:text("Follow")');
  await shown(reader, 'content', 'compiling\n');
  await writer.fill('#line', 'linking');
  await writer.press('#line', 'Enter');
  await shown(reader, 'content', 'compiling\nlinking\n');

  const visitor = await open();
  await visitor.fill('#follow-reference', live);
  await visitor.click('#follow button:text("Follow")');
  await shown(visitor, 'content', 'compiling\nlinking\n');
  await visitor.click('#stop');
  await shown(visitor, 'follow-state', 'error: stopped');

  await writer.click('#finish');
  const state = 'COMPLETED 18 ecbfecba7745438a3e2a8b8a0df89e28';
  await shown(writer, 'upload-state', state);
  await shown(reader, 'follow-state', state);

  await reader.fill('#follow-reference', `${server}/r/${'0'.repeat(32)}`);
  await reader.click('#follow button:text("Follow")');
  await shown(reader, 'follow-state', 'not_found: ');

  const send = async (...contacts) => {
    await writer.fill('#records', contacts.map((contact) => JSON.stringify(contact)).join('\n'));
    await writer.click('#bulk button');
  };
  const ask = async (args, state) => {
    await reader.fill('#arguments', args);
    await reader.click('#query button');
    await shown(reader, 'query-state', state);
    return reader.textContent('#results');
  };
  const contacts = ['Ada', 'Grace', 'Zoë'].map((name) => ({ name, email: `${name}@example.org` }));
  await send(...contacts);
  await shown(writer, 'bulk-state', 'COMMITTED 3 ');
  const everyone = await ask('', 'ALL 3');
  assert.deepEqual(everyone.trim().split('\n').map(JSON.parse), contacts);
  assert.deepEqual(JSON.parse(await ask('max_results=1', 'ALL 1')), contacts[0]);

  // One that is there already refuses all of them.
  await send({ name: 'Alan', email: 'alan@example.org' }, { name: 'Another', email: contacts[0].email });
  await shown(writer, 'bulk-state', 'bulk_refused: record 1');
  assert.equal(await ask('', 'ALL 3'), everyone);

  assert.deepEqual(problems, []);
  console.log(JSON.stringify({ uploaded, live }));
} finally {
  await browser.close();
  files.close();
}
