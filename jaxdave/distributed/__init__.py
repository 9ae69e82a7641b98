"""Many processes and many hosts: who decodes which prompt, and who writes.

`ray_*` run prompts on the workers of a Ray cluster.
"""
