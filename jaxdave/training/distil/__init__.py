"""Distillation for fewer calls of the network: a model learns to be sure earlier.

`aligned_batch` lays texts out for it, `states` draws states of the decoding trajectory,
and `state_logits` is the network over them. Two losses use these: `certainty` is
dParallel's certainty forcing, `consistency` CD4LM's consistency distillation; `order`
may be added to the former, so that scores fall in the order of the commits.
`own_answers` are the texts, decoded by the model that is its own teacher.

What is learnt shows in the calls of a decode; its text stays that of the policy under
the new parameters, with drafts or without.
"""
