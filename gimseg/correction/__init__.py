"""Correct what came out badly: what was drawn, whether it can be learned from, what it changed."""
