"""Decoding policies: rules that decide which tokens one decoding step commits.

A policy sees only the first unfinished block, so its decisions depend on nothing to the
right of it. Each maker returns a `jaxdave.core.policy_api.Policy`; wrappers change one;
`parse` makes one from text and `listing` names them all.

Example:
    >>> from jaxdave import policies
    >>> policies.parse("threshold:threshold=0.9") == policies.threshold(0.9)
    True
"""

from jaxdave.policies.basic import left_to_right as left_to_right
from jaxdave.policies.basic import static as static
from jaxdave.policies.cad import cad as cad
from jaxdave.policies.candidates import info_gain as info_gain
from jaxdave.policies.candidates import lopa as lopa
from jaxdave.policies.common import rank as rank
from jaxdave.policies.credit import credit as credit
from jaxdave.policies.d3llm import entropy_threshold as entropy_threshold
from jaxdave.policies.d3llm import multi_block as multi_block
from jaxdave.policies.deferred import deferred as deferred
from jaxdave.policies.dilated import dilated as dilated
from jaxdave.policies.dream import entropy as entropy
from jaxdave.policies.dream import maskgit_plus as maskgit_plus
from jaxdave.policies.dream import origin as origin
from jaxdave.policies.dream import topk_margin as topk_margin
from jaxdave.policies.early_exit import prophet as prophet
from jaxdave.policies.early_exit import sched as sched
from jaxdave.policies.entropy_budget import eb_sampler as eb_sampler
from jaxdave.policies.entropy_budget import entropy_bounded as entropy_bounded
from jaxdave.policies.fast_dllm import factor as factor
from jaxdave.policies.fast_dllm import threshold as threshold
from jaxdave.policies.first_hitting import first_hitting as first_hitting
from jaxdave.policies.hierarchical import hierarchical as hierarchical
from jaxdave.policies.joint_threshold import joint_threshold as joint_threshold
from jaxdave.policies.joint_threshold import llada2_q as llada2_q
from jaxdave.policies.joint_threshold import llada2_s as llada2_s
from jaxdave.policies.klass import klass as klass
from jaxdave.policies.leftmost_run import leftmost_run as leftmost_run
from jaxdave.policies.llada import low_confidence as low_confidence
from jaxdave.policies.llada import random as random
from jaxdave.policies.local_leap import local_leap as local_leap
from jaxdave.policies.registry import PolicyInfo as PolicyInfo
from jaxdave.policies.registry import listing as listing
from jaxdave.policies.registry import parse as parse
from jaxdave.policies.saber import saber as saber
from jaxdave.policies.sdar import low_confidence_dynamic as low_confidence_dynamic
from jaxdave.policies.sdar import low_confidence_static as low_confidence_static
from jaxdave.policies.sdar import sequential as sequential
from jaxdave.policies.wino import wino as wino
from jaxdave.policies.wrappers import certain as certain
from jaxdave.policies.wrappers import demote as demote
from jaxdave.policies.wrappers import first_alone as first_alone
from jaxdave.policies.wrappers import small_blocks as small_blocks
