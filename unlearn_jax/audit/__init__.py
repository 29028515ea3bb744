"""Audits of an unlearned model: membership, out-of-distribution, backdoor, relearning."""
