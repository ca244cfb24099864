"""This process: environment variables of libraries, set by entry points, and its freed memory."""

import ctypes
from collections.abc import MutableMapping

DEFAULTS = {
    # oneDNN compiles a kernel for each shape of each product, and its cache holds 1,024 by default:
    # batches of speech of many lengths need more, and an evicted kernel is compiled again. In bf16
    # that took a quarter of the training time of a tiny model. But a kernel takes half a megabyte,
    # and a worker that trains one trial after the other, each of other sizes, fills the cache: with
    # 16,384 kernels two workers of the demo held 9.7 and 7.3 GB after eight trials. 4,096 are those
    # of one trial, and some of the one before.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "4096",
    # Pydantic looks through all installed packages for plugins, which takes a twentieth of the time
    # of a command that only reads. We use none, and none of another package should run here.
    "PYDANTIC_DISABLE_PLUGINS": "__all__",
}
"""Read by oneDNN when a process computes its first product, by pydantic at its first model."""


def set_defaults(environment: MutableMapping[str, str]) -> None:
    """Set the variables that the user has not set.

    Args:
        environment: of this process, which is changed.
    """
    for name, value in DEFAULTS.items():
        environment.setdefault(name, value)


def return_freed_memory() -> None:
    """Return freed memory to the system, where glibc keeps it.

    Arrays below 32 MB come from glibc's heaps, one a thread, and stay there when they are freed: a
    backward pass of a model of 0.6 billion parameters left 1.8 GB, and each trial of a reused
    worker, which runs in a thread of its own, a gigabyte.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # not everywhere
    if trim is not None:
        trim(0)
