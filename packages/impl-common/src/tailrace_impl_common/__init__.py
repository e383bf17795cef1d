"""The protocol of Tailrace without I/O, and the in-process transport."""
