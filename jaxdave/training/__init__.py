"""Training of masked-diffusion language models: the demo models are made by it.

The published objectives, for texts of any kind: `objectives` has their settings and
names, `objective_loss` their loss; `token_batch` is what they are trained on, `masking`
and `editing` are how it is corrupted, `attention_masks` is who sees whom,
`sequence_model` the network over it. `samples` reads texts from files (`line_index`),
and `data_stream` makes batches of them (`batch_config`), which go on where a checkpoint
was written.
`answer_views` has the log-probabilities that reinforcement needs.

The demo's own recipes: `recipes` has the settings, `loop` the training loop;
`block_batches` and `block_loss` are for block-causal attention, `canvas` is both for
full attention. `draft_loss` is for draft models.

`reinforce` has estimators for reinforcement learning, `constrained` optimisers for
training under linear constraints.
"""
