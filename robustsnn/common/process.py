"""Settings of the whole process that make the same computation faster.

The command line sets them. A program that uses RobustSNN as a library may call both functions
before it imports torch.
"""

from __future__ import annotations

import ctypes
import os
import sys

#: More threads than any machine has cores; the system may die of as many as are asked for.
MOST_THREADS = 1024
# These numbers are from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_TRIM = 2**31 - 1
_MMAP = 2**30


def keep_freed_memory() -> bool:
    """Let the allocator keep freed memory for later; True where the system allows it.

    By default glibc returns every large activation to the system and takes new zeroed pages for
    the next layer, which costs about as much as writing it three times. With this setting, the
    resident memory stays at its peak.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MMAP)) and bool(mallopt(_M_TRIM_THRESHOLD, _TRIM))


def let_idle_threads_sleep() -> None:
    """Make the idle threads of OpenMP sleep, unless the user has chosen something else.

    They would spin for some milliseconds on a core that another thread needs. This has an effect
    only before torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
