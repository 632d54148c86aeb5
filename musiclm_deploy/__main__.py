"""`python -m musiclm_deploy` is the command `musiclm`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
