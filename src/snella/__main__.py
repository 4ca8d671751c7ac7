"""`python -m snella`: the command line."""

import sys

from snella.cli.main import main

sys.exit(main())
