"""Bounds on the float32 rounding of results whose sums are computed in another order, as it varies by processor.

The bounds follow from the arithmetic, not from observations on one processor. A fault that these tests look for (a
wrong mask, position, weight or neighbour) moves log-probabilities by 0.01 and more, a thousand times as much.
"""

from __future__ import annotations

LOGPROB = 1e-5
"""Largest absolute difference between two computations of the same log-probability by a model of these tests.

A log-probability of an untrained model is about -6, where float32 numbers lie 5e-7 apart. It is the end of a chain of
about 40 sums (norms, projections and attention of three layers, the head, the sum over the vocabulary), each of which
moves it by about one such spacing when it is taken in another order. Independent errors of 40 steps add up to
sqrt(40) = 6 spacings, 3e-6, and the largest of a few hundred tokens is about three times that.
"""

GRADIENT = 1e-4
"""Largest difference between two computations of the same gradient, relative to its norm.

Each element is a sum over the batch's tokens of products that pass the chain above twice, forward and back, and terms
of both signs cancel: of terms with a relative error of 3e-6, a sum that cancels to a thirtieth keeps 1e-4.
"""

KL = 1e-8
"""Largest estimate k3 of the divergence of a model from itself, whose log-probabilities differ by rounding.

With a difference d it is d^2 / 2 to leading order, so 1e-8 allows 1.4e-4, which is `LOGPROB` more than ten times over.
"""

FLOAT32 = 1e-6
"""Difference, absolute or relative, of a result that a few float32 operations on numbers of about 1 give.

An operation rounds by at most half a spacing, 2^-24 = 6e-8 of its result, so sixteen of them stay within this, in
whatever order a processor takes them.
"""

FLOAT64 = 1e-9
"""The same of float64, where an operation rounds by 1.1e-16: ten million of them, however they cancel to a tenth."""
