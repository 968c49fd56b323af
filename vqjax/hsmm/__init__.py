"""Behaviour behind codes: a hidden semi-Markov model with categorical emissions, under jit."""

from vqjax.hsmm.filtering import Window
from vqjax.hsmm.model import HSMM, Fitted, HSMMParams

__all__ = ['HSMM', 'Fitted', 'HSMMParams', 'Window']
