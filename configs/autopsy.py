"""Why the codebooks collapsed: 13 faults, each beside its cure.

    python train.py --config configs/autopsy.py

Expected on two CPU cores: 2 minutes; a table, report.md and a plot a case. Every faulty run
is given its own finding by `vqjax.health.diagnose`, no cured run any.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.dataset = 'digits'  # what the cases with an encoder are trained on
    config.data_dir = ''  # folder of prepared TFDS sets; '' = TFDS's own default
    config.cases = 'all'  # or some of vqjax.studies.cases.CASES: 'missing_total,unscaled_fsq'
    config.seed = 0
    return config
