"""The commands of `musiclm`, a file each: `add_options` declares a command's options, `run` runs it and returns the exit status."""
