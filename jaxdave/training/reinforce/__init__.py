"""Reinforcement learning of diffusion language models: estimators as pure functions.

`rewards` reads rewards off answers, `advantages` compares the answers of a group,
`step_maps` reads recorded trajectories, `log_probs` has the log-probabilities that are
exact, `elbo` those that are bounds, `ratio_bounds` BGPO's objective, and `policy_loss`
the clipped loss of whichever was chosen. `curvature` is the theory in miniature: the
log-linear policy on which GRPO's normalisation is a step size; `answer_curvature`
measures the curvature of a prompt's expected reward on any policy.

Log-probabilities are functions of a `LogitsFn`; `network_logits` makes one of a model,
and nothing else here knows a network.
"""
