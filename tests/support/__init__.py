"""What several test modules share. A test module imports from here and from no other test module."""
