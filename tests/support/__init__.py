"""Code that several test modules share. A test module imports from here and from no other test module."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent  # the checkout
