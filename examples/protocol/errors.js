// An error of the protocol. Programs go by `code` and `details`; the message is for people.
export class TailraceError extends Error {
  constructor(code, message, details = {}) {
    super(message);
    this.name = 'TailraceError';
    this.code = code;
    this.details = details;
  }
}

// Bytes are not what was sent. What lies below `offset` is proven.
export function integrityError(offset, problem) {
  return new TailraceError('integrity', `at byte ${offset}: ${problem}`, { offset, problem });
}

export function protocolError(message) {
  return new TailraceError('protocol', message);
}

// A message that is not understood may carry data, so nobody may pass over it.
export function unsupportedError(type) {
  return new TailraceError('unsupported', `message '${type}' is not expected here`);
}
