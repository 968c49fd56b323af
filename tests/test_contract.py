"""The contract that every quantizer keeps, one table over all of them (ACCEPTANCE, properties).

A new quantizer is judged by adding one line to `support.table`. The properties are those of
`vqjax.testing`, which needs neither pytest nor this file: `check_quantizer(q)` runs them all on a
quantizer of your own. Here each is a test that takes any quantizer, and replicas are two devices.
"""

import jax
import numpy as np
import pytest
from support import SHIPPED, every_entry, first_of_their_kind, on_two_devices, table

import vqjax
from vqjax import ops, testing
from vqjax.testing import claimed, properties, tools

KINDS = first_of_their_kind(table()).values()


@pytest.fixture(scope='module', params=every_entry())
def trial(request):
    """The compiled steps of a quantizer, shared by its tests, which run one after the other.

    Compiling is most of what the table costs. So `make test` tries one entry of each kind, as users
    compile it, and `make test-all` the others, compiled cheaply (see conftest.py).
    """
    q = request.param
    return testing.Trial(q, 8, SHIPPED if q in KINDS else None, on_two_devices)


def test_argument_names_are_the_protocol_s(trial):
    properties.argument_names_are_the_protocol_s(trial)


def test_plain_data_and_back(trial):
    properties.plain_data_and_back(trial)


def test_codes_decode_to_z_q_to_the_bit(trial):
    properties.codes_decode_to_z_q_to_the_bit(trial)


def test_masked_vectors_count_nowhere(trial):
    properties.masked_vectors_count_nowhere(trial)


def test_a_masked_batch_equals_the_batch_without_those_rows(trial):
    properties.a_masked_batch_equals_the_batch_without_those_rows(trial)


def test_a_batch_without_any_real_vector_changes_no_statistics(trial):
    properties.a_batch_without_any_real_vector_changes_no_statistics(trial)


def test_update_keeps_the_state_s_form_and_three_steps_trace_once(trial):
    properties.update_keeps_the_state_s_form_and_three_steps_trace_once(trial)


def test_gradients_reach_z_and_never_the_state(trial):
    properties.gradients_reach_z_and_never_the_state(trial)


def test_order_of_the_batch_does_not_matter(trial):
    properties.order_of_the_batch_does_not_matter(trial)


def test_half_precision_inputs(trial):
    properties.half_precision_inputs(trial)


def test_non_finite_vectors_do_not_poison_the_state(trial):
    properties.non_finite_vectors_do_not_poison_the_state(trial)


def test_only_a_key_draws(trial):
    properties.only_a_key_draws(trial)


def test_the_same_call_gives_the_same_program(trial):
    properties.the_same_call_gives_the_same_program(trial)


def test_replicas_agree_with_one_device(trial):
    properties.replicas_agree_with_one_device(trial)


def test_calls_outside_jit_are_compiled_once(trial):
    tools.calls_outside_jit_are_compiled_once(trial)


def test_programs_take_any_batch_and_come_from_a_file(trial):
    tools.programs_take_any_batch_and_come_from_a_file(trial)


def test_a_start_may_be_donated(trial):
    tools.a_start_may_be_donated(trial)


def test_params_and_state_come_back_without_a_target(trial):
    tools.params_and_state_come_back_without_a_target(trial)


def test_codes_are_the_nearest(trial):
    claimed.codes_are_the_nearest(trial)


def test_ties_go_to_the_lowest_index(trial):
    claimed.ties_go_to_the_lowest_index(trial)


def test_vectors_are_those_of_the_parts(trial):
    claimed.vectors_are_those_of_the_parts(trial)


def test_first_codes_decode_to_partial_sums(trial):
    claimed.first_codes_decode_to_partial_sums(trial)


def test_decoded_codes_come_back(trial):
    claimed.decoded_codes_come_back(trial)


def test_codes_depend_on_the_key_as_claimed(trial):
    claimed.codes_depend_on_the_key_as_claimed(trial)


def test_the_task_s_gradient_is_the_estimator_s(trial):
    claimed.the_task_s_gradient_is_the_estimator_s(trial)


def test_each_loss_trains_what_it_claims(trial):
    claimed.each_loss_trains_what_it_claims(trial)


def test_loss_is_the_weighted_sum_of_losses(trial):
    claimed.loss_is_the_weighted_sum_of_losses(trial)


def test_errors_are_those_of_the_codes(trial):
    claimed.errors_are_those_of_the_codes(trial)


def test_update_counts_the_codes_it_is_given(trial):
    claimed.update_counts_the_codes_it_is_given(trial)


def test_revival_draws_with_the_key(trial):
    claimed.revival_draws_with_the_key(trial)


@pytest.mark.parametrize('scale', [0.125, 16.0])
def test_vq_ema_scales_with_its_inputs(scale):
    """All inputs times s: the codebook times s, the same codes (powers of two: to the bit)."""
    q = vqjax.VQEMA(8, revival=ops.Revival(below=0.5, every=1))

    def batch(seed):
        return jax.random.normal(jax.random.key(seed), (4, 24, 8))

    def train(scale):
        _, state = q.init(jax.random.key(0), scale * batch(0))
        for seed in range(4):
            codes = q.quantize((), state, scale * batch(seed)).codes
            state = q.update((), state, scale * batch(seed), codes, jax.random.key(seed))
        return codes, q.read_codebook((), state)

    codes, codebook = train(1.0)
    scaled_codes, scaled_codebook = train(scale)
    np.testing.assert_array_equal(np.asarray(codes), np.asarray(scaled_codes))
    np.testing.assert_array_equal(np.asarray(codebook * scale), np.asarray(scaled_codebook))


def test_every_property_is_a_test_of_the_table():
    names = {f'test_{check.__name__}' for check in testing.PROPERTIES}
    assert names <= set(globals())
