"""Rules that say what one decoding step commits.

A policy sees the first unfinished block only, so that what it decides depends on
nothing to the right of that block. Each is a pair of pure functions (`types.Policy`).
"""

from jaxdave.policies.common import rank as rank
from jaxdave.policies.plain import left_to_right as left_to_right
from jaxdave.policies.plain import static as static
from jaxdave.policies.threshold import threshold as threshold
from jaxdave.policies.wrappers import first_alone as first_alone
