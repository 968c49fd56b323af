"""What each kind of quantizer claims of its own, in float64 and by its formula.

One `functools.singledispatch` function a claim: a quantizer of your own makes the claims of the
kind it is derived from, and others by `claim.register(MyQuantizer)`. One that returns None is none.
"""

from vqjax.testing.choices import comes_back, places, regret, samples
from vqjax.testing.jacobians import jacobian
from vqjax.testing.losses import own_terms, squared_errors, trains, weights

__all__ = [
    'comes_back',
    'jacobian',
    'own_terms',
    'places',
    'regret',
    'samples',
    'squared_errors',
    'trains',
    'weights',
]
