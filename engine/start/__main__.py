"""Runs the engine process."""

import sys

from engine.start.process import main

sys.exit(main())
