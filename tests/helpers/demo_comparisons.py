"""What the demo could have measured, made up."""

from typing import Any

from jaxdave.cli.demo_comparison import Comparison, Score, Track

TEXTS = ("1", "+1=", "2", "\n", "####", " 2", "<end>")
STATIC = Track(
    texts=TEXTS,
    calls=(0, 1, 2, 4, 3, 5, 6),
    ends=(0.004, 0.005, 0.006, 0.007, 0.008, 0.009, 0.010),
)
FREEDAVE = Track(texts=TEXTS, calls=(0, 1, 1, 1, 2, 2, 2), ends=(0.004, 0.006, 0.008))


def comparison(**changes: Any) -> Comparison:
    """A comparison of two problems.

    Args:
        **changes: Fields that differ.

    Returns:
        The comparison.
    """
    fields: dict[str, Any] = {
        "model": "tiny",
        "machine": "2 CPU cores",
        "is_cpu": True,
        "num_problems": 2,
        "num_equal": 2,
        "repeats": 5,
        "kind": "word problem",
        "question": "Tom has 1 pen. He buys 1 more. How many are there?",
        "is_right": True,
        "static": STATIC,
        "freedave": FREEDAVE,
        "static_score": Score(states=1, right=2, tokens=12, calls=14, seconds=0.020),
        "freedave_score": Score(states=4, right=1, tokens=12, calls=6, seconds=0.016),
    }
    return Comparison(**{**fields, **changes})
