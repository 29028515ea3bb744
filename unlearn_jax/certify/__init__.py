"""Guarantees: the (epsilon, delta) certificate (bounds, noise, record), and exact/, by replay.

Nothing is imported here, nor is JAX.
"""
