"""Training of masked-diffusion language models: `jaxdave train`, and its parts.

A supervised run: `train_config` has its settings (read by `config_file`),
`starting_point` what it begins with, `supervised_run` puts it together. Samples come
from `data`, the loss from `objective`; `supervised` takes steps of them, each an
`update` by one of the `optimisers`, over devices (`training_mesh`), of all parameters
or of adapters (`lora`). `trainer` is the loop of every method, and `run_files` what it
keeps on disk.

`distil` makes a model that needs fewer calls, `reinforce` learns from rewards,
`constrained` has optimisers for training under constraints, `draft_loss` is for draft
models, and `demo` makes the packaged models.
"""
