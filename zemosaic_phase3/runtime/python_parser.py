"""One thread at a time in Python's own parser.

NumPy lets it read the head of an ``.npy`` file, and the types of a table's columns. Until Python 3.12 all threads
count its depth in one place, and a switch between two of them at the wrong moment ends one with ``SystemError: AST
constructor recursion depth mismatch`` (python/cpython#106905).
"""

from __future__ import annotations

import threading
from typing import Final

PARSER: Final = threading.RLock()  # may be taken again: what is collected as garbage meanwhile may parse, too
