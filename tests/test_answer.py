"""The verdicts on the sentences of the sources follow the rules of the protocol."""

import copy

import pytest
from support import read_results, summary_of

from vqjax.results.records import pack_correct
from vqjax.studies import answer

VQ = {'name': 'vq_ema', 'num_codes': 256}
FSQ = {'name': 'projected', 'dim': 2, 'inner': {'name': 'fsq', 'levels': [4, 4]}}
RVQ = {'name': 'residual', 'num_stages': 4, 'inner': VQ}
ENDS = ('', '-grid')
SEEDS, EXAMPLES = 5, 2000


def method(accuracy, spec=None, perplexity=100.0, **more):
    """Runs that tell so large a share of the examples rightly, the same ones in every run."""
    right = [i < accuracy * EXAMPLES for i in range(EXAMPLES)]
    seeds = [
        {'seed': s, 'accuracy': accuracy, 'correct': pack_correct(right), 'perplexity': perplexity}
        | more
        for s in range(SEEDS)
    ]
    return {'spec': spec, 'seeds': seeds, 'summary': summary_of(seeds)}


@pytest.fixture
def studies():
    """Digits, CIFAR-10 thrice, recordings, where no quantizer costs anything; another study."""
    digits = {'none': method(0.95), 'vq_ema': method(0.95, VQ), 'fsq': method(0.95, FSQ)}
    cifar10 = {}
    for end in ENDS:
        cifar10[f'none{end}'] = method(0.9)
        for name in ('vq_ema-4', 'vq_ema-8', 'vq_ema-10', 'product-32', 'to_32-10', 'to_64-10'):
            cifar10[f'{name}{end}'] = method(0.9, VQ)
        cifar10[f'rvq-32{end}'] = method(0.9, RVQ, least_usage=0.95)
        cifar10[f'fsq-4{end}'] = method(0.9, FSQ)
    behaviour = {'none': method(0.95), 'vq_ema': method(0.95, VQ), 'fsq': method(0.95, FSQ)}
    finetuned = {name: cifar10[name] for e in ENDS for name in (f'none{e}', f'vq_ema-8{e}')}
    used = {'shape': [4, 20], 'codes': list(range(80)), 'uses': [1] * 80}
    scenes = {'rvq': method(0.9, RVQ, counts=used)}
    other, scratch = {'fsq': method(0.9, FSQ)}, copy.deepcopy(finetuned)
    autopsy = {'unscaled_fsq': method(0.5, FSQ)}
    parts = [digits, cifar10, finetuned, behaviour, other, scenes, scratch, autopsy]
    return [{'methods': methods} for methods in parts]


def verdicts(studies):
    digits, cifar10, finetuned, behaviour, other, scenes, scratch, autopsy = map(
        read_results, studies
    )
    return answer.verdicts(
        digits=digits,
        deals=digits,
        cifar10=cifar10,
        finetuned=finetuned,
        scratch=scratch,
        behaviour=behaviour,
        scenes=scenes,
        autopsy=autopsy,
        others={'other': other},
    )


def said(studies):
    return [v.verdict for v in verdicts(studies)]


SOUND = [
    answer.OVERTURNED,  # compatible everywhere
    answer.UPHELD,  # no FSQ collapsed
    answer.UPHELD,  # 95% in use
    answer.OVERTURNED,  # no gain of small codebooks
    answer.OVERTURNED,  # nor of projections
    answer.UPHELD,  # nothing lost
]


def test_where_no_quantizer_costs_anything(studies):
    assert said(studies) == SOUND


@pytest.mark.parametrize(
    'study, changes, sentence, verdict',
    [
        # One set against is not all sets; all sets are.
        (0, {'vq_ema': method(0.90, VQ)}, 0, answer.UNDECIDED),
        (0, {'vq_ema': method(0.95, VQ, perplexity=2.0)}, 0, answer.UNDECIDED),
        (2, {'vq_ema-8': method(0.85, VQ)}, 0, answer.UNDECIDED),
        (6, {'vq_ema-8-grid': method(0.9, VQ, perplexity=1.0)}, 0, answer.UNDECIDED),
        # 4 bits are too few to be judged by.
        (1, {'vq_ema-4': method(0.1, VQ, perplexity=1.0)}, 0, answer.OVERTURNED),
        # A single collapsed run anywhere; four stages of 3 codes each tell 81 images apart.
        (4, {'fsq': method(0.9, FSQ, perplexity=9.4)}, 1, answer.OVERTURNED),
        (0, {'rvq': method(0.9, RVQ, perplexity=1.0)}, 1, answer.UPHELD),
        (3, {'fsq': method(0.9, FSQ, perplexity=3.9)}, 1, answer.UPHELD),  # of four classes
        (3, {'fsq': method(0.9, FSQ, perplexity=3.7)}, 1, answer.OVERTURNED),
        # A planted fault refutes the design, not the runs.
        (7, {'unscaled_fsq': method(0.1, FSQ, perplexity=1.0)}, 1, answer.PART),
        (1, {'rvq-32': method(0.9, RVQ, least_usage=0.5)}, 2, answer.UNDECIDED),
        # Frozen features below in both, but not those of scenes, which are trained together.
        (1, {f'rvq-32{e}': method(0.9, RVQ, least_usage=0.5) for e in ENDS}, 2, answer.UNDECIDED),
        # A stage that uses half of its codes there, and all elsewhere.
        (5, {'rvq': method(0.9, RVQ, counts={'shape': [4, 20], 'codes': list(range(70)),
                                             'uses': [1] * 70})}, 2, answer.UNDECIDED),
        (1, {'product-32': method(0.95, VQ)}, 3, answer.UNDECIDED),
        (1, {f'product-32{e}': method(0.95, VQ) for e in ENDS}, 3, answer.UPHELD),
        (1, {f'product-32{e}': method(0.85, VQ) for e in ENDS}, 3, answer.OVERTURNED),
        (1, {f'to_64-10{e}': method(0.95, VQ) for e in ENDS}, 4, answer.UPHELD),
        # 32 better for a vector and 64 for a grid: neither for both.
        (1, {'to_32-10': method(0.95, VQ), 'to_64-10-grid': method(0.95, VQ)}, 4,
         answer.UNDECIDED),
        (1, {'vq_ema-8-grid': method(0.85, VQ)}, 5, answer.UNDECIDED),
        (1, {f'vq_ema-{b}{e}': method(0.85, VQ) for b in (8, 10) for e in ENDS}, 5,
         answer.OVERTURNED),
        # Some rate lost too much and some did not.
        (1, {f'vq_ema-8{e}': method(0.85, VQ) for e in ENDS}, 5, answer.UNDECIDED),
    ],
)  # fmt: skip
def test_a_change_of_the_figures_changes_the_verdict(studies, study, changes, sentence, verdict):
    studies[study]['methods'] |= changes
    assert said(studies)[sentence] == verdict


def test_incompatible_needs_a_loss_or_a_collapse_on_every_set(studies):
    changed = copy.deepcopy(studies)
    changed[0]['methods']['vq_ema'] = method(0.90, VQ)
    changed[3]['methods']['vq_ema'] = method(0.95, VQ, perplexity=1.0)
    for end in ENDS:
        for bits in (8, 10):
            changed[1]['methods'][f'vq_ema-{bits}{end}'] = method(0.85, VQ)
        for study in (2, 6):
            changed[study]['methods'][f'vq_ema-8{end}'] = method(0.85, VQ)
    assert said(changed)[0] == answer.UPHELD


def test_every_verdict_gives_the_figures_it_rests_on(studies):
    studies[1]['methods']['vq_ema-8'] = method(0.88, VQ)
    found = verdicts(studies)
    assert 'CIFAR-10, vector: `vq_ema-8` -2.0 (-2.' in ' '.join(found[5].figures)
    assert all(v.figures and v.source in range(5) for v in found)
    assert found[1].figures == (
        '25 runs with FSQ in 7 studies',
        'none collapsed',
        'with a planted fault 0 of 5',
    )
