#!/usr/bin/env python3
"""The one command after training: trained checkpoints to a bundle. `python export_all.py --help` lists the options."""

import sys

from musiclm_deploy.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
