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
