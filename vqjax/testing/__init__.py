"""Is this quantizer one? Every property that vqjax asks of its own, for yours, without pytest.

    from vqjax.testing import check_quantizer

    check_quantizer(MyQuantizer(num_codes=8), dim=8)

Each property is a function of a `Trial`, which compiles the steps they share. Some follow from the
protocol alone; others from what a kind of quantizer claims of its own (`vqjax.testing.claims`): the
kind yours is derived from, or what you register. Nothing is drawn or timed, so a check that fails
fails again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vqjax.quantizers import Quantizer
from vqjax.testing import claimed, properties, tools
from vqjax.testing.trial import Trial

PROPERTIES: tuple[Callable[[Trial], None], ...] = (
    properties.argument_names_are_the_protocol_s,
    properties.plain_data_and_back,
    properties.codes_decode_to_z_q_to_the_bit,
    properties.masked_vectors_count_nowhere,
    properties.a_masked_batch_equals_the_batch_without_those_rows,
    properties.a_batch_without_any_real_vector_changes_no_statistics,
    properties.update_keeps_the_state_s_form_and_three_steps_trace_once,
    properties.gradients_reach_z_and_never_the_state,
    properties.order_of_the_batch_does_not_matter,
    properties.half_precision_inputs,
    properties.non_finite_vectors_do_not_poison_the_state,
    properties.only_a_key_draws,
    properties.the_same_call_gives_the_same_program,
    properties.replicas_agree_with_one_device,
    tools.calls_outside_jit_are_compiled_once,
    tools.programs_take_any_batch_and_come_from_a_file,
    tools.a_start_may_be_donated,
    tools.params_and_state_come_back_without_a_target,
    claimed.codes_are_the_nearest,
    claimed.ties_go_to_the_lowest_index,
    claimed.vectors_are_those_of_the_parts,
    claimed.first_codes_decode_to_partial_sums,
    claimed.decoded_codes_come_back,
    claimed.codes_depend_on_the_key_as_claimed,
    claimed.the_task_s_gradient_is_the_estimator_s,
    claimed.each_loss_trains_what_it_claims,
    claimed.loss_is_the_weighted_sum_of_losses,
    claimed.errors_are_those_of_the_codes,
    claimed.update_counts_the_codes_it_is_given,
    claimed.revival_draws_with_the_key,
)


def failures(
    q: Quantizer, dim: int = 8, compiler_options: Mapping[str, Any] | None = None
) -> dict[str, Exception]:
    """The properties that q does not have, by name, and how each failed: see `check_quantizer`."""
    try:
        trial = Trial(q, dim, compiler_options)
        trial.state  # noqa: B018 - starts it
    except Exception as error:  # whatever it raises, it does not start
        return {'init': error}
    found: dict[str, Exception] = {}
    for check in PROPERTIES:
        try:
            check(trial)
        except Exception as error:  # a wrong quantizer may raise anything
            found[check.__name__] = error
    return found


def check_quantizer(q: Quantizer, dim: int = 8) -> None:
    """Check that q keeps the contract of a quantizer; some seconds, most of them compilation.

    Replicas are compared over two devices by `shard_map` where there are two, else by `vmap`: on a
    CPU set `XLA_FLAGS=--xla_force_host_platform_device_count=2` before JAX starts.

    Args:
      q: the quantizer, small: K of 8 or so, codes revived often.
      dim: D, the features of the vectors that it is tried on.

    Raises:
      AssertionError: naming every property that fails, and how.
    """
    found = failures(q, dim)
    if found:
        lines = [f'{name}: {_first_words(error)}' for name, error in found.items()]
        raise AssertionError(
            f'{q!r} lacks {len(found)} of {len(PROPERTIES)} properties:\n' + '\n'.join(lines)
        ) from next(iter(found.values()))


def _first_words(error):
    words = ' '.join(str(error).split())
    return f'{type(error).__name__}: {words[:300]}'


__all__ = ['PROPERTIES', 'Trial', 'check_quantizer', 'claimed', 'failures', 'properties', 'tools']
