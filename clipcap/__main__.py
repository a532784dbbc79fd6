"""`python -m clipcap`: the same as the `clipcap` command."""

import sys

from clipcap.cli import main

if __name__ == "__main__":
    sys.exit(main())
