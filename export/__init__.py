"""Checkpoints to bundle."""
