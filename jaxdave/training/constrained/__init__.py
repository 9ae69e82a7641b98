"""Training under stochastic linear constraints, as optax gradient transformations.

Minimise E[f(x, xi)] over x in X subject to E[A(zeta) x - b] = 0; X is easy to project
on, f smooth but not convex. `lagrangian` is the smoothed and linearised augmented
Lagrangian method with a safeguard on its multipliers, `storm` adds variance reduction,
`penalty` has the methods to compare with. `constraint` is what all of them are told of
a constraint, `projections` and `polyhedron` are the sets X, `slack` turns inequalities
into equalities, `stationarity` measures how far a point is from stationary, and
`consensus` is federated learning with agents that come and go.

Source: R. Huang, J. Zhang, A. Alacaoglu, "Stochastic Smoothed Primal-Dual Algorithms
for Nonconvex Optimization with Linear Inequality Constraints", ICML 2025,
arXiv 2504.07607, and the authors' talk on it (October 2025).
"""
