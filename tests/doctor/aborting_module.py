"""Ends its process as Metal does."""

import os
import sys

print("no GPU was found", file=sys.stderr, flush=True)
os.abort()
