"""From a config to machines: what it will need there, and how it gets there."""
