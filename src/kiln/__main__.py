"""`python -m kiln`: the command without its script. The working folder is not left on the import path."""

import os
import sys

if not sys.flags.safe_path and sys.path and sys.path[0] in ("", os.getcwd()):
    del sys.path[0]  # `-m` put it there: a file of the user's could pass for a module of ours

from kiln.cli import main

if __name__ == "__main__":
    sys.exit(main())
