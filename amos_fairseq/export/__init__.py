"""Checkpoints for other tools, and from them."""
