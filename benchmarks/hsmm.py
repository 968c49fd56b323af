"""The sequence model over a long session, beside hmmlearn: python benchmarks/hsmm.py

One session of 100,000 codes of 64, 20 states: the time of an EM step's recursions (expected
counts), of log likelihood, Viterbi and filtering, and the memory that XLA says the compiled
program takes beyond its inputs. hmmlearn's CategoricalHMM has geometric durations, our `phases=1`,
and computes in float64. Then sessions of four behaviours, and how many are found of up to 16. About
two minutes on two cores; --quick takes seconds.
"""

from __future__ import annotations

import logging
import time

import common
import jax
import jax.numpy as jnp
import numpy as np

from vqjax.hsmm import HSMM, HSMMParams, chain
from vqjax.studies.behaviour import segmentation

OURS, PEER = 'vqjax', 'hmmlearn'
LAG = 8


def world(model, sessions, steps, seed=0):
    """(params, states [B, T], codes [B, T]) of behaviours as the model's prior expects them."""
    rng = np.random.default_rng(seed)
    states, codes = model.num_states, model.num_codes
    even = np.full(states, 1 / states)
    move = (1 - np.eye(states)) / (states - 1)
    emit = rng.dirichlet(np.full(codes, 0.3), states)
    stay = np.full(states, 1 - model.phases / model.duration)
    params = HSMMParams(even, stay, move, (emit,), even)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    keys = jax.random.split(jax.random.key(seed), sessions)
    return params, *jax.vmap(lambda key: model.sample(params, key, steps))(keys)


def found(most, steps, worlds):
    """One row for each way to fit: how many of four behaviours it finds, in several worlds."""
    ways = {
        'variational, mergers': ('variational', True),
        'variational, EM alone': ('variational', False),
        'map, mergers': ('map', True),
    }
    truth = HSMM(4, 32, phases=8, duration=40.0)
    sessions = [world(truth, 8, steps, seed)[1:] for seed in range(worlds)]
    rows = {}
    for name, (estimate, merge) in ways.items():
        model = HSMM(most, 32, phases=8, duration=32.0, estimate=estimate)
        rows[name] = {'states': [], 'adjusted_rand_index': []}
        for states, codes in sessions:
            params, _ = model.fit(jax.random.key(0), codes, merge=merge)
            path = model.viterbi(params, codes)
            index = segmentation.adjusted_rand_index(states, path)
            rows[name]['states'].append(int(model.num_states_used(path)))
            rows[name]['adjusted_rand_index'].append(round(index, 3))
        print(name, rows[name])
    return rows


def ours(model, params, codes):
    """(functions that run, by name, MB beyond the inputs of each)."""
    # As many steps on average as with one phase.
    params = params._replace(stay=1 - model.phases * (1 - params.stay))
    weights, (sessions, _) = model._weights(params), model._arranged(codes, None)
    programs = {
        'EM step': lambda w, s: chain.expected(w, s, model.phases),
        'log likelihood': lambda w, s: chain.log_normalizer(w, s, model.phases),
        'Viterbi': lambda w, s: model._viterbi(params, s.codes[:, 0, 0], None, longest=512),
        f'filter, lag {LAG}': lambda w, s: model._filter(params, s.codes[:, 0, 0], None, lag=LAG),
    }
    compiled = {
        name: jax.jit(program).lower(weights, sessions).compile()
        for name, program in programs.items()
    }
    runs = {
        name: lambda program=program: jax.block_until_ready(program(weights, sessions))
        for name, program in compiled.items()
    }
    memory = {
        name: round(program.memory_analysis().temp_size_in_bytes / 1e6, 3)
        for name, program in compiled.items()
    }
    return runs, memory


def peer(params, codes):
    """The same of a CategoricalHMM with these probabilities."""
    from hmmlearn.hmm import CategoricalHMM

    logging.getLogger('hmmlearn').setLevel(logging.ERROR)
    stay = np.asarray(params.stay, np.float64)
    states, symbols = params.emit[0].shape
    # One iteration from given probabilities: what one step of EM takes, its update included.
    model = CategoricalHMM(states, n_features=symbols, n_iter=1, init_params='')
    rows = np.asarray(codes)[:, None]

    def reset():
        model.startprob_ = np.full(states, 1 / states)
        model.transmat_ = np.asarray(params.move) * (1 - stay[:, None]) + np.diag(stay)
        model.transmat_ /= model.transmat_.sum(1, keepdims=True)
        emit = np.asarray(params.emit[0], np.float64)
        model.emissionprob_ = emit / emit.sum(1, keepdims=True)

    def step():
        reset()
        model.fit(rows)

    reset()
    runs = {
        'EM step': step,
        'log likelihood': lambda: model.score(rows),
        'Viterbi': lambda: model.predict(rows),
    }
    return runs, model, reset, rows


def main(argv=None):
    """Measure, write hsmm.json."""
    options = common.arguments(common.parser(__doc__), argv)
    states, symbols, steps, repeats = (4, 8, 2_000, 1) if options.quick else (20, 64, 100_000, 5)
    params, _, codes = world(HSMM(states, symbols, phases=1, duration=50.0), 1, steps)
    codes = codes[0]
    rows, theirs = [], {}
    if common.available(options.quick, PEER):
        theirs, model, reset, features = peer(params, codes)
    for phases in (1, 8):
        hsmm = HSMM(states, symbols, phases=phases, duration=50.0)
        started = time.perf_counter()
        runs, memory = ours(hsmm, params, codes)
        compile_s = round(time.perf_counter() - started, 1)
        row = {'phases': phases, 'compile_s': compile_s, 'memory_mb': memory, 'runs': {}}
        for name, run in runs.items():
            pair = {OURS: run} | ({PEER: theirs[name]} if phases == 1 and name in theirs else {})
            times = common.measure(pair, repeats)
            row['runs'][name] = common.summary(times)
            row['runs'][name]['speedup'] = common.ratio(times, PEER, OURS)
        print(row)
        rows.append(row)
    results = {'T': steps, 'states': states, 'K': symbols, 'rows': rows}
    results['found'] = found(6, 100, 1) if options.quick else found(16, 400, 5)
    if theirs:
        # The same model: their log likelihood of the session, and how far ours is from it.
        reset()
        score = float(model.score(features))
        hsmm = HSMM(states, symbols, phases=1, duration=50.0)
        results['log_likelihood'] = {
            PEER: score,
            OURS: float(hsmm.log_likelihood(params, codes)),
        }
    common.write(options.out, 'hsmm', results)


if __name__ == '__main__':
    main()
