"""The published evaluation: every image of a list completed, and scored by class."""
