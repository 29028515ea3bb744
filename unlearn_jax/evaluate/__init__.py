"""Evaluation of the original, the unlearned and the retrained model on forget, retain, holdout."""
