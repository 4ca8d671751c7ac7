"""`python -m snella`: the command line."""

import sys

from snella.cli import main

sys.exit(main())
