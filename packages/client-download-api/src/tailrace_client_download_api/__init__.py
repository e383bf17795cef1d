"""Interfaces of a Tailrace download client, with their contract tests and a blocking façade."""
