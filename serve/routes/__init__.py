"""The routes of a server, by interface."""
