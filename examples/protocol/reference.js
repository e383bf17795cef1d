import { TailraceError } from './errors.js';

// Split a reference into the base of its server and the id: behind the last '/r/' of its path.
export function parseReference(reference) {
  const parts = /^([a-z]+:\/\/.+)\/r\/([^/?#]+)$/.exec(reference);
  if (!parts) throw new TailraceError('invalid_reference', `'${reference}' is no reference`, { reference });
  return { base: parts[1], id: parts[2] };
}
