"""Keeps glibc from giving every large buffer back to the system at once.

By default a buffer of a megabyte (500 vectors of 512-d, a gRPC message) is mapped anew, page by page, and unmapped when it is freed, which was
measured to cost as much CPU as everything else in a read. Freeing one larger buffer raises glibc's threshold for that for good.
"""

import numpy as np

# glibc raises its threshold to the size of a freed mapping, up to 32 MiB less the mapping's own header.
_BUFFER_BYTES = (32 << 20) - 8_192


def keep_large_buffers() -> None:
    """Let this process reuse buffers of up to 32 MiB. Costs some microseconds: the buffer is never touched."""
    np.empty(_BUFFER_BYTES, np.uint8)
