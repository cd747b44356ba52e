"""`python -m tumorlens` is the command `tumorlens`."""

import sys

from tumorlens.cli import main

sys.exit(main())
