"""Runs of `docs/certificate.md`."""
