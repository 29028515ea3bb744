"""The (epsilon, delta) certificate: bounds, noise, record. Nothing is imported here, nor is JAX."""
