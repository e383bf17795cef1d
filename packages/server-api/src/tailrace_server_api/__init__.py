"""Interfaces of a Tailrace server and its storage, with their contract tests."""
