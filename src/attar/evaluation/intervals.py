"""How sure a measured share is."""

from __future__ import annotations

import math

_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of `n` independent trials (Wilson 1927); stays within [0, 1].

    Example:
        >>> low, high = wilson_interval(0.8, 100)
        >>> round(low, 3), round(high, 3)
        (0.711, 0.867)
    """
    z2 = _Z * _Z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
