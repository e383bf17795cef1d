"""The protocol of Tailrace without I/O: messages, state machines, hashing, flow control, and the in-process transport."""
