"""How well a transfer set serves those who asked for it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from attar.curation.choose import Choice, Questions


def fill(choice: Choice, questions: Questions) -> dict[str, Any]:
    """How far queries and classes were served; `short` counts those of `sharing` that got less than their share."""
    got = Counter(pick.query for pick in choice.picks)
    by_class: Counter[str] = Counter()
    for pick in choice.picks if len(questions) else ():
        by_class[questions.class_of(pick.query) or "unknown"] += 1
    plan = choice.plan
    served = Counter(questions.classes[pick.query] for pick in choice.picks) if plan.sharing == "classes" else got
    rates = [min(1.0, served[one] / quota) for one, quota in plan.quotas.items() if quota]
    return {
        "mean": float(np.mean(rates)) if rates else None,
        "lowest": min(rates, default=None),
        "sharing": plan.sharing,
        "shares": len(rates),
        "short": sum(rate < 1 for rate in rates),
        "queries_without": sum(got[query] == 0 for query in range(len(questions))),
        "by_class": {name: by_class[name] for name in questions.class_names if name in by_class}
        or dict(sorted(by_class.items())),
    }


def histogram(values: Sequence[float]) -> dict[str, Any]:
    """Similarities in twenty bins; those that nobody knows are left out."""
    known = np.array([value for value in values if not math.isnan(value)])
    if not len(known):
        return {"mean": None, "edges": [], "counts": []}
    counts, edges = np.histogram(known, bins=20, range=(math.floor(known.min() * 20) / 20, max(1.0, known.max())))
    return {
        "mean": round(float(known.mean()), 4),
        "edges": [round(float(edge), 4) for edge in edges],
        "counts": counts.tolist(),
    }


def coverage(choice: Choice, questions: Questions, pool: int) -> dict[str, Any]:
    """What share of the pool entered, and how evenly queries and classes are served: exp of the entropy."""
    found = {"pool": len(choice.picks) / pool}
    if len(questions):
        found["effective_queries"] = _effective(Counter(pick.query for pick in choice.picks))
        found["effective_classes"] = _effective(Counter(questions.classes[pick.query] for pick in choice.picks))
    return {name: round(value, 4) for name, value in found.items()}


def _effective(counts: Counter[int]) -> float:
    """How many equally served ones would have this entropy."""
    shares = np.array(list(counts.values())) / max(1, sum(counts.values()))
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0
