"""Synthetic tasks with checkable answers, for training and testing the demo models.

`words` generates multi-step word problems and `lists` small Python list functions;
`mixture` is the training stream of both, `problem_sets` has the test sets, and `grade`
checks answers.
"""

from jaxdave.demo_tasks.mixture import training_problem
from jaxdave.demo_tasks.problem import Problem, from_line, split_of, to_line

__all__ = ["Problem", "from_line", "split_of", "to_line", "training_problem"]
