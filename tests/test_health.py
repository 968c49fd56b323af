"""Diagnosis from plain records: each fault is told from its own trace, a sound run gets nothing."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqjax import (
    FSP,
    FSQ,
    LFQ,
    VQ,
    VQEMA,
    Banked,
    BinaryMapper,
    Guarded,
    GumbelSoftmax,
    Projected,
    RandomProjection,
    Residual,
    SimVQ,
    health,
    to_spec,
)
from vqjax import nn as vq_nn
from vqjax import nnx as vq_nnx
from vqjax.studies.autopsy import faults

K, CLASSES, BATCH = 256, 10, 64


def sound(num_steps=300):
    """Records as a healthy run leaves them: one a step, and an evaluation every 60."""
    rng = np.random.default_rng(0)
    history = []
    for step in range(1, num_steps + 1):
        scale = 2 + 20 * min(step / 60, 1)
        history.append({
            'step': step,
            'loss': 2.3 * 0.98**step + 0.05,
            'gradient_norm': 1.0,
            'quantizer_loss': 1e-4 * scale**2 * rng.uniform(0.9, 1.1),
            'input_norm': scale,
            'code_norm': 0.97 * scale,
            'batch_tokens': BATCH,
            'codebook_norm': 0.9 * scale,
            'max_code_norm': 1.6 * scale,
            'revived': float(step % 10 == 0) * 60 * 0.97**step // 1,
            'reverted': 0.0,
        })  # fmt: skip
        if step % 60 == 0:
            history.append({
                'step': step, 'perplexity': 140.0, 'active_codes': 170.0, 'max_share': 0.02,
                'tokens': 360, 'evaluation_drift': 0.0, 'gradient_at_codes': 1e-3,
                'gradient_at_input': 1e-3, 'quantizer_gradient': 2e-3,
                'quantizer_loss': 1e-4 * scale**2 * rng.uniform(0.9, 1.1), 'input_norm': scale,
                'commitment_weight': 0.25,
            })  # fmt: skip
    return history


def changed(**entries):
    """The sound history with entries replaced: a number, or a function of the record."""
    history = sound()
    for record in history:
        for name, value in entries.items():
            if name in record:
                record[name] = value(record) if callable(value) else value
    return history


def names(history, spec=None):
    return [f.name for f in health.diagnose(history, K, CLASSES, spec)]


def test_a_sound_run_gets_no_finding():
    assert names(sound()) == []


def test_no_records_or_unknown_ones_are_no_evidence():
    assert health.diagnose([]) == []
    assert health.diagnose([{'step': 1, 'mine': 3.0, 'note': 'text'}]) == []


def at(step, name, value):
    return {name: lambda r: value if r['step'] == step else r[name]}


FAULTS = {
    'missing_total': {'max_code_norm': lambda r: 64 * r['input_norm']},
    'zero_counts': at(2, 'codebook_norm', 1.5e5),
    'discarded_init': at(2, 'codebook_norm', 0.03),
    'no_straight_through': {'gradient_at_input': 0.0},
    'detached_commitment': {'quantizer_gradient': 0.0},
    'clamped_loss': {'quantizer_gradient': 0.0, 'quantizer_loss': 100.0},
    'growing_inputs': {'input_norm': lambda r: r['input_norm'] * 1.02 ** r['step']},
    'revival_every_step': {'revived': 64.0},
    'absolute_threshold': {'revived': lambda r: 35.0 * (r['step'] % 10 == 0)},
    'stale_revival': {'reverted': lambda r: 40.0 * (r['step'] % 10 == 1)},
    'eval_updates': {'evaluation_drift': 0.05},
    'collapse': {'perplexity': 1.03},
    'dead_codes': {'active_codes': 8.0},
    'loss_rising': {'quantizer_loss': lambda r: r['quantizer_loss'] * 1.01 ** r['step']},
    'diverged': at(200, 'loss', float('nan')),
    'spikes': {'quantizer_loss': lambda r: r['quantizer_loss'] * (9 if r['step'] % 50 == 2 else 1)},
}


@pytest.mark.parametrize('name', FAULTS)
def test_each_trace_gets_its_finding_with_evidence_and_remedy(name):
    found = health.diagnose(changed(**FAULTS[name]), K, CLASSES)
    assert [f.name for f in found] == [name]
    (finding,) = found
    assert finding.severity in ('error', 'warning', 'note')
    assert finding.evidence and all(np.isfinite(x) for x in finding.evidence.values())
    assert {type(x) for x in finding.evidence.values()} == {float}
    assert finding.remedy
    json.dumps(finding._asdict())


def test_findings_that_need_what_only_some_quantizers_record():
    history = [r | {'position_overlap': 0.02} for r in sound()]
    assert names(history) == ['reshaped_features']
    history = [
        r | {'codebook_weight': 0.25, 'commitment_weight': 1.0} if 'tokens' in r else r
        for r in sound()
    ]
    assert names(history) == ['swapped_coefficients']
    tiny = changed(perplexity=1.0, active_codes=1.0)
    spec = {'name': 'projected', 'dim': 6, 'inner': {'name': 'fsq', 'levels': [8, 8, 8, 5, 5, 5]}}
    assert 'unscaled_fsq' in names(tiny, spec)
    assert 'unscaled_fsq' not in names(tiny)


def test_perplexity_is_judged_against_classes_and_tokens():
    record = {'perplexity': 18.0, 'active_codes': 20.0, 'tokens': 360}
    assert health.diagnose([record], 256, 10) == []
    assert [f.name for f in health.diagnose([record], 256, 100)] == ['collapse']
    # Without classes every token carries detail: 20 codes of the 193 that chance would use.
    assert [f.name for f in health.diagnose([record], 256)] == ['dead_codes']
    few = {'perplexity': 12.0, 'active_codes': 15.0, 'tokens': 360}
    assert {f.name for f in health.diagnose([few], 256)} == {'collapse', 'dead_codes'}
    # Eight tokens cannot show more than eight codes.
    assert health.diagnose([{'perplexity': 7.0, 'active_codes': 7.0, 'tokens': 8}], 256) == []


def test_one_code_a_class_is_enough_and_fewer_are_a_collapse():
    """Classes that are not quite balanced leave one code a class a perplexity just below C."""
    assert names(changed(perplexity=9.98, active_codes=20)) == []
    assert 'collapse' in names(changed(perplexity=9.3, active_codes=20))


def test_replacing_a_dead_start_once_is_no_threshold_gone_wrong():
    """250 dead codes in batches of 64: four full looks. Fifteen of them replaced codes in use."""
    once = changed(revived=lambda r: 62.0 if r['step'] in (100, 110, 120, 130) else 0.0)
    again = changed(revived=lambda r: 62.0 if r['step'] % 20 == 0 else 0.0)
    assert names(once) == [] and names(again) == ['absolute_threshold']


def test_the_monitoring_rules_of_the_tokenizer():
    def tokenizer(perplexity, active):
        return [{'perplexity': perplexity, 'active_codes': active, 'tokens': 65536}]

    assert health.diagnose(tokenizer(800, 950), 1024) == []
    assert [f.name for f in health.diagnose(tokenizer(100, 200), 1024)] == ['dead_codes']
    assert {f.name for f in health.diagnose(tokenizer(30, 90), 1024)} == {'collapse', 'dead_codes'}


def test_skewed_use_of_many_codes_is_a_note():
    """Two of five vectors are background: perplexity 20 of 256, and 230 codes in use."""
    record = {'perplexity': 20.0, 'active_codes': 230.0, 'max_share': 0.4, 'tokens': 50_000}
    (found,) = health.diagnose([record], 256)
    assert (found.name, found.severity) == ('skewed_use', 'note')


def test_few_codes_are_no_collapse_where_a_fitted_codebook_would_do_no_better():
    record = {'perplexity': 5.0, 'active_codes': 6.0, 'tokens': 50_000, 'relative_error': 0.2}
    enough, lost = record | {'reference_error': 0.18}, record | {'reference_error': 0.03}
    assert [f.name for f in health.diagnose([enough], 256)] == ['few_codes_needed']
    assert {f.name for f in health.diagnose([lost], 256)} == {'collapse', 'dead_codes'}


REMEDIED = [
    VQEMA(K), VQEMA(K, init='normal', revival=None, decay=0.999), VQ(K), FSQ((8, 8, 4)), LFQ(8),
    SimVQ(K), GumbelSoftmax(K), Residual(VQEMA(K), 2), Projected(FSQ((8, 8, 4)), 3),
    Guarded(Banked(VQEMA(K))), RandomProjection(K, 4), FSP((8, 8, 4)), BinaryMapper(4),
]  # fmt: skip


@pytest.mark.parametrize('quantizer', REMEDIED, ids=repr)
def test_no_remedy_repeats_the_spec_or_names_what_the_quantizer_lacks(quantizer):
    """Of every trace of a fault at once, given the quantizer or its spec."""
    traces = [changed(**trace) for trace in FAULTS.values()]
    traces.append(changed(perplexity=1.0, active_codes=1.0, max_share=1.0))
    text = repr(to_spec(quantizer))
    for history in traces:
        found = health.diagnose(history, spec=quantizer)
        assert found == health.diagnose(history, spec=to_spec(quantizer))
        for finding in found:
            if finding.name in ('no_straight_through', 'clamped_loss'):
                continue  # the loop does not do what the spec says
            for field, value in re.findall(r'(\w+) = ([\w.\']+)', finding.remedy):
                if field in ('learning_rate', 'weight_decay', 'clip_norm'):
                    continue
                assert f"'{field}': " in text, (finding.name, finding.remedy)
                assert f"'{field}': {value}," not in text, (finding.name, finding.remedy)
            for word, field in (('revival', 'revival'), ('kmeans', 'init'), ('decay = ', 'decay')):
                if word in finding.remedy and f"'{field}': " not in text:
                    assert word == 'decay = ' and 'weight_decay' in finding.remedy, finding


@functools.partial(jax.jit, static_argnums=0)
def measured(quantizer, z):
    params, state = quantizer.init(jax.random.key(1), z)
    head = jax.random.normal(jax.random.key(2), (z.shape[-1],))
    return health.gradient_flow(
        lambda x: quantizer.quantize(params, state, x), lambda z_q: jnp.mean((z_q @ head) ** 2), z
    )


@pytest.fixture
def z():
    return jax.random.normal(jax.random.key(0), (96, 8))


@pytest.mark.parametrize('weight', [0.01, 0.25, 2.0])
def test_measured_weights_are_those_of_the_loss(z, weight):
    found = measured(VQEMA(16, init='normal', commitment=weight), z)
    np.testing.assert_allclose(found['commitment_weight'], weight, rtol=1e-4)
    assert 'codebook_weight' not in found
    found = measured(VQ(16, init='normal', commitment=weight, codebook=0.5), z)
    np.testing.assert_allclose(found['commitment_weight'], weight, rtol=1e-4)
    np.testing.assert_allclose(found['codebook_weight'], 0.5, rtol=1e-3)
    found = measured(
        faults.SwappedCoefficients(16, init='normal', commitment=weight, codebook=0.5), z
    )
    np.testing.assert_allclose(found['commitment_weight'], 0.5, rtol=1e-4)


def test_the_task_gradient_passes_straight_through_unchanged(z):
    found = measured(VQEMA(16, init='normal'), z)
    assert float(found['gradient_at_input']) == float(found['gradient_at_codes']) > 0
    assert measured(faults.NoStraightThrough(16, init='normal'), z)['gradient_at_input'] == 0
    assert measured(faults.DetachedCommitment(16, init='normal'), z)['quantizer_gradient'] == 0
    # Combinators have no weights of their own to measure, but the same gradients.
    assert measured(Projected(VQEMA(16, init='normal'), 4), z)['gradient_at_input'] > 0


def test_events_tell_revived_from_reverted_and_from_moved():
    old = jnp.eye(6)
    jump = old.at[0].set(-old[0]).at[1].add(0.05).at[2].set(-old[2])
    counts = jnp.array([0.0, 0, 5, 0, 0, 0])
    found = health.codebook_events(old, old, jump, counts)
    assert found['revived'] == 1 and found['reverted'] == 0  # row 2 was used, row 1 hardly moved
    found = health.codebook_events(old, jump, old, counts)
    assert found['revived'] == 0 and found['reverted'] == 1
    assert found['codebook_norm'] > 0.9 and found['max_code_norm'] >= 1


def task_loss(z_q, head):
    return jnp.mean((z_q @ head) ** 2)


@pytest.fixture
def recorded(z):
    """A quantizer, its params, state and output on z, and a head that follows."""
    quantizer = VQEMA(16, decay=0.9)
    params, state = jax.jit(quantizer.init)(jax.random.key(1), z)
    out = jax.jit(quantizer.quantize)(params, state, z)
    return quantizer, params, state, out, jax.random.normal(jax.random.key(2), (8,))


def test_a_recorder_tells_the_figures_of_a_step(z, recorded):
    quantizer, params, state, out, head = recorded
    recorder = health.Recorder(quantizer, params, state, task_loss=task_loss, every=2)
    after = jax.jit(quantizer.update)(params, state, z, out.codes)
    recorder.step(params, after, z, out, loss=1.5, task=(head,), gradient_norm=jnp.float32(3))
    recorder.step(params, after, z, out, loss=1.5, task=(head,))
    recorder.evaluate(params, after, z[:32], jax.tree.map(lambda x: x, out._replace(
        z_q=out.z_q[:32], codes=out.codes[:32])), task=(head,))  # fmt: skip
    recorder.evaluate(params, after, z[32:], out._replace(
        z_q=out.z_q[32:], codes=out.codes[32:]), task=(head,))  # fmt: skip
    first, second, evaluation = recorder.records()
    z, z_q = np.asarray(z, np.float64), np.asarray(out.z_q, np.float64)
    variance = ((z - z.mean(0)) ** 2).sum(-1).mean()
    error = ((z - z_q) ** 2).sum(-1).mean() / variance
    near = functools.partial(pytest.approx, rel=1e-4)
    assert first['step'] == 1 and first['loss'] == 1.5 and first['gradient_norm'] == 3
    assert first['relative_error'] == near(error)
    assert first['input_spread'] == near(variance**0.5)
    assert first['input_offset'] == near(np.linalg.norm(z.mean(0)))
    counts = np.bincount(out.codes, minlength=16)
    assert first['active_codes'] == (counts > 0).sum() and first['tokens'] == len(z)
    assert first['max_share'] == near(counts.max() / len(z))
    assert first['codebook_change'] > 0 == second['codebook_change']
    assert first['task_loss_looked'] == near(float(task_loss(out.z_q, head)))
    flow = measured_with(quantizer, params, after, jnp.asarray(z, jnp.float32), head)
    assert first['gradient_at_input'] == near(float(flow['gradient_at_input']))
    assert first['quantizer_gradient'] == near(float(flow['quantizer_gradient']))
    assert second['window'] == 1 and second['tokens'] == len(z)
    assert evaluation['tokens'] == len(z) and evaluation['evaluation_error'] == near(error)
    assert evaluation['evaluation_drift'] == 0
    json.dumps([first, second, evaluation])


@functools.partial(jax.jit, static_argnums=0)
def measured_with(quantizer, params, state, z, head):
    return health.gradient_flow(
        lambda x: quantizer.quantize(params, state, x), lambda z_q: task_loss(z_q, head), z
    )


def test_a_recorder_reads_a_step_only_after_later_ones_have_been_started(z, recorded, monkeypatch):
    quantizer, params, state, out, _ = recorded
    read = []
    original = health.Recorder._read
    monkeypatch.setattr(health.Recorder, '_read', lambda self: (read.append(1), original(self)))
    recorder = health.Recorder(quantizer, params, state, lag=3)
    for step in range(1, 6):
        recorder.step(params, state, z, out)
        assert len(read) == max(step - 3, 0)
    assert [r['step'] for r in recorder.records()] == [1, 2, 3, 4, 5]


def test_masked_vectors_reach_no_figure(z, recorded):
    quantizer, params, state, out, head = recorded
    mask = jnp.arange(len(z)) < 64
    hidden = jnp.where(mask[:, None], z, jnp.nan)

    def record(z, mask):
        out = jax.jit(quantizer.quantize)(params, state, z, None, mask)
        recorder = health.Recorder(quantizer, params, state)
        recorder.step(params, state, z, out, mask=mask)
        return recorder.records()[0]

    part, whole = record(hidden, mask), record(z[:64], None)
    names = ('relative_error', 'input_spread', 'batch_perplexity', 'tokens', 'rejected')
    for name in names:
        assert part[name] == pytest.approx(whole[name], rel=1e-5), name


def test_a_recorder_finds_the_quantizer_of_a_linen_model(z):
    model = vq_nn.Quantize(VQEMA(16))
    variables = model.init(jax.random.key(0), z, train=True)
    params, state = health.linen_quantizer(variables)
    assert params == () and state is variables['codebook_stats']['state']
    two = {'codebook_stats': {'a': {'state': 1}, 'b': {'c': {'state': 2}}}, 'params': {}}
    assert health.linen_quantizer(two, 'b/c') == ((), 2)
    assert health.linen_quantizer({'params': {'a': {'kernel': 1}}}) == ((), ())
    with pytest.raises(ValueError, match=r"give one of \['a', 'b/c'\]"):
        health.linen_quantizer(two)
    with pytest.raises(ValueError, match="path='d' holds no quantizer"):
        health.linen_quantizer(two, 'd')


def test_a_recorder_reads_an_nnx_layer(z):
    layer = vq_nnx.Quantize(VQ(16), z, rngs=vq_nnx.nnx.Rngs(0))
    recorder = health.Recorder(layer.quantizer, *layer.read())
    recorder.step(*layer.read(), z, layer(z))
    (record,) = recorder.records()
    assert record['relative_error'] > 0 and record['gradient_passed'] == pytest.approx(1)


def test_what_a_recorder_cannot_use_is_refused_by_name(z, recorded):
    quantizer, params, state, out, _ = recorded
    with pytest.raises(ValueError, match='every must be an integer of at least 1, got 0'):
        health.Recorder(quantizer, params, state, every=0)
    with pytest.raises(ValueError, match='model was given to only one of'):
        health.Recorder(quantizer, params, state).step(params, state, z, out, model={})
