"""``python -m client CONFIG``."""

import sys

from client.command import main

sys.exit(main())
