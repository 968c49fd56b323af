"""How the codes are used, and how well they serve their vectors, whatever the cause."""

from __future__ import annotations

import numpy as np

from vqjax.health.history import Finding, History
from vqjax.health.rules import remedies

# Of the number of classes, below which the perplexity is a collapse: one code a class is enough,
# and on classes that are not quite balanced has barely less than their number.
CLASS_SHARE = 0.95


def _used(run: History) -> dict[str, float]:
    names = ('perplexity', 'active_codes', 'max_share', 'relative_error', 'reference_error')
    found = {name: run.late(name) if 'error' in name else run.last(name) for name in names}
    found['if_uniform'] = run.expected
    return {name: x for name, x in found.items() if np.isfinite(x)}


def _served(run: History) -> bool:
    """Whether it is known that the codes in use serve their vectors as well as others would."""
    error = run.errors[0]
    return run.could_do_better is False or error < 0.1


def _collapse(run: History) -> Finding | None:
    """Codes that cannot carry what is asked of them.

    Where C classes have to be told apart, fewer than about C. Else few codes in use, unless a
    codebook fitted to the same vectors would do no better; or one code for most vectors, which
    are as far from it as from anything.
    """
    perplexity = run.last('perplexity')
    if run.num_classes is not None:
        bound = np.fmin(CLASS_SHARE * run.num_classes, 0.8 * run.expected)
        lost = perplexity < bound
    else:
        error, reference = run.errors
        bound = np.nan
        # A single code tells nothing, however many vectors there are.
        single = perplexity < 1.1 and run.expected >= 2 and run.last('active_codes') <= 2
        unexplained = run.last('max_share') > 0.5 and error > 0.5 and error > 2 * reference
        lost = single or (run.few_active and not _served(run)) or unexplained
    if not lost:
        return None
    evidence = _used(run) | ({'bound': float(bound)} if np.isfinite(bound) else {})
    return Finding('collapse', 'error', evidence, remedies.of_collapse(run))


def _dead_codes(run: History) -> Finding | None:
    """A fifth of the codes at most in use, where more would serve."""
    active = run.last('active_codes')
    bound = (0.2 if run.num_classes is None else 0.05) * run.expected
    inside = run.expected_in_batch
    apart = inside >= 20 and run.late('batch_perplexity') > 0.2 * inside
    if not active < bound or apart or _served(run):
        return None
    evidence = _used(run) | {'bound': bound}
    return Finding('dead_codes', 'warning', evidence, remedies.of_dead_codes(run))


def _dead_stage(run: History) -> Finding | None:
    """A stage or group that uses one code or two while the others use theirs."""
    least, mean = run.last('active_codes_least'), run.last('active_codes')
    # After a residual of almost nothing a stage has nothing left to tell.
    if not (least <= 2 and mean > 2 * least and run.expected >= 8) or run.errors[0] < 0.01:
        return None
    evidence = {'active_codes_least': least, 'active_codes': mean, 'if_uniform': run.expected}
    return Finding('dead_stage', 'warning', evidence, remedies.of_collapse(run))


def _error_near_variance(run: History) -> Finding | None:
    """Codes that serve the vectors little better than their mean alone would."""
    error, reference = run.errors
    if not error > 0.75 or not run.facts.approximates:
        return None
    evidence = {'relative_error': error, 'bound': 0.75}
    if np.isfinite(reference):
        evidence['reference_error'] = reference
    if run.could_do_better or error > 1:
        remedy = remedies.of_collapse(run)
        return Finding('error_near_variance', 'warning', evidence, remedy)
    remedy = 'more codes, or several a vector: Residual, Product, or fewer features by Projected'
    return Finding('error_near_variance', 'note', evidence, remedy)


def _few_codes_needed(run: History) -> Finding | None:
    """Few codes in use, and no others would serve better."""
    if run.num_classes is not None or not run.last('active_codes') < 0.2 * run.expected:
        return None
    if not _served(run) or _collapse(run):
        return None
    remedy = (
        'fewer codes would do as well; whether the task could use more, the same model without a '
        'quantizer tells'
    )
    return Finding('few_codes_needed', 'note', _used(run), remedy)


def _skewed_use(run: History) -> Finding | None:
    """Many codes in use, some of them far more than others."""
    if run.num_classes is not None or not run.last('perplexity') < 0.2 * run.expected:
        return None
    if _collapse(run) or _dead_codes(run) or _few_codes_needed(run):
        return None
    remedy = 'none needed where the data are so (background, silence); hide padding by a mask'
    return Finding('skewed_use', 'note', _used(run), remedy)
