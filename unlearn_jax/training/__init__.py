"""What the loop is made of: the step, its phases and optimizer, the probe, the log."""
