"""Behaviours found from codes of recordings: which parts of tokenizer and sequence model matter.

A network is trained on windows of labelled recordings. Held-out recordings, one after the other in
random order, are sessions; their codes go to hidden (semi-)Markov models, which see no label.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from sklearn.cluster import KMeans

from vqjax.hsmm import HSMM
from vqjax.results.records import Results
from vqjax.results.summaries import shorten
from vqjax.studies.autopsy import faults
from vqjax.studies.behaviour import peers, report, segmentation
from vqjax.studies.behaviour.outcome import (
    Behaviours,
    CodedRun,
    Figures,
    FoldMethod,
    FoldResult,
    Picture,
    SequenceModels,
)
from vqjax.studies.behaviour.sessions import Sessions, as_steps, axes_of, draw
from vqjax.studies.study import Study
from vqjax.trainer.config import settings
from vqjax.trainer.data import sets
from vqjax.trainer.data.recordings import RecordingSet
from vqjax.trainer.errors import RunError
from vqjax.trainer.files.display import show
from vqjax.trainer.files.workdir import Workdir
from vqjax.trainer.run import finished

_log = logging.getLogger('vqjax')

BASELINE = 'none'
TOLERANCE_S = 0.5  # of a boundary


class Tokens(NamedTuple):
    """Codes int [B, n, C] of sessions, how many each axis has, and the steps of a place."""

    codes: np.ndarray
    sizes: tuple[int, ...]
    stride: int


def prepare(config: dict[str, Any]) -> Study:
    """All folds in turn, then sequence models and peers on what was held out.

    Args:
      config: the fields of every configuration, and those of `SequenceModels`.

    Raises:
      RunError: this cannot be studied.
    """
    names = SequenceModels.names()
    plain = {name: value for name, value in config.items() if name not in names}
    _check(plain)
    try:
        own = SequenceModels(**{name: config[name] for name in names if name in config})
    except ValueError as error:
        raise RunError(str(error)) from None
    return Study(plain, functools.partial(conclude, own), faults.PARTS)


def conclude(own: SequenceModels, results: Results, folder: Workdir) -> Results:
    """Measures every fold, and writes and prints the report."""
    folds, seeds = results.config['folds'], results.config['seeds']
    found = [
        measure(folder.path, results, own=own, seeds=range(f, seeds, folds)) for f in range(folds)
    ]
    added = Behaviours(own, tuple(fold for fold, _ in found)).plain()
    results = dataclasses.replace(shorten(results), added={**results.added, **added})
    report.write(folder.path, results, found[0][1])
    show(report.table(results))
    return results


def _check(plain: Mapping[str, Any]) -> None:
    """Checks that this can be studied.

    Raises:
      RunError: otherwise.
    """
    given = settings.check(dict(plain), faults.PARTS)
    finished.check_kept(plain)
    if not given.folds or given.fold >= 0:
        raise RunError(
            'study behaviour holds recordings out in turn: set folds to 2 or more, fold to -1'
        )
    if given.seeds % given.folds:
        raise RunError(f'seeds is {given.seeds}: give a multiple of folds, {given.folds}')
    for name, method in given.methods.items():
        if method.encoder != 'sensor' or method.bottleneck != 'grid':
            raise RunError(
                f'study behaviour reads codes along time, and {name} has encoder='
                f"{method.encoder!r}, bottleneck={method.bottleneck!r}: set 'sensor' and 'grid'"
            )
    dataset = sets.load_dataset(given.dataset, given.data_dir, settings.cutting(given.config))
    if not isinstance(dataset, RecordingSet) or not dataset.rate:
        raise RunError(
            f'study behaviour needs recordings that tell their rate, and {given.dataset} does '
            'not: choose another dataset'
        )


def measure(
    workdir: pathlib.Path, results: Results, own: SequenceModels, seeds: Sequence[int]
) -> tuple[FoldResult, Picture]:
    """Figures of the seeds that share a fold, and what a picture shows: a session of the first."""
    methods = {}
    peers_found: dict[int, Mapping[str, Figures]] = {}
    shown_first: dict[str, Mapping[str, np.ndarray]] = {}
    for name, method in results.methods.items():
        runs = []
        for seed in seeds:
            figures = method.seeds[seed].figures
            model = finished.read(workdir, name, seed=seed, parts=faults.PARTS)
            train, test = _sessions(model.dataset, own, seed)
            kept = {k: figures[k] for k in ('accuracy', 'ece', 'perplexity') if k in figures}
            by_model, shown = _models(model, train=train, test=test, own=own, seed=seed)
            runs.append(CodedRun(kept, by_model))
            if seed not in peers_found:
                peers_found[seed], others = _peers(
                    model.dataset, train=train, test=test, own=own, seed=seed
                )
                shown |= others
            if seed == seeds[0]:
                session, dataset = test, model.dataset
                shown_first[name] = shown
        methods[name] = FoldMethod(tuple(runs), method.spec, method.bits)
    fold = FoldResult(methods, peers_found, dataset.counts())
    return fold, Picture(session, dataset, shown_first)


def _sessions(dataset: RecordingSet, own: SequenceModels, seed: int) -> tuple[Sessions, Sessions]:
    """Sessions of the recordings that training saw, and of the held-out ones."""
    seen = dataset.recordings['train'] + dataset.recordings['validation']
    labels, length = dataset.labels, own.session
    train = draw(seen, labels, rounds=own.rounds, length=length, seed=seed)
    return train, draw(
        dataset.recordings['test'], labels, rounds=own.rounds, length=length, seed=seed + 1
    )


def models(own: SequenceModels, labels: int, seconds: float) -> dict[str, dict[str, Any]]:
    """What the sequence models are, by name, for places of so many seconds."""
    given = {'num_states': labels, 'gamma': None, 'concentration': float(labels)}
    duration = own.duration_s / seconds
    lasting = {'phases': own.phases, 'duration': max(duration, own.phases + 1.0)}
    return {
        'HMM': given | {'phases': 1, 'duration': None},
        'sticky HMM': given | {'phases': 1, 'duration': max(duration, 2.0)},
        'HSMM': given | lasting,
        'HSMM, states found': lasting | {'num_states': own.states},
    }


def _models(
    model: finished.Finished, train: Sessions, test: Sessions, own: SequenceModels, seed: int
) -> tuple[dict[str, dict[str, float]], dict[str, np.ndarray]]:
    """Figures of every sequence model on the codes of a run, and states of the first session."""
    stride, rate = model.encoder.stride, model.dataset.rate
    labels, steps = len(model.dataset.labels), test.labels.shape[1]
    tolerance = round(TOLERANCE_S * rate)
    found: dict[str, dict[str, float]] = {}
    shown: dict[str, np.ndarray] = {}

    def add(name: str, states: np.ndarray, nats: float | None = None) -> None:
        states = as_steps(states, stride, steps)
        found[name] = segmentation.figures(test.labels, states, tolerance=tolerance, mask=test.mask)
        if nats is not None:
            found[name]['log_likelihood'] = nats
        shown[name] = states[0]

    if model.codec is None:
        add('classifier', _classified(model, test))
    coded, held_out = tokens(model, train=train, test=test, number=own.tokens, seed=seed)
    joint = np.ravel_multi_index(np.moveaxis(np.maximum(held_out.codes, 0), -1, 0), coded.sizes)
    add('codes', np.where(held_out.codes[..., 0] < 0, -1, joint))
    places = int((held_out.codes[..., 0] >= 0).sum())
    for name, fields in models(own, labels, stride / rate).items():
        hsmm = HSMM(num_codes=coded.sizes, **fields)
        # Mergers leave bad optima; a given number of states has no other way out of them.
        restarts = 2 if hsmm.gamma else own.restarts
        fitted = hsmm.fit(jax.random.key(seed), coded.codes, restarts=restarts)
        nats = hsmm.log_likelihood(fitted.params, held_out.codes)
        states = np.asarray(hsmm.viterbi(fitted.params, held_out.codes))
        add(name, states, float(np.sum(nats)) / places)
    lag = round(own.lag_s * rate / stride)
    states = np.asarray(hsmm.filter(fitted.params, held_out.codes, lag=lag))
    add(f'{name}, {own.lag_s:g} s late', states)
    return found, shown


def tokens(
    model: finished.Finished, train: Sessions, test: Sessions, number: int, seed: int
) -> tuple[Tokens, Tokens]:
    """Codes of training and held-out sessions.

    Of a run without a quantizer those of k-means with so many codes, fitted to its vectors.
    """
    stride = model.encoder.stride
    read = model.encoder if model.codec is None else model.codec.encode_recording
    rows = [[read(signals) for signals in part.signals] for part in (train, test)]
    if model.codec is None:
        fitted = np.concatenate(rows[0])
        real = np.isfinite(fitted).all(-1)
        means = KMeans(number, n_init=3, random_state=seed).fit(fitted[real])
        rows = [[_nearest(means, vectors) for vectors in part] for part in rows]
        made: list[tuple[np.ndarray, tuple[int, ...]]]
        made = [(np.stack(part)[..., None], (number,)) for part in rows]
    else:
        made = [axes_of(model.codec.quantizer, np.stack(part)) for part in rows]
    coded, held_out = (Tokens(codes, sizes, stride) for codes, sizes in made)
    return coded, held_out


def _nearest(means: KMeans, vectors: np.ndarray) -> np.ndarray:
    """The nearest centroid of every vector, -1 where it is missing: int [n]."""
    codes, real = np.full(len(vectors), -1), np.isfinite(vectors).all(-1)
    codes[real] = means.predict(vectors[real])
    return codes


def _classified(model: finished.Finished, test: Sessions) -> np.ndarray:
    """For every place the class of the window around it, int [B, n]."""
    stride, window = model.encoder.stride, model.dataset.cutting.window
    found = []
    for signals in test.signals:
        starts, logits = model.logits(signals, hop=stride, pad=True)
        classes = np.where(np.isnan(logits).any(-1), -1, np.argmax(logits, -1))
        places = np.arange(-(-len(signals) // stride)) * stride + stride / 2
        nearest = np.abs(starts + window / 2 - places[:, None]).argmin(-1)
        found.append(classes[nearest])
    return np.stack(found)


def _peers(
    dataset: RecordingSet, train: Sessions, test: Sessions, own: SequenceModels, seed: int
) -> tuple[dict[str, dict[str, float]], dict[str, np.ndarray]]:
    """Figures of what others do with the same sessions; without those that are not installed."""
    tolerance, labels = round(TOLERANCE_S * dataset.rate), len(dataset.labels)
    tried: dict[str, Callable[[], Any]] = {
        'k-means + hmmlearn': lambda: peers.TokensHMM(own.tokens, labels, seed).fit(
            train.signals, train.mask
        ),
        'ruptures + k-means': lambda: peers.ChangePoints(labels, tolerance, seed=seed).fit(
            train.signals, train.labels, train.mask
        ),
    }
    found: dict[str, dict[str, float]] = {}
    shown: dict[str, np.ndarray] = {}
    for name, fit in tried.items():
        try:
            states = fit().predict(test.signals, test.mask)
        except ValueError as error:
            if 'is not installed' not in str(error):
                raise
            _log.warning('without %s: %s', name, error)
            continue
        found[name] = segmentation.figures(test.labels, states, tolerance=tolerance, mask=test.mask)
        shown[name] = states[0]
    return found, shown
