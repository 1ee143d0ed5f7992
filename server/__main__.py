"""``python -m server CONFIG``."""

import sys

from server.command import main

sys.exit(main())
