"""Two small texts, and settings of both distillation losses for them."""

import dataclasses

import numpy as np

from jaxdave.training.distil.aligned_batch import align_blocks
from jaxdave.training.distil.certainty import CertaintyForcing
from jaxdave.training.distil.consistency import ConsistencyDistillation
from jaxdave.training.distil.states import RecordedBatch, StateSampling

START, MASK = 4, 16
BATCH = align_blocks(
    [([1, 2, 3], [4, 5, 6, 7]), ([8, 9], [10, 11])],
    prompt_columns=START,
    answer_columns=6,
    block_length=2,
    pad_id=0,
)
RECORDED = RecordedBatch(
    BATCH.tokens_BT,
    BATCH.is_answer_BT,
    BATCH.sample_BT,
    np.random.default_rng(0).integers(0, 4, BATCH.tokens_BT.shape),
)
"""The same texts; some tokens of a block were committed in one step."""
SAMPLING = StateSampling(
    answer_start=START, block_length=2, is_causal=True, copies=4, lookahead=1
)
FORCING = CertaintyForcing(
    sampling=dataclasses.replace(SAMPLING, complementary=True), later_weight=0.5
)
DISTILLATION = ConsistencyDistillation(
    sampling=dataclasses.replace(SAMPLING, low=0.4, high=0.9), later_weight=0.5
)
