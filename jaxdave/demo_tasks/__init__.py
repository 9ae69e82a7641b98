"""Procedurally generated, scorable text: what the demo model is trained and tested on.

`words` makes multi-step word problems, `lists` tiny Python list functions, `mixture`
the training stream; `problem_sets` holds the test sets, `grade` says what is right.
"""

from jaxdave.demo_tasks.mixture import training_problem
from jaxdave.demo_tasks.problem import Problem, from_line, split_of, to_line

__all__ = ["Problem", "from_line", "split_of", "to_line", "training_problem"]
