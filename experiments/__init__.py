"""Runs with results: each writes what the docs show."""
