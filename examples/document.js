import { readFileSync } from 'node:fs';

const text = readFileSync(new URL('../PROTOCOL.md', import.meta.url), 'utf8');

function behind(introduction) {
  const start = text.indexOf(introduction);
  if (start < 0) throw new Error(`PROTOCOL.md does not say '${introduction}'`);
  return text.slice(start + introduction.length);
}

// The rows of the first table of PROTOCOL.md that has this header, as lists of cells without back quotes.
export function table(header) {
  const [, ...lines] = behind(`\n${header}\n`).split('\n');
  const rows = lines.slice(0, lines.findIndex((line) => !line.startsWith('|')));
  return rows.map((row) => row.slice(2, -2).split(' | ').map((cell) => cell.replace(/^`(.*)`$/, '$1')));
}

// The bytes of the first block of hexadecimal digits behind a text of PROTOCOL.md, without the comments in it.
export function bytesBehind(introduction) {
  const [, block] = behind(introduction).split(/```(?:hex\n)?/, 2);
  const digits = block.trim().split('\n').map((line) => line.trim().split(/ {2,}/)[0]);
  return Buffer.from(digits.join('').replaceAll(' ', ''), 'hex');
}
