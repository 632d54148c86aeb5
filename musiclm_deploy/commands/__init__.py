"""The commands of `musiclm`, a file each: `add_options` says what it takes, `run` does it and returns the exit status."""
