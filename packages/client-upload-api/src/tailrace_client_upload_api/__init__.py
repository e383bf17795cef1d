"""Interfaces of a Tailrace upload client, with their contract tests and a blocking façade."""
