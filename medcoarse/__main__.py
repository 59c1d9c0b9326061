"""`python -m medcoarse` is the command `medcoarse`."""

import sys

from medcoarse.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
