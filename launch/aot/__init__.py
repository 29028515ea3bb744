"""Ahead of time: what a config needs on accelerators that are not here."""
