"""One method with one seed: trained, checkpointed, measured once on the test split."""

import dataclasses
import signal
import time
from typing import Any

import jax
import numpy as np

from vqjax import data, logs, metrics, quantizers, steps, training
from vqjax.checkpoints import Checkpoints
from vqjax.processes import agree, agree_arrays
from vqjax.settings import RunError, Settings
from vqjax.workdir import Workdir


class Stopped(Exception):
    """The run was asked to end; everything is saved. `signal` is what asked."""

    def __init__(self, number: int | None):
        # None: the signal came to another process.
        self.signal = signal.SIGTERM if number is None else number
        name = signal.Signals(self.signal).name
        super().__init__(f'stopped by {name}: everything is saved, the same command goes on')


class StopRequest:
    """Turns SIGTERM and SIGINT into a request that the loop honours after the step it is in."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __enter__(self) -> 'StopRequest':
        numbers = (signal.SIGTERM, signal.SIGINT)
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        self.number = number

    def __call__(self) -> bool:
        return self.number is not None


@dataclasses.dataclass(frozen=True)
class Context:
    """What all runs of an experiment share. workdir is None on processes that write nothing."""

    settings: Settings
    dataset: Any
    workdir: Workdir | None
    display: logs.Display
    stop: StopRequest

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch."""
        return data.steps_per_epoch(self.dataset, self.settings.batch_size)

    @property
    def num_steps(self) -> int:
        """Optimizer steps a run."""
        return self.settings.epochs * self.steps_per_epoch


class Run:
    """One method with one seed, from its start or its newest checkpoint to its test figures."""

    def __init__(
        self, context: Context, method: str, seed: int, task: Any, train_fn: Any, eval_fn: Any
    ):
        self.context, self.settings = context, context.settings
        self.method, self.seed, self.task = method, seed, task
        self.train_fn, self.eval_fn = train_fn, eval_fn
        self.begun = time.monotonic()
        context.display.start(method, seed)
        # What a checkpoint holds beside the arrays.
        self.history: list[dict[str, float]] = []
        self.tally: dict[str, float] = {}  # sums over the steps since the last evaluation
        self.seconds = 0.0
        self.step = 0
        self.refits = 0  # of a guarded codebook
        self.checkpoints = None
        try:
            self.batches = data.train_batches(
                context.dataset,
                self.settings.batch_size,
                seed,
                jax.process_index(),
                jax.process_count(),
                self.settings.augment,
            )
            self.state = training.replicate(self._restore() or self._init())
        except ValueError as error:  # what data and quantizers say of values that do not fit
            raise RunError(f'{method} seed {seed}: {error}') from error
        self.recorder = logs.NoRecorder()
        if context.workdir is not None:
            self.recorder = logs.Recorder(context.workdir.path, method, seed, self.step)

    def _init(self) -> training.TrainState:
        batch = data.init_batch(self.context.dataset, self.settings.init_batch_size, self.seed)
        return training.init_state(self.task, self.seed, batch['image'])

    def _restore(self) -> training.TrainState | None:
        shape = self.context.dataset.info.image_shape
        like = training.state_shapes(self.task, shape, self.settings.init_batch_size)
        found = None
        if self.context.workdir is not None:
            self.checkpoints = Checkpoints(
                self.context.workdir.checkpoints_of(self.method, self.seed),
                self.settings.config,
                self.settings.keep_checkpoints,
            )
            found = self.checkpoints.restore(like, self.context.display.say)
        extra = agree(None if found is None else found[1])
        if extra is None:
            return None
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
        state = agree_arrays(zeros if found is None else found[0])
        self.step, self.history = int(state.step), extra['history']
        self.refits = int(quantizers.count_refits(state.stats))
        self.tally, self.seconds = extra['tally'], extra['seconds']
        self.batches.set_state(extra['data'])
        self.context.display.skip(self.step)
        return state

    def finish(self) -> None:
        """Trains to the end, measures the test split once and keeps the outcome."""
        try:
            self._train()
            evaluation = self._evaluate('test')
        finally:
            self.recorder.close()
            if self.checkpoints is not None:
                self.checkpoints.close()
        if self.context.workdir is None:
            return
        record = measure(evaluation) | {'validation_accuracy': self.history[-1]['accuracy']}
        record['seconds'] = self._elapsed()
        tokens = 1
        if evaluation.counts is not None:
            record['counts'] = evaluation.counts.astype(int).tolist()
            stages = quantizers.stages(self.task.model.quantizer)
            tokens = round(float(evaluation.counts.sum()) / len(evaluation.labels) / stages)
        self.context.workdir.finish(
            self.method,
            self.seed,
            {
                'result': {'seed': self.seed} | record,
                'history': self.history,
                'bits': self._bits_per_token() * tokens,
                'params': count_params(self.state),
            },
        )
        self.context.display.finished(self.method, self.seed, record, record['seconds'])

    def _train(self) -> None:
        per_epoch, num_steps = self.context.steps_per_epoch, self.context.num_steps
        while self.step < num_steps:
            until = (self.step // per_epoch + 1) * per_epoch
            try:
                self.state = training.fit(
                    self.train_fn,
                    self.state,
                    self.batches,
                    until - self.step,
                    self._on_step,
                    self.context.stop,
                )
            except training.Diverged as error:
                # The batches read ahead come again, so that the same command fails the same way.
                self.state = error.state
                self.batches.set_state({'next_index': self.step})
                self._save(None)
                raise RunError(
                    f'{self.method} seed {self.seed}, {error}; the state after step {self.step} '
                    'is saved: lower learning_rate or clip_norm'
                ) from error
            if self.step < until:
                self._save(None)
                raise Stopped(self.context.stop.number)
            epoch, last = self.step // per_epoch, self.step == num_steps
            if last or epoch % self.settings.eval_every == 0:
                self._validate(epoch)
            if last or epoch % self.settings.checkpoint_every == 0:
                self._save(self.history[-1]['accuracy'] if self.history else None)

    def _on_step(self, measured: dict[str, np.ndarray]) -> None:
        self.step += 1
        self._note_refits(int(measured.pop('refits')))
        scalars = {name: float(x) for name, x in measured.items() if x.ndim == 0}
        for name, value in scalars.items():
            self.tally[name] = self.tally.get(name, 0.0) + value
        self.tally['steps'] = self.tally.get('steps', 0) + 1
        if self.step % self.settings.log_every == 0:
            self.recorder.scalars('train', self.step, scalars)
        self.context.display.step(self.step, self.context.num_steps)

    def _note_refits(self, refits: int) -> None:
        if refits > self.refits:
            self.recorder.line({'event': 'refit', 'step': self.step, 'refits': refits})
            self.context.display.say(
                f'{self.method} seed {self.seed}: codebook collapsed, re-fitted at step {self.step}'
            )
        self.refits = refits

    def _gradient_flow(self) -> dict[str, float]:
        if self.task.model.quantizer is None or self.task.model.quantizer.targets_only:
            return {}
        state = training.read(self.state)
        batch = data.init_batch(self.context.dataset, self.settings.batch_size, self.seed)
        flow = steps.gradient_flow(self.task, state.params, state.stats, batch)
        flow.pop('quantizer_loss')  # evaluation has that of the whole split
        return {name: float(x) for name, x in flow.items()}

    def _evaluate(self, split: str) -> training.Evaluation:
        batches = data.eval_batches(
            self.context.dataset,
            split,
            self.settings.batch_size,
            jax.process_index(),
            jax.process_count(),
        )
        return training.evaluate(self.eval_fn, self.state, batches)

    def _validate(self, epoch: int) -> None:
        evaluation = self._evaluate('validation')
        taken = self.tally.pop('steps')
        means = {name: total / taken for name, total in self.tally.items()}
        means['train_accuracy'] = means.pop('accuracy')
        if 'revived' in means:
            means['revived'] *= taken  # codes since the last evaluation
        corrupt = round(means.pop('corrupt') * taken)
        if corrupt:
            self.context.display.say(
                f'{self.method} seed {self.seed}: {corrupt} training images held NaN or infinities '
                f'since the last evaluation; left out'
            )
        record = {'epoch': epoch, 'step': self.step} | means | self._gradient_flow()
        record |= measure(evaluation)
        record.pop('reliability')
        self.tally = {}
        self.history.append(record)
        self.recorder.scalars('validation', self.step, record)
        if evaluation.counts is not None:
            self.recorder.code_use(self.step, evaluation.counts)
        self.recorder.flush()
        self.context.display.evaluated(record)

    def _save(self, accuracy: float | None) -> None:
        if self.checkpoints is not None:
            extra = {
                'history': self.history,
                'tally': self.tally,
                'seconds': self._elapsed(),
                'data': self.batches.get_state(),
            }
            # After a step that failed, this is the last one that did not.
            state = training.read(self.state)._replace(healthy=np.ones((), bool))
            self.checkpoints.save(self.step, state, extra, accuracy)

    def _elapsed(self) -> float:
        return self.seconds + time.monotonic() - self.begun

    def _bits_per_token(self) -> float:
        quantizer = self.task.model.quantizer
        return 32.0 * self.settings.features if quantizer is None else float(quantizer.bits)


def measure(evaluation: training.Evaluation) -> dict[str, Any]:
    """Every figure of one split, from its predictions and its summed counts.

    accuracy, nll, brier, ece; with a quantizer perplexity, active_codes and usage (means over
    stages), perplexity_per_stage, max_share (of the most used code of any stage), code_norm,
    input_norm, quantizer_loss and tokens (a stage); reliability is a table over 15 confidence bins.
    """
    probs, labels = evaluation.probs, evaluation.labels
    bins = metrics.reliability(probs, labels)
    record: dict[str, Any] = {
        'accuracy': float(metrics.accuracy(probs, labels)),
        'brier': float(metrics.brier_score(probs, labels)),
        'ece': float(metrics.expected_calibration_error(probs, labels)),
        'corrupt': evaluation.corrupt,
        'reliability': {
            name: np.asarray(getattr(bins, name)).tolist()
            for name in ('confidence', 'accuracy', 'count')
        },
    } | evaluation.means
    if evaluation.counts is not None:
        counts = evaluation.counts.reshape(-1, evaluation.counts.shape[-1])
        per_stage = np.asarray(metrics.perplexity(counts))
        record |= {
            'perplexity': float(per_stage.mean()),
            'perplexity_per_stage': per_stage.tolist(),
            'active_codes': float(np.mean(metrics.active_codes(counts))),
            'usage': float(np.mean(metrics.usage(counts))),
            'tokens': float(counts.sum(-1).max()),
            'max_share': float(np.max(counts.max(-1) / np.maximum(counts.sum(-1), 1.0))),
        }
    return record


def count_params(state: training.TrainState) -> int:
    """Numbers a model holds: parameters and, since they are learned too, codebook statistics."""
    learned = (state.params, state.stats.get('codebook_stats', {}))
    return sum(int(np.prod(x.shape[1:], dtype=int)) for x in jax.tree.leaves(learned))
