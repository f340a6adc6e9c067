"""`python -m gateway.cli`: how the gateway launches its engines, and a way to run without the console script."""

from __future__ import annotations

import sys

from gateway.cli import main

sys.exit(main())
