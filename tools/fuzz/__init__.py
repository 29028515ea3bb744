"""A fuzz campaign over every reader of files that somebody hands over, see `__main__`."""
