"""What a long job says of itself while it works: one short phrase as each stage begins.

The job calls; who started it decides whether anything is shown (sweep/cli/output/stages.py).
"""

from collections.abc import Callable

Announce = Callable[[str], None]
"""Takes what begins now, such as "writing the graph"."""


def be_silent(stage: str) -> None:
    """Show nothing."""
    del stage
