"""Take the guards away one at a time, and see that a test notices.

``python tests/mutants.py [NAME...]`` applies each mutant to a copy of the checkout, runs the tests that should fail, and
prints what killed it. Exit code 1 if one survives or no longer applies.
"""

# ruff: noqa: E501

from __future__ import annotations

import contextlib
import importlib
import io
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
AUDITS = ("tests/property/test_audit.py", "tests/golden/test_audit.py", "tests/unit/test_audit_report.py")
PURE = ("tests/unit/test_discrete.py", "tests/property/test_integers.py", "tests/property/test_sum.py")
REPORTS = tuple(f"tests/unit/test_{name}.py" for name in ("budget_report", "report_forms", "planning"))
COPIED = ("fedkd", "client", "server", "simulations", "tests", "pyproject.toml")
SLOW_IMPORTS = (
    "torch",
    "opacus",
    "scipy.stats",
    "sklearn.decomposition",
    "dp_accounting.pld",
    "hypothesis",
    "pydantic",
)
ENCODING, TABLES, IMAGES = (f"tests/data/test_{name}.py" for name in ("encoding", "tables", "images"))
STREAM, METHODS, EXAM = (f"tests/continual/test_{name}.py" for name in ("stream", "methods", "exam"))
CHECKPOINT, BACKBONE = (f"tests/distill/test_{name}.py" for name in ("checkpoint", "backbone"))
SGD, LEDGER, RELEASE, CHAINED, COSTED, POLICY, WRITERS = (
    f"tests/guards/test_{name}.py"
    for name in ("dp_sgd", "ledger", "release", "chain", "costs", "policy", "two_writers")
)
LIVE, LEARNS_ON = "tests/continual/test_live.py", "tests/guards/test_live_client.py"
GARBAGE, GATE, DISK, FUZZ, ENDS = (
    *("tests/unit/test_garbage.py", "tests/unit/test_gate.py", "tests/guards/test_disk_full.py"),
    *("tests/guards/test_fuzz.py", "tests/unit/test_ends.py"),
)
REFRESH = "tests/guards/test_refresh.py"
EXPORT, VERSIONS = "tests/device/test_export.py", "tests/device/test_versions.py"


@dataclass(frozen=True)
class Mutant:
    """``old`` occurs once in ``file``; with ``new`` in its place one of ``tests`` (names in one file) must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def nodes(self) -> list[str]:
        module, *names = self.tests
        return [f"{module}::{name}" for name in names]


def _m(name: str, file: str, old: str, new: str, *tests: str) -> Mutant:
    return Mutant(name, file, old, new, tests)


DP_SGD, NOISE, TRAINER = "fedkd/privacy/dp_sgd.py", "fedkd/privacy/noise.py", "fedkd/distill/trainer.py"
STACKED, COHORT, TOGETHER = "fedkd/privacy/cohort.py", "fedkd/distill/cohort.py", "tests/unit/test_cohort.py"
RULE, CODEC = "tests/contract/test_rules.py", "tests/property/test_codecs.py"
AUGMENTED = "tests/data/test_augment.py"
DISCRETE, INTEGERS, SUM, VOTES = (*PURE, "tests/golden/test_pate.py")
BASELINES, SILOS, COMPARED = "simulations/baselines.py", "simulations/silos.py", "tests/journeys/test_baselines.py"
SWEPT = "tests/journeys/test_sweep.py"
BOOK, WIRE, AGENT = "fedkd/privacy/ledger.py", "fedkd/wire.py", "client/agent.py"
MECHANISM, CONTRACT, COSTS, LIMITS = (
    f"fedkd/privacy/{name}.py" for name in ("mechanisms", "contract", "costs", "limits")
)
CHAIN, VERIFY, READING, ROLLBACK = (
    f"fedkd/privacy/{name}.py" for name in ("chain", "verification", "reading", "rollback")
)

SENSITIVITY = "test_one_example_changes_the_sum_by_at_most_the_clip"
CLIPPED = "test_both_clippers_sum_each_example_scaled_down_to_the_clip"
NOISE_SIZE = "test_every_coordinate_gets_noise_of_exactly_noise_multiplier_times_clip_once"
GAUSSIAN = "test_the_noise_in_the_update_is_gaussian_of_that_size"
EMPTY = "test_an_empty_sample_is_a_step_of_pure_noise"
PUBLIC = "test_the_public_gradient_is_autograds_and_is_not_noised"
SCHEDULE = "test_steps_and_sampling_rate_are_the_contracts_whatever_the_number_of_examples"
RATE = "test_poisson_samples_have_the_rate_and_no_fixed_size"
NO_TORCH = "test_poisson_samples_do_not_depend_on_torch_or_on_the_noise_drawn"
DIVISOR = "test_the_divisor_is_the_nominal_batch_whatever_the_number_of_examples"
SETTING = "test_a_setting_that_protects_nothing_is_refused"
OWN_NOISE = "test_clients_rounds_and_runs_never_share_noise"
CRASH = "test_a_crash_costs_nothing_more_and_gives_the_identical_bytes"
ERASED = "test_the_key_is_erased_at_commit"
EDITED = "test_every_edit_of_an_entry_is_detected"
APPEND_ONLY = "test_the_ledger_is_append_only"
FORGED = "test_entries_and_tables_cannot_be_taken_out_moved_or_forged"
SEEN = "test_an_older_copy_of_the_whole_state_is_found_out_by_what_the_server_has_seen"
FOREIGN = "test_a_head_that_is_not_of_this_branch_says_nothing_about_it"
FORK = "test_two_devices_that_continue_one_ledger_are_found_out_and_cannot_be_recovered"
RECOVERED = "test_recovery_charges_what_the_head_file_shows_to_be_missing"
REPLACED = "test_a_replaced_clients_answers_move_by_the_root_of_twice_the_queries_times_the_grid"
ANSWERED = "test_answers_carry_noise_of_the_contracts_variance"
LOST_ROUND = "test_a_lost_round_is_charged_for_all_that_it_may_have_been"
OFFERS = "test_whatever_the_private_data_offers_are_refused_with_the_same_words"
PLANS = "test_whatever_the_private_data_plans_that_ask_for_something_else_are_refused"
ONE_CODE = "test_after_the_charge_every_failure_has_the_same_bytes"
SCHEMA = "test_a_message_has_these_fields_and_no_others"
DROPPED = "test_private_records_of_the_proxy_set_are_dropped_one_by_one"

# fmt: off
MUTANTS = (
    # -- the update
    _m("clip forgotten by hooks", DP_SGD, "            max_grad_norm=clip,\n", "            max_grad_norm=1e9,\n", SGD, SENSITIVITY),
    _m("clip forgotten by ghost", DP_SGD, "(network, max_grad_norm=clip, use", "(network, max_grad_norm=1e9, use", SGD, SENSITIVITY),
    _m(
        "joint backward of private and public loss",
        DP_SGD,
        """            extra = self._public_gradients(public)
            self._private_gradients(x, y, loss)
""",
        """            extra = [None] * len(self._params)
            shared = public() / len(x) if public and len(x) else 0.0
            self._private_gradients(x, y, lambda logits, targets: loss(logits, targets) + shared)
""",
        SGD,
        SENSITIVITY,
        PUBLIC,
    ),
    _m("public gradient through the hooks", DP_SGD, "        self._wrapped.disable_hooks()\n", "", SGD, "test_a_public_loss_may_use_the_network_twice"),
    _m("public gradient before the noise", DP_SGD, "            p.grad.div_(self._nominal_batch)\n            if gradient is not None:\n                p.grad.add_(gradient)\n", "            if gradient is not None:\n                p.grad.add_(gradient)\n            p.grad.div_(self._nominal_batch)\n", SGD, PUBLIC),
    _m("gradients past their layer allowed", "fedkd/privacy/architecture.py", "if parameter.grad is None or _same(total, {name: parameter.grad}) is not None:", "if False:", "tests/distill/test_students.py", "test_a_parameter_that_is_also_used_past_its_layer_is_refused"),
    _m("ghost clipping of a user's code", DP_SGD, "    if not measurable or not all(_is_known(m) for m in modules):", "    if not measurable:", "tests/distill/test_students.py", "test_a_users_own_code_is_clipped_with_hooks"),
    _m("step of a microbatch not put off", DP_SGD, "signal_skip_step(do_skip=True)", "signal_skip_step(do_skip=False)", SGD, CLIPPED),
    _m("microbatches clipped as one", DP_SGD, "            self.optimiser.zero_grad()\n            self._backward(loss(self._wrapped(x), y))\n", "            self.optimiser.zero_grad()\n            self._backward(loss(self._wrapped(x), y) * len(x))\n", SGD, CLIPPED),
    _m("Gram matrices of sequences", DP_SGD, "    if backprops.dim() == 2:\n", "    if True:\n", SGD, "test_a_sequence_whose_terms_cancel_is_clipped_too"),
    _m("examples that are not finite kept", DP_SGD, "            if bool(finite.all()):\n", "            if True:\n", SGD, "test_an_example_without_a_finite_gradient_contributes_nothing"),
    _m("overflow of one record seen by the server", DP_SGD, "            if bool(finite.all()):\n", "            if True:\n", RELEASE, "test_one_record_that_makes_the_student_overflow_cannot_be_seen"),
    _m("divisor is the private count", DP_SGD, "p.grad.div_(self._nominal_batch)", "p.grad.div_(max(len(x), 1))", SGD, "test_the_divisor_is_the_nominal_batch_whatever_the_number_of_examples"),
    _m("empty sample skipped", DP_SGD, "        with warnings.catch_warnings():\n", "        if not len(x):\n            return\n        with warnings.catch_warnings():\n", SGD, EMPTY),
    # -- the update of many clients together
    _m("clip forgotten by a cohort", STACKED, "(self._clip / (norms + 1e-6)).clamp(max=1.0) * there", "torch.ones_like(norms) * there", SGD, f"{CLIPPED}[linear-cohort]", f"{SENSITIVITY}[linear-cohort-private_alone]"),
    _m("one layer's norm alone in a cohort", STACKED, "torch.stack(squares).sum(dim=0).sqrt()", "squares[-1].sqrt()", SGD, f"{CLIPPED}[mlp-cohort]"),
    _m("bias left out of the norms of a cohort", STACKED, "(given.square().sum(dim=2) + 1)", "given.square().sum(dim=2)", SGD, f"{CLIPPED}[linear-cohort]"),
    _m("examples that are not finite kept by a cohort", STACKED, "        if not bool(finite.all()):\n", "        if False:\n", SGD, "test_an_example_without_a_finite_gradient_contributes_nothing[linear-cohort-nan]"),
    _m("noise skipped by a cohort", STACKED, "(total.double() + torch.from_numpy(n))", "(total.double() + 0 * torch.from_numpy(n))", SGD, f"{EMPTY}[linear-cohort]", f"{GAUSSIAN}[cohort]"),
    _m("noise of a cohort not scaled by the clip", STACKED, "self._clip, self._std, self._nominal_batch = clip, noise_multiplier * clip, ", "self._clip, self._std, self._nominal_batch = clip, noise_multiplier, ", SGD, f"{NOISE_SIZE}[0-cohort]"),
    _m("one client's noise for all of a cohort", STACKED, "= source.normal(", "= next(one for one in sources if one).normal(", TOGETHER, "test_clients_learn_together_what_each_learns_alone[linear-dp_sgd-1.0-alone]"),
    _m("empty sample of a cohort without noise", STACKED, "            if source is not None:\n                for all", "            if source is not None and bool(sums[0][client].any()):\n                for all", SGD, f"{EMPTY}[linear-cohort]"),
    _m("divisor of a cohort is the private count", STACKED, "[total / self._nominal_batch for", "[total / max(float(there.sum()), 1.0) for", SGD, f"{DIVISOR}[cohort]"),
    _m("a setting of a cohort that protects nothing", STACKED, "        check_sizes(clip=clip, noise_multiplier=noise_multiplier, nominal_batch=nominal_batch)\n", "", SGD, SETTING),
    _m("rows that fill up a sample of a cohort count", COHORT, "start + numbers < self.sizes[:, None]", "(start + numbers >= 0).expand(len(self.sizes), -1)", TOGETHER, "test_clients_learn_together_what_each_learns_alone[linear-dp_sgd-1.0-alone]"),
    _m("long public gradient of a cohort", COHORT, "_shortened(list(torch.autograd.grad(loss, parameters)), self._contract.training.clip)", "list(torch.autograd.grad(loss, parameters))", SGD, "test_a_long_public_gradient_is_as_long_as_the_clip_and_points_the_same_way[cohort]"),
    # -- the noise
    _m("noise skipped", DP_SGD, "(total.double() + noise)", "(total.double() + 0 * noise)", SGD, GAUSSIAN, EMPTY),
    _m("noise from torch", DP_SGD, "torch.from_numpy(self.source.normal(tuple(total.shape), self.noise_multiplier * self.max_grad_norm))", "torch.randn(total.shape).double() * self.noise_multiplier * self.max_grad_norm", SGD, EMPTY),
    _m("noise not scaled by the clip", DP_SGD, "self.noise_multiplier * self.max_grad_norm))", "self.noise_multiplier))", SGD, NOISE_SIZE),
    _m("noise added twice", DP_SGD, "self.optimiser.original_optimizer.step()", "self.optimiser.step()", SGD, NOISE_SIZE),
    _m("moving clip allowed", DP_SGD, "if self._clip is not None and value != self._clip:", "if False:", SGD, "test_the_clip_cannot_move"),
    _m("no noise allowed", "fedkd/privacy/gradients.py", "if not (math.isfinite(value) and value > 0):", "if False:", SGD, SETTING),
    _m("DP-SGD releases without noise", "fedkd/privacy/mechanisms.py", "if not all(math.isfinite(event.noise_multiplier) and event.noise_multiplier > 0 for event in contract.events):", "if False:", SGD, "test_dp_sgd_without_noise_cannot_release"),
    _m("noise the same at every step", NOISE, "return ndtri(self._noise.uniform(", "return ndtri(np.random.default_rng(0).random(", SGD, "test_noise_of_two_steps_is_not_the_same"),
    _m("one stream for noise and sampling", NOISE, 'b"sampling"', 'b"noise\\0\\0\\0"', SGD, "test_no_stream_of_a_key_shifts_another"),
    _m("simulation key without the round", NOISE, '"noise", client, run, round)', '"noise", client, run)', SGD, OWN_NOISE),
    _m("simulation key without the client", NOISE, '"noise", client, run, round)', '"noise", run, round)', SGD, OWN_NOISE),
    _m("simulation key without the run", NOISE, '"noise", client, run, round)', '"noise", client, round)', SGD, OWN_NOISE),
    _m("agent gives all rounds one simulation key", AGENT, "self.name, plan.run, plan.round)", "self.name, plan.run, 1)", LEDGER, "test_simulated_keys_differ_by_client_run_and_round"),
    _m("deployed agent with a reproducible key", AGENT, 'if self.policy.noise == "simulation":\n            return simulation_key', "if True:\n            return simulation_key", LEDGER, "test_every_round_of_a_deployed_agent_draws_its_key_from_the_operating_system"),
    _m("user's noise seed allowed", "fedkd/config/policy.py", 'if self.noise == "os" and self.seed is not None:', "if False:", SGD, "test_the_noise_seed_is_not_the_users_to_choose"),
    _m("public dropout masks", TRAINER, "forked_rng(noise.seed())", "forked_rng(derive(0, contract.hash))", SGD, "test_the_dropout_masks_of_private_examples_are_as_secret_as_the_noise"),
    # -- integers and votes
    _m("zero drawn twice as often", "fedkd/privacy/discrete.py", "return np.where(negative, -y, y), ~(negative & (y == 0))", "return np.where(negative, -y, y), np.ones(size, np.bool_)", DISCRETE, "test_draws_have_the_probabilities_of_the_discrete_gaussian"),
    _m("small integers favoured", "fedkd/privacy/discrete.py", "np.uint64(2**64 - 1 - 2**64 % bound)", "np.uint64(2**64 - 1)", DISCRETE, "test_words_that_would_favour_small_integers_are_drawn_again"),
    _m("runs not cut", "fedkd/privacy/discrete.py", "LONGEST = 1024\n", "LONGEST = 2**20\n", DISCRETE, "test_the_longest_run_stays_within_64_bits"),
    _m("one stream for two noises", NOISE, 'b"discrete")', 'b"noise\\0\\0\\0")', DISCRETE, "test_every_stream_of_a_key_has_its_own_words"),
    _m("rows that do not add up to the grid", "fedkd/privacy/integers.py", " and (rows.sum(axis=1) == grid).all()):", "):", INTEGERS, "test_integers_that_were_not_paid_for_are_refused"),
    _m("negative integers", "fedkd/privacy/integers.py", "rows.dtype == np.int64 and (rows >= 0).all()", "rows.dtype == np.int64", INTEGERS, "test_integers_that_were_not_paid_for_are_refused"),
    _m("integers that overflow", "fedkd/privacy/integers.py", "(rows >= 0).all() and (rows <= grid).all()", "(rows >= 0).all()", INTEGERS, "test_integers_that_were_not_paid_for_are_refused"),
    _m("rounded to the nearest, whatever they add up to", "fedkd/privacy/integers.py", "    return checked(fixed, grid)\n", "    return np.rint(shares).astype(np.int64)\n", INTEGERS, "test_rows_add_up_to_the_grid_and_stay_within_one_of_their_shares"),
    _m("a client summed twice", "fedkd/aggregate/sum.py", "if client not in total.missing:", "if False:", SUM, "test_a_client_counts_once_and_only_if_it_is_on_the_roster"),
    _m("sum centred before its noise", "fedkd/aggregate/sum.py", "_centred((total.residues + noise.discrete_gaussian(total.residues.shape, variance)) % MODULUS)", "exact(total) + noise.discrete_gaussian(total.residues.shape, variance)", SUM, "test_noise_wraps_with_the_sum_it_is_added_to"),
    _m("sum without its noise", "fedkd/aggregate/sum.py", "(total.residues + noise.discrete_gaussian(total.residues.shape, variance))", "(total.residues.astype(np.int64))", SUM, "test_the_sum_is_the_sum_and_its_noise_is_that_of_one_draw"),
    _m("a moved vote charged as one change", "fedkd/privacy/costs.py", "Part(1 / math.sqrt(2), 1.0, q, 2)", "Part(1.0, 1.0, q, 1)", VOTES, "test_what_votes_cost_whatever_they_are"),
    _m("threshold test not charged", "fedkd/privacy/costs.py", 'if aggregate == "confident_votes" else ()', "if False else ()", VOTES, "test_a_query_is_charged_for_its_test_and_for_its_answer"),
    _m("a moved vote noised as one change", "fedkd/privacy/costs.py", "Part(1 / math.sqrt(2), 1.0, q, 2)", "Part(1 / math.sqrt(2), 1.0, q, 1)", VOTES, "test_votes_carry_the_noise_they_are_charged_for"),
    _m("discrete noise charged at its own variance", "fedkd/privacy/discrete.py", "* squared_sensitivity) + SMOOTHING", "* squared_sensitivity)", DISCRETE, "test_the_variance_is_the_smallest_that_may_be_charged_so"),
    # -- what released integers cost
    _m("root of the queries forgotten in a sum", COSTS, "(Part(1.0, 1.0, 1, q),)", "(Part(1.0, 1.0, 1, 1),)", COSTED, "test_a_client_that_comes_or_goes_changes_a_sum_by_the_root_of_the_queries"),
    _m("root of the queries forgotten in answers", COSTS, "(Part(1.0, 1.0, 1, 2 * q * GRID**2),)", "(Part(1.0, 1.0, 1, 2 * GRID**2),)", COSTED, REPLACED),
    _m("root of two forgotten in answers", COSTS, "(Part(1.0, 1.0, 1, 2 * q * GRID**2),)", "(Part(1.0, 1.0, 1, q * GRID**2),)", COSTED, REPLACED),
    _m("grid forgotten in answers", COSTS, "(Part(1.0, 1.0, 1, 2 * q * GRID**2),)", "(Part(1.0, 1.0, 1, 2 * q),)", COSTED, REPLACED),
    _m("root of two forgotten in votes", COSTS, "Part(1 / math.sqrt(2), 1.0, q, 2)", "Part(1 / math.sqrt(2), 1.0, q, 1)", COSTED, "test_a_moved_vote_changes_two_counts_and_the_largest_by_one"),
    _m("votes charged as one query", COSTS, "Part(1 / math.sqrt(2), 1.0, q, 2)", "Part(1 / math.sqrt(2), 1.0, 1, 2)", COSTED, "test_a_moved_vote_changes_two_counts_and_the_largest_by_one"),
    _m("root of two forgotten for replaced clients", "fedkd/privacy/units.py", "REPLACED = math.sqrt(2)", "REPLACED = 1.0", COSTED, "test_a_summed_client_that_is_replaced_moves_by_root_two_as_much"),
    _m("integers of any size released", MECHANISM, "return Bounded(on_grid(simplex(_only(rows)), GRID), ", "return Bounded(on_grid(simplex(_only(rows)), 2 * GRID), ", COSTED, REPLACED),
    _m("several votes for one", MECHANISM, "votes = np.sum([one_hot(_finite(student)) for student in rows], axis=0)", "votes = 2 * np.sum([one_hot(_finite(student)) for student in rows], axis=0)", COSTED, "test_a_client_that_comes_or_goes_changes_a_sum_by_the_root_of_the_queries"),
    _m("answers without their noise", MECHANISM, "noised = bounded.rows + noise", "noised = bounded.rows + 0 * noise", COSTED, ANSWERED),
    _m("answers with less noise than agreed", MECHANISM, "noise.discrete_gaussian(bounded.rows.shape, variance)", "noise.discrete_gaussian(bounded.rows.shape, max(1, variance // 2))", COSTED, ANSWERED),
    _m("a sum with less noise than agreed", "fedkd/aggregate/counts.py", "modular.finish(acc, central.noise, variance)", "modular.finish(acc, central.noise, 1)", COSTED, "test_the_aggregator_adds_the_contracts_noise_to_a_sum"),
    _m("noises of votes swapped", "fedkd/aggregate/counts.py", "confident_gnmax(tally, central.noise, least, *central.variances)", "confident_gnmax(tally, central.noise, least, *central.variances[::-1])", COSTED, "test_the_aggregator_adds_the_contracts_noises_to_votes"),
    _m("a lost round charged as the first mechanism", COSTS, "for mechanism in mechanisms]", "for mechanism in mechanisms[:1]]", COSTED, LOST_ROUND),
    _m("a lost round charged at any noise", COSTS, "cost.events(cost.loud(policy.min_noise))", "cost.events(9.0)", COSTED, LOST_ROUND),
    _m("noise of the most demanding client forgotten", "fedkd/coordinator.py", "tuple(max(column) for column", "tuple(min(column) for column", "tests/unit/test_coordinator.py", "test_a_round_has_the_noise_of_its_most_demanding_client"),
    _m("agreements to fewer noises than the rule adds", "fedkd/coordinator.py", "if len(variances) != needed and self._aggregate != \"mean\":", "if False:", "tests/unit/test_coordinator.py", "test_an_agreement_must_ask_for_the_noises_that_the_rule_adds"),
    # -- the policy
    _m("more answers than the policy allows", CONTRACT, "most = there if policy.max_answers is None else min(policy.max_answers, there)", "most = there", POLICY, OFFERS),
    _m("more answers than there are examples", CONTRACT, "if not 1 <= offer.queries <= most:", "if not 1 <= offer.queries:", POLICY, OFFERS),
    _m("any aggregate for any mechanism", CONTRACT, "    if not fitting:\n        raise Refused(Code.MECHANISM)\n", "    fitting = fitting or [policy.mechanism]\n", POLICY, OFFERS),
    _m("a sum of few", CONTRACT, 'if fitting[0] == "sum" and offer.clients < FEWEST_IN_A_SUM:', "if False:", POLICY, OFFERS),
    _m("a run of any length", CONTRACT, "if not 1 <= offer.rounds <= policy.max_rounds:", "if not 1 <= offer.rounds:", POLICY, OFFERS),
    _m("a plan of any number of answers", CONTRACT, "    if not _asks(plan, contract):\n", "    if False:\n", POLICY, PLANS),
    _m("one example asked twice", CONTRACT, "(plan.asked[1:] > plan.asked[:-1]).all()", "(plan.asked[1:] >= plan.asked[:-1]).all()", POLICY, PLANS),
    _m("less noise than the policy's least", CONTRACT, "    return max([*found, cost.loud(least)])", "    return max(found)", POLICY, "test_there_is_never_less_than_the_least_noise"),
    _m("the least noise of the louder part alone", COSTS, "smallest = min(scale for", "smallest = max(scale for", POLICY, "test_there_is_never_less_than_the_least_noise"),
    _m("a limit for the client forgotten", LIMITS, 'found += [("client", self.client, list(events))] if self.client is not None else []', "found += []", POLICY, "test_a_limit_for_the_client_leaves_no_room_for_what_bounds_nothing_of_the_kind"),
    _m("a limit for all blocks forgotten", LIMITS, 'return found + ([("example", self.lifetime, list(events))] if self.lifetime is not None else [])', "return found", POLICY, "test_each_block_has_the_limit_for_itself_and_all_together_the_lifetimes"),
    _m("a limit for one block forgotten", LIMITS, "touched = list(blocks.values()) if block == ALL else [blocks[block]]", "touched = list(blocks.values())[:1]", POLICY, "test_each_block_has_the_limit_for_itself_and_all_together_the_lifetimes"),
    _m("every mechanism confined to a block", "fedkd/privacy/blocks.py", 'local = event.mechanism == "dp_sgd" and event.unit == "example" and event.blocks', "local = event.blocks", POLICY, "test_an_event_that_is_not_dp_sgds_touches_all_blocks"),
    _m("the block of an old configuration charged", BOOK, "events=tuple(replace(event, blocks=(block,)) for event in contract.events)", "events=contract.events", POLICY, "test_an_agent_charges_the_block_that_its_configuration_names_today"),
    _m("an example's column for the client", "fedkd/privacy/units.py", 'return PrivacyEvent("none", 0.0, 1.0, event.steps, "client", kind, event.blocks)', 'return replace(event, unit="client", adjacency=kind, sample_rate=1.0)', POLICY, "test_after_dp_sgd_nothing_protects_the_whole_client_any_more"),
    _m("answers leave when they are ready", AGENT, "        if due is not None:\n            self._sleep(", "        if False:\n            self._sleep(", POLICY, "test_an_answer_leaves_exactly_at_the_offset_however_long_it_took"),
    _m("late answers leave at once", AGENT, "if due is not None and self._clock() > began + due:", "if False:", POLICY, "test_a_late_answer_is_kept_back_and_leaves_at_the_offset_of_the_next_request"),
    _m("what cannot be written down leaves", AGENT, "        except OSError:\n            self._console.failure()\n            return wire.encode(Refusal(self.name, Code.FAILED))", "        except OSError:\n            return reply", POLICY, "test_what_cannot_be_written_down_does_not_leave"),
    _m("DP-SGD goes on from bare weights", "client/lineage.py", 'contract.mechanism == "dp_sgd" and self._ledger.state("lineage") == BARE:', 'contract.mechanism == "none":', POLICY, "test_a_student_that_was_trained_without_noise_is_no_start_for_dp_sgd"),
    _m("every lineage called private", "client/lineage.py", 'return "private" if contract.mechanism == "dp_sgd" else BARE', 'return "private"', POLICY, "test_a_student_that_was_trained_without_noise_is_no_start_for_dp_sgd"),
    # -- the schedule
    _m("sampling rate from the data", TRAINER, "noise.poisson(len(data.y), training.sample_rate)", "noise.poisson(len(data.y), min(1.0, 8 / max(1, len(data.y))))", SGD, SCHEDULE),
    _m("number of steps from the data", TRAINER, "for _ in range(training.steps):", "for _ in range(max(1, len(data.y))):", SGD, SCHEDULE),
    _m("divisor of a round from the data", TRAINER, "steps = _steps(network, contract,", 'steps = _steps(network, (swap := __import__("dataclasses").replace)(contract, training=swap(training, nominal_batch=float(len(data.y)))),', SGD, "test_the_divisor_of_a_round_is_the_contracts"),
    _m("samples of a fixed size", NOISE, "np.flatnonzero(self._sampling.uniform(n) < rate)", "np.sort(np.argsort(self._sampling.uniform(n))[: round(n * rate)])", SGD, RATE),
    _m("samples from numpy's global generator", NOISE, "np.flatnonzero(self._sampling.uniform(n) < rate)", "np.flatnonzero(np.random.random(n) < rate)", SGD, NO_TORCH),
    _m("hooks left behind by a failed round", TRAINER, "        steps.close()  #", "        pass  #", SGD, "test_a_round_that_failed_leaves_no_hooks_behind"),
    # -- the architecture
    _m("BatchNorm allowed", "fedkd/privacy/architecture.py", "if isinstance(layer, _BatchNorm):", "if False:", SGD, "test_batch_norm_is_refused_in_every_mode"),
    _m("layers not checked by the adapter", DP_SGD, "        check_layers(network)\n", "", SGD, "test_batch_norm_is_refused_in_every_mode"),
    _m("layers not checked at the agent's start", AGENT, "            check_private(self.learner.model.network)\n", "            pass\n", SGD, "test_an_agent_does_not_start_with_batch_norm"),
    _m("outputs that were changed in place measured", DP_SGD, "if convolutions and small and not in_place else", "if convolutions and small else", SGD, "test_what_works_in_place_is_not_measured_by_outputs"),
    _m("weights that a forward pass changes", "fedkd/privacy/architecture.py", "(*body.named_buffers(), *body.named_parameters())", "(*body.named_buffers(),)", "tests/distill/test_students.py", "test_weights_that_a_forward_pass_changes_are_refused"),
    _m("recurrent layers clipped with ghost", DP_SGD, "measurable = _used_once(network) and all(type(m) in GHOST_LAYERS for m in with_weights)\n    if not measurable or not all(_is_known(m) for m in modules):", "measurable = all(isinstance(m, GHOST_LAYERS) for m in with_weights)\n    if not measurable:", SGD, "test_each_kind_has_the_fastest_clipper_that_can_measure_it"),
    _m("layers that cannot be measured clipped in a single pass", DP_SGD, "_used_once(network) and all(type(m) in GHOST_LAYERS for m in with_weights)", "_used_once(network)", SGD, "test_a_layer_that_neither_can_measure_is_clipped_with_hooks"),
    _m("layers that share weights clipped with ghost", DP_SGD, "measurable = _used_once(network) and all", "measurable = all", SGD, "test_layers_that_share_weights_are_clipped_with_hooks"),
    _m("students of two parts of the data teach one another", "client/learner.py", "earlier=targets_of(one.model.network,", "earlier=targets_of(self.model.network,", "tests/guards/test_shards.py", "test_a_record_is_seen_by_one_student_alone"),
    # -- what is taken as public
    _m("starting weights not compared with their hash", "fedkd/distill/checkpoint.py", "if digest(data) != expected:", "if False:", CHECKPOINT, "test_another_file_is_refused_and_its_hash_is_told"),
    _m("starting weights learned on other features", "fedkd/distill/checkpoint.py", 'if network.takes == "features" and not _same_features(features, meta, weights):', "if False:", CHECKPOINT, "test_weights_of_another_network_are_refused"),
    _m("a backbone's code not compared with its hash", "fedkd/distill/backbone.py", "if expected not in (None, found):", "if False:", BACKBONE, "test_without_its_file_or_with_another_one_nothing_is_imported"),
    _m("a backbone's code looked for everywhere", "fedkd/distill/backbone.py", "    if path is None:\n", '    if path is None:\n        return ""\n    if path is None:\n', BACKBONE, "test_a_proxy_set_cannot_name_code_that_its_owner_has_not_put_there"),
    _m("a backbone that remembers allowed", "fedkd/distill/features.py", "    backbone.load(weights)\n    backbone.check()\n", "    backbone.load(weights)\n", BACKBONE, "test_a_backbone_that_remembers_is_refused_on_every_device"),
    _m("few components summed in another order", "fedkd/distill/fronts.py", "_NARROWEST = 16", "_NARROWEST = 1", "tests/distill/test_features.py", "test_so_do_few_components"),
    # -- the ledger
    _m("private data touched before the charge", AGENT, "        try:\n            reservation = self.ledger.reserve(\n", "        self.learner.learn(contract, plan.round, labels, plan.temperature, NoiseSource(fresh_key()))\n        try:\n            reservation = self.ledger.reserve(\n", LEDGER, "test_the_charge_is_on_disk_before_private_data_is_touched"),
    _m("reply before the commit", AGENT, "                self.ledger.commit(reservation, payload, self.lineage.save(plan, contract))\n", "", LEDGER, "test_bytes_are_in_the_outbox_and_the_commit_on_disk_before_the_reply"),
    _m("commit before the outbox", BOOK, "        write_atomic(self._outbox / mark, payload)\n        run, round", "        run, round", LEDGER, "test_bytes_are_in_the_outbox_and_the_commit_on_disk_before_the_reply"),
    _m("two releases for one charge", BOOK, 'if charge is None or self._key(run, round) is None or self._chain.body(COMMIT, run, round) is not None:', "if charge is None:", LEDGER, "test_a_reservation_is_committed_once"),
    _m("reservation not synced to disk", BOOK, "synchronous=FULL", "synchronous=NORMAL", LEDGER, "test_a_reservation_survives_the_loss_of_power"),
    _m("reservations not counted until released", CHAIN, "WHERE kind IN ('reserve', 'recover') GROUP BY events", "WHERE kind IN ('reserve', 'recover') AND round IN (SELECT round FROM entries WHERE kind = 'commit') GROUP BY events", LEDGER, "test_a_reservation_stays_charged_for_ever"),
    _m("equal events counted once", READING, "steps=event.steps * count", "steps=event.steps", LEDGER, "test_a_reservation_stays_charged_for_ever"),
    _m("budget not checked by reserve", BOOK, "if not self._fits(charged, contract.rounds if whole else 1, new=new):", "if False:", LEDGER, "test_a_charge_over_the_limit_is_refused_and_not_made"),
    _m("a contract's schedule not checked when it comes into force", BOOK, "if not self._fits(charged, contract.rounds if whole else 1, new=new):", "if not self._fits(charged, 1, new=new):", LEDGER, "test_an_agreement_that_has_come_to_be_too_much_is_not_entered"),
    _m("sampled contracts chosen after answers", "fedkd/privacy/accounting.py", "return contracts > 1 and any(", "return False and any(", LEDGER, "test_under_poisson_sampling_a_contract_that_follows_answers_is_limited_by_a_filter"),
    _m("sampled contracts chosen after answers, as the ledger sees it", "fedkd/privacy/limits.py", "if adaptive(self.contracts + another, [*self.events, *more]):", "if False:", LEDGER, "test_the_ledger_itself_refuses_a_sampled_contract_that_only_a_tight_composition_would_admit"),
    _m("closed run agreed to again", BOOK, " or self._chain.body(\"contract\", contract.run) is not None:\n                raise Refused(Code.CONTRACT)", ":\n                raise Refused(Code.CONTRACT)", LEDGER, "test_a_run_that_has_been_closed_is_never_agreed_to_again"),
    _m("agreements in the chain at once", BOOK, "            self._chain.put({PENDING: canonical(contract.record()).decode()})", "            self._bring_into_force(contract)", LEDGER, "test_agreements_grow_nothing_and_close_nothing"),
    _m("budget not checked by register", BOOK, "if not self._fits(contract, contract.most, new=True):", "if False:", LEDGER, "test_a_schedule_that_does_not_fit_is_never_registered"),
    _m("past of other runs forgotten", AGENT, "draw_up(self.policy, offer, self.ledger.past(), ", "draw_up(self.policy, offer, type(self.ledger.past())(), ", LEDGER, "test_two_runs_share_the_limit_of_a_lifetime"),
    _m("two contracts open at once", BOOK, "ORDER BY seq DESC LIMIT 1\").fetchone()\n        return Contract.", "ORDER BY seq LIMIT 1\").fetchone()\n        return Contract.", LEDGER, "test_two_runs_share_the_limit_of_a_lifetime"),
    _m("exhausted client does not learn", AGENT, "            self._learn_only(plan, labels)\n            raise Refused(Code.EXHAUSTED)", "            raise Refused(Code.EXHAUSTED)", LEDGER, "test_an_exhausted_client_touches_no_private_data_and_still_learns_from_labels"),
    _m("fresh key at re-entry", BOOK, '_events(body), held.key)', '_events(body), bytes(32))', LEDGER, CRASH),
    _m("re-entry charged again", BOOK, "            if before is not None:\n                return self._again", "            if False:\n                return self._again", LEDGER, CRASH),
    _m("retry computes anew", AGENT, "            if before is not None:\n", "            if False:\n", LEDGER, "test_a_retry_gives_the_stored_bytes_without_touching_data"),
    _m("other data under the same noise", BOOK, "if held.snapshot != snapshot:", "if False:", LEDGER, "test_other_data_never_meets_the_same_noise"),
    _m("another student under the same noise", "client/lineage.py", "        self.restore()\n        if contract is not None", "        if contract is not None", LEDGER, "test_a_key_that_is_entered_again_meets_the_student_it_met_before"),
    _m("another plan under one reservation", BOOK, 'if body["plan"] != plan:', "if False:", LEDGER, "test_another_plan_for_an_open_reservation_is_refused"),
    _m("another plan gets the stored bytes", BOOK, 'if charge["plan"] != plan:', "if False:", LEDGER, "test_another_plan_for_an_answered_round_is_refused"),
    _m("rounds may go back", BOOK, "if round < self._chain.last_round(run):", "if False:", LEDGER, "test_rounds_go_forward_only"),
    _m("abandoned reservation entered again", BOOK, "return held if held is not None and (held.run, held.round) == (run, round) else None", "return held", LEDGER, "test_an_abandoned_reservation_is_never_entered_again"),
    _m("key not erased", BOOK, "            if self._key(run, round) is not None:\n                self._keys.erase()\n", "            pass\n", LEDGER, ERASED),
    _m("key left in the freed blocks", "fedkd/privacy/keys.py", "                _overwrite(path)\n", "", LEDGER, "test_the_key_is_overwritten_before_its_file_is_removed"),
    _m("key that others may read", "fedkd/privacy/keys.py", ", mode=0o600", "", LEDGER, "test_the_key_is_overwritten_before_its_file_is_removed"),
    _m("key left by a crash", BOOK, "            if held is None or self._chain.body(COMMIT, held.run, held.round) is not None:\n                self._keys.erase()", "            pass", LEDGER, "test_a_key_that_a_crash_left_is_erased_when_the_ledger_is_opened"),
    _m("ledger read unverified", READING, "            with verified(chain) as found:\n", "            with contextmanager(lambda: (yield None))() as found:\n", CHAINED, EDITED),
    _m("ledger opened unverified", BOOK, "        with verified(self._chain, damaged=damaged):\n            pass\n", "", CHAINED, EDITED),
    # -- the chain
    _m("chain not verified", VERIFY, "if (seq, prev, mark) != (head.counter + 1, head.hash, link(head.hash, text)):", "if False:", CHAINED, EDITED),
    _m("bodies not in the chain", CHAIN, 'digest(f"{prev}\\n{body}".encode())', "digest(prev.encode())", CHAINED, EDITED),
    _m("numbers not in the chain", VERIFY, "if (seq, prev, mark) != (head.counter + 1, head.hash, link", "if (prev, mark) != (head.hash, link", CHAINED, FORGED),
    _m("number of charges not verified", VERIFY, "if charges != head.charges or ", "if ", CHAINED, EDITED),
    _m("branches not verified", VERIFY, " or Position(*branch) != new:", ":", CHAINED, EDITED),
    _m("head need not be signed", VERIFY, "        _check_signature(chain, head)\n", "", CHAINED, "test_nobody_without_the_key_can_edit_entries_and_mend_the_chain"),
    _m("ledger of another key taken", VERIFY, "if chain.identity is not None and chain.identity.public", "if False and chain.identity.public", CHAINED, "test_a_chain_that_is_signed_with_another_key_is_found_out"),
    _m("tables not verified", VERIFY, "if {sql for (sql,) in chain.db.execute(query)} != set(TABLES):", "if False:", CHAINED, FORGED, "test_charges_cannot_be_hidden_from_the_queries_that_add_them_up"),
    _m("indexes not verified", VERIFY, 'if chain.db.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",):', "if False:", CHAINED, "test_an_index_that_leaves_an_entry_out_is_found_out"),
    _m("entries can be changed", CHAIN, "BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END", "BEFORE UPDATE ON entries BEGIN SELECT 1; END", LEDGER, APPEND_ONLY),
    _m("entries can be deleted", CHAIN, "BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END", "BEFORE DELETE ON entries BEGIN SELECT 1; END", LEDGER, APPEND_ONLY),
    _m("entries and signature read at two moments", VERIFY, "    with chain.snapshot():\n", "    if True:\n", CHAINED, "test_a_reader_is_not_misled_by_a_writer"),
    _m("head file read after the entries", VERIFY, "    noted = None if damaged else chain.noted()\n    with chain.snapshot():\n        _check_tables(chain)\n", "    with chain.snapshot():\n        _check_tables(chain)\n        noted = None if damaged else chain.noted()\n", CHAINED, "test_a_reader_is_not_misled_by_a_writer"),
    # -- two processes
    _m("writers not kept apart", CHAIN, '"BEGIN IMMEDIATE"', '"BEGIN"', WRITERS, "test_two_processes_never_charge_more_than_the_limit_and_leave_one_chain"),
    _m("another process's key erased", BOOK, "            if self._key(run, round) is not None:\n", "            if True:\n", WRITERS, "test_a_commit_erases_its_own_key_and_no_other"),
    # -- older copies, and copies that go on
    _m("head file not compared", VERIFY, "if noted is not None and not chain.has(noted.position):", "if False:", CHAINED, "test_an_older_copy_of_the_database_alone_is_found_out", "test_a_deleted_database_is_found_out"),
    _m("head file not written", CHAIN, '                self._file.write(self.signed("", self.head()))', "                pass", CHAINED, "test_an_older_copy_of_the_database_alone_is_found_out"),
    _m("head file of anybody taken", "fedkd/privacy/identity.py", 'if head is None or not verifies(public, client, "", head):', "if head is None:", CHAINED, "test_a_head_file_that_the_client_has_not_signed_is_an_error"),
    _m("a lost identity replaced", BOOK, "if self._path.exists() and not path.exists():", "if False:", CHAINED, "test_a_ledger_without_its_identity_is_not_given_another"),
    _m("what a server has seen not compared", ROLLBACK, "if not self._chain.knows(server, head.position):", "if False:", CHAINED, SEEN),
    _m("an offer's head not looked at", AGENT, "        self._check_seen(offer.server, offer.seen)\n", "", CHAINED, "test_an_offer_too_shows_what_the_server_has_seen"),
    _m("a plan's head not looked at", AGENT, "            self._check_seen(contract.server, plan.seen)\n", "", CHAINED, "test_an_agent_that_was_set_back_answers_no_more_and_tells_its_owner"),
    _m("a rollback forgotten", ROLLBACK, "                self._chain.put({LOCK: json.dumps(asdict(gap))})", "                pass", CHAINED, SEEN),
    _m("a locked ledger charged", BOOK, "        with self._chain.transaction():\n            self._rollback.check_lock()\n            contract = ", "        with self._chain.transaction():\n            contract = ", CHAINED, SEEN),
    _m("a locked ledger agrees", BOOK, "            self._rollback.check_lock()\n            if self.contract(", "            if self.contract(", CHAINED, SEEN),
    _m("a foreign head taken for the client's own", ROLLBACK, 'if not verifies(self._chain.meta["key"], self._client, server, head):', "if False:", CHAINED, FOREIGN),
    _m("heads for any server", "fedkd/privacy/identity.py", '"fedkd.head/1", client, branch,', '"fedkd.head/1", client,', CHAINED, FOREIGN),
    _m("heads for any client", "fedkd/privacy/identity.py", '"fedkd.head/1", client, branch,', '"fedkd.head/1", branch,', CHAINED, FOREIGN),
    _m("charges of a head not signed", "fedkd/privacy/identity.py", "position.counter, position.charges, position.hash]", "position.counter, position.hash]", CHAINED, FOREIGN),
    _m("a server told about other servers", CHAIN, 'branch_after(self.branch(body["server"]), body, text)', "branch_after(old, body, text)", CHAINED, "test_a_servers_heads_say_nothing_about_other_servers"),
    _m("two answers to one plan, one head", BOOK, '{**body, "noise": noise, ', "{**body, ", CHAINED, "test_two_answers_to_one_plan_have_two_heads"),
    _m("the second of two equally new heads kept", "fedkd/coordinator.py", "        if new > old:", "        if head and new >= old:", CHAINED, "test_the_server_keeps_the_head_that_it_saw_first_of_two_equally_long_ones"),
    _m("a fork recovered", ROLLBACK, "        if gap.fork:\n", "        if False:\n", CHAINED, FORK),
    _m("a fork forgotten", ROLLBACK, "(not known.fork and (gap.fork or further))", "(gap.fork or further)", CHAINED, FORK),
    _m("a gap counted from this end of a fork", ROLLBACK, "start, own = min(self.acknowledged(server), seen.charges), self._chain.branch(server)", "own = self._chain.branch(server)\n        start = min(own.charges, seen.charges)", CHAINED, "test_a_fork_that_looks_like_a_gap_is_charged_from_where_both_are_known_to_be_one"),
    _m("a larger gap forgotten", ROLLBACK, "known.server == gap.server and known.counter < gap.counter", "known.server == gap.server", CHAINED, "test_a_smaller_gap_does_not_take_the_place_of_a_larger_one"),
    _m("lost rounds charged as one", ROLLBACK, '"steps": event.steps * gap.lost}', '"steps": event.steps}', CHAINED, RECOVERED),
    _m("lost rounds not charged", CHAIN, "WHERE kind IN ('reserve', 'recover') GROUP BY", "WHERE kind = 'reserve' GROUP BY", CHAINED, RECOVERED),
    _m("lost rounds never accepted", CHAIN, " or self._charged(server, seen)", "", CHAINED, "test_recovery_charges_what_the_server_has_seen_and_the_life_goes_on"),
    _m("a recovery that is rolled back counted as one", CHAIN, 'recovered = body["charges"] - body["from"] if', "recovered = 1 if", CHAINED, "test_a_recovery_that_is_itself_rolled_back_is_charged_again"),
    _m("lost contracts not counted", READING, "chain.bodies(CONTRACT, RECOVER)]", "chain.bodies(CONTRACT)]", CHAINED, "test_after_a_recovery_sampled_rounds_are_limited_by_a_filter"),
    # -- the outbox and the state directory
    _m("outbox not verified", BOOK, 'if digest(payload) != commit["digest"]:', "if False:", LEDGER, "test_altered_bytes_in_the_outbox_are_not_sent"),
    _m("ledger of another client taken", BOOK, 'if meta["client"] != self.client:', "if False:", LEDGER, "test_the_ledger_of_another_client_is_refused"),
    _m("two agents on one state", "fedkd/locks.py", "        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n", "        pass\n", LEDGER, "test_one_state_directory_has_one_agent"),
    _m("half-trained student kept", "client/lineage.py", "        except BaseException:\n            self.restore()\n            raise", "        except BaseException:\n            raise", LEDGER, "test_a_failed_round_does_not_change_the_student"),
    _m("momentum lost at restore", "client/learner.py", "for name, array in velocity.items()}", "for name, array in ()}", LEDGER, "test_a_student_continues_from_its_file_with_weights_momentum_and_labels"),
    # -- the release
    _m("absurd inputs not clamped", "fedkd/distill/model.py", ".clip(-LARGEST_INPUT, LARGEST_INPUT)", "", RELEASE, "test_an_absurd_record_is_clamped_and_clipped_like_any_other"),
    _m("features fitted by many threads", "fedkd/distill/features.py", 'threadpool_limits(1, "blas")', 'threadpool_limits(None, "blas")', "tests/distill/test_features.py", "test_the_number_of_blas_threads_is_not_felt_by_what_is_fitted"),
    _m("loss in the answers", WIRE, "    rows: Released\n    head: str\n", "    rows: Released\n    head: str\n    loss: float = 1.0\n", RELEASE, SCHEMA),
    _m("example count in the answers", WIRE, "    rows: Released\n    head: str\n", "    rows: Released\n    head: str\n    examples: int = 0\n", RELEASE, SCHEMA),
    _m("text in a refusal", WIRE, "    client: str\n    code: Code\n", '    client: str\n    code: Code\n    text: str = ""\n', RELEASE, SCHEMA),
    _m("noise multiplier in a plan", WIRE, "    temperature: float\n    labels: str\n", "    temperature: float\n    noise_multiplier: float\n    labels: str\n", RELEASE, SCHEMA),
    _m("exception text in a refusal", AGENT, "Refusal(self.name, refused.code)", "Refusal((self.name + traceback.format_exc())[-60:], refused.code)", RELEASE, ONE_CODE),
    _m("code of a failure after the charge", AGENT, "            raise Refused(Code.FAILED) from None\n", "            raise\n", RELEASE, ONE_CODE),
    _m("rows sent without a release", WIRE, "            if not isinstance(value, Released):\n                raise WireError", "            if not isinstance(value, Released):\n                value = Released(value, '')\n            if value is None:\n                raise WireError", RELEASE, "test_only_a_release_can_be_sent"),
    _m("extra fields accepted", WIRE, "if {*header, *arrays} != set(names) or len(header) + len(arrays) != len(names):", "if not {*header, *arrays} >= set(names):", RELEASE, "test_a_message_with_one_field_more_is_refused"),
    _m("rows of NaN accepted", WIRE, "or not np.isfinite(value).all():\n        raise WireError(f\"rows must be", "or False:\n        raise WireError(f\"rows must be", RELEASE, "test_a_reply_that_is_not_finite_is_a_wire_error"),
    _m("soft labels need not be probabilities", AGENT, "        wire.check_rows(labels, *size)", "        pass", RELEASE, "test_soft_labels_must_be_probabilities"),
    _m("stricter policy ignored", "fedkd/privacy/contract.py", " or not allows(policy, contract, block):", ":", RELEASE, "test_a_stricter_policy_holds_at_once_also_under_an_old_contract"),
    _m("records of the proxy set kept", "client/learner.py", "own = examples.take(np.flatnonzero(~public))", "own = examples", RELEASE, DROPPED),
    _m("all data dropped for one record of the proxy set", "client/learner.py", "np.flatnonzero(~public)", "np.flatnonzero(~public & ~public.any())", RELEASE, DROPPED),
    _m("exception out of the agent", AGENT, "        except (Exception, SystemExit):  # user", "        except ValueError:  # user", RELEASE, "test_each_request_is_refused_with_its_own_word", "test_noise_on_the_line_is_refused"),
    _m("every traceback on the console", "client/console.py", "        self._failed = True\n", "", RELEASE, "test_the_console_has_the_first_traceback_and_then_a_line"),
    # -- reports and plans
    _m("names not escaped in HTML", "fedkd/report/html.py", "<h2>{escape(section.title)}</h2>", "<h2>{section.title}</h2>", REPORTS[1], "test_a_hostile_name_is_text_in_html"),
    _m("a page that may load things", "fedkd/report/html.py", "default-src 'none'; ", "", REPORTS[1], "test_the_page_forbids_itself_to_load_anything"),
    _m("names not escaped in Markdown", "fedkd/report/markdown.py", 'return SPECIAL.sub(r"\\\\\\1", text)', "return text", REPORTS[1], "test_a_hostile_name_is_text_in_markdown"),
    _m("control characters printed", "fedkd/report/document.py", "char if char.isprintable() else", "char if True else", REPORTS[1], "test_a_hostile_name_moves_no_cursor_in_text", "test_visible_text_is_one_printable_line"),
    _m("accountants that disagree", "fedkd/report/spend.py", "if not abs(pld - other) <= TOLERANCE:", "if False:", REPORTS[0], "test_accountants_that_disagree_fail_the_report"),
    _m("unreleased charges left out of a report", "fedkd/report/spend.py", 'merge(export.get("events", ()))', 'merge(r for r in export.get("events", ()) if r["state"] == "released")', REPORTS[0], "test_reserved_rounds_are_charged_like_released_ones"),
    _m("two units in one column", "fedkd/report/spend.py", "self.accountant.spent(seen_by(unit, events)", 'self.accountant.spent(seen_by("example", events)', REPORTS[0], "test_one_example_unit_release_takes_the_bound_of_the_whole_client_away"),
    _m("the best block reported", "fedkd/report/spend.py", "epsilon, limit = max(blocks.values())", "epsilon, limit = min(blocks.values())", REPORTS[0], "test_an_example_pays_for_its_own_block_and_a_person_for_all"),
    _m("sampled rounds chosen after answers reported by PLD", "fedkd/report/spend.py", "accountant = past.accountant((), delta, another=False)", "accountant = Pld()", REPORTS[0], "test_sampled_rounds_chosen_after_answers_are_reported_by_the_filter"),
    _m("noise from a seed holds", "fedkd/report/budget.py", "return any(client.noise != \"os\" for client in clients)", "return False", REPORTS[0], "test_simulated_noise_gives_no_guarantee"),
    _m("a plan that forgets the past", "fedkd/report/planning.py", "calibration.calibrate(seen[: len(past)]", "calibration.calibrate([]", REPORTS[2], "test_noise_after_a_ledgers_past_is_what_an_agent_would_put_into_its_next_contract"),
    # -- the audit
    _m("audits not corrected for their number", "fedkd/privacy/audit.py", "alpha = (1 - confidence) / max(1, len(evidence))", "alpha = 1 - confidence", AUDITS[0], "test_bounds_hold_together_at_the_confidence_of_the_family"),
    _m("rules chosen on what is counted", "fedkd/privacy/audit.py", "choose_rule(negative[:cut_n], positive[:cut_p], bound)", "choose_rule(negative[cut_n:], positive[cut_p:], bound)", AUDITS[0], "test_trials_that_are_counted_do_not_choose_the_rule"),
    _m("error rates without confidence limits", "fedkd/privacy/audit.py", "np.where(failures > 0, betainccinv(np.add(successes, 1.0), np.maximum(failures, 1.0), alpha), 1.0)", "(np.add(successes, 0.5)) / np.add(trials, 1.0)", AUDITS[0], "test_paired_bounds_of_a_gaussian_stay_below_its_epsilon"),
    _m("delta of one run forgotten", "fedkd/privacy/audit.py", "tail + 2 * self.canaries * delta *", "tail + 0 * delta *", AUDITS[1], "test_the_p_value_of_guesses_is_the_published_one"),
    _m("a claim that an audit refutes still holds", "fedkd/report/budget.py", ' != "inf" and not refuted,', ' != "inf",', AUDITS[2], "test_an_audit_above_its_claim_leaves_no_guarantee"),
    _m("sums in floating point", "fedkd/aggregate/mean.py", "fixed = np.rint(rows.astype(np.float64) * SCALE).astype(np.int64)", "fixed = rows.astype(np.float64)", RELEASE, "test_answers_in_any_order_give_the_same_bytes"),
    # -- the device
    _m("int8 calibrated on any examples", "fedkd/device/export.py", "    if proxy.hash != model.proxy:\n", "    if False:\n", EXPORT, "test_int8_is_calibrated_on_the_models_own_proxy_set_alone"),
    _m("graphs traced with a view", "fedkd/device/graph.py", 'torch.zeros(1, *model.features.spec["shape"])', 'torch.zeros(9, *model.features.spec["shape"])[:1]', EXPORT, "test_the_example_of_a_graph_is_zeros_in_storage_of_their_own"),
    _m("switch before the file is there", "fedkd/device/serving.py", "            write_atomic(self.folder / one.file, content)\n            self._write([*(old for old in self.stack() if old.file != one.file), one][-self._keep :])\n", "            self._write([*(old for old in self.stack() if old.file != one.file), one][-self._keep :])\n            write_atomic(self.folder / one.file, content)\n", VERSIONS, "test_a_crash_while_switching_leaves_the_old_version_or_the_new_one"),
    _m("gate without effect", "fedkd/device/gate.py", "    if not reasons:\n", "    if True:\n", VERSIONS, "test_a_worse_student_is_not_served_and_a_good_one_is"),
    _m("a drop that is the limit refused", "fedkd/device/gate.py", "ROUNDING = 1e-9", "ROUNDING = 0", VERSIONS, "test_a_drop_that_is_the_limit_passes"),
    _m("a damaged served file stops promotions", "fedkd/device/gate.py", "if one not in damaged and", "if", VERSIONS, "test_a_damaged_served_file_stops_no_promotion_and_is_named"),
    _m("labels of no version measured", "fedkd/device/gate.py", "    if not 0 <= int(held_out.y.min())", "    if False and not 0 <= int(held_out.y.min())", VERSIONS, "test_examples_with_labels_that_no_version_has_are_refused"),
    _m("a damaged version stays damaged", "fedkd/device/versions.py", "                write_atomic(self.path(found[0].id), content)", "                pass", VERSIONS, "test_a_damaged_version_is_mended_by_its_own_student"),
    _m("small losses add up", "fedkd/device/gate.py", "for row in rows if (known", "for row in rows[-1:] if (known", VERSIONS, "test_small_losses_of_a_class_do_not_add_up"),
    _m("lineage keeps what is served", "fedkd/device/versions.py", "            kept = [*known, version][-self._keep :]\n", "            kept = [*known, version][-self._keep :]\n            served = self.folder.parent / \"serving\" / \"serving.json\"\n            kept = [one for one in known if served.exists() and one.id in served.read_text() and one not in kept] + kept\n", VERSIONS, "test_the_lineage_is_the_same_whatever_the_gate_decides"),
    # -- streams
    _m("a live block by a count", "fedkd/continual/live.py", "        return int(number)\n", "        return int(number) + self.taken() // 4\n", LIVE, "test_leaving_a_record_out_moves_no_other_one"),
    _m("a live block of a hash by a count", "fedkd/continual/live.py", "            return int(record.identity[:16], 16) % self._live.blocks\n", "            return self.taken() % self._live.blocks\n", LIVE, "test_leaving_a_record_out_moves_no_other_one"),
    _m("a live list of labels grown from what is seen", "fedkd/continual/live.py", "        return Examples(x, np.array([y for _, y in rows], np.int64), self._classes)\n", "        return Examples(x, np.array([y for _, y in rows], np.int64), 1 + max((y for _, y in rows), default=0))\n", LIVE, "test_the_list_of_labels_is_the_proxy_sets_whatever_labels_have_come"),
    _m("a label that is in no list taken in", "fedkd/continual/live.py", '        sources.check(Examples(x, y, self._classes), "its records", self._shape, self._classes)\n', '        self._classes = max(self._classes, int(y.max(initial=0)) + 1)\n        sources.check(Examples(x, y, self._classes), "its records", self._shape, self._classes)\n', LIVE, "test_the_list_of_labels_is_the_proxy_sets_whatever_labels_have_come"),
    _m("late records learned", "fedkd/continual/live.py", "        if self._sealed(block):\n", "        if False:\n", LIVE, "test_a_record_that_comes_after_its_block_was_sealed_is_never_learned"),
    _m("source marked before its records are in", "fedkd/continual/live.py", "        with self._transaction():\n            counts", '        self._db.execute("INSERT INTO sources VALUES (?, ?)", (source.name, mark))\n        self._db.execute("DELETE FROM sources WHERE 0")\n        with self._transaction():\n            self._db.execute("DELETE FROM sources WHERE name = ?", (source.name,))\n            counts', LIVE, "test_killed_at_any_statement_each_record_is_taken_exactly_once"),
    _m("held-out records learned", "fedkd/continual/live.py", '"block = ? AND held_out = 0"', '"block = ?"', LIVE, "test_whether_a_record_is_held_out_depends_on_it_alone_and_nothing_learns_it"),
    _m("a round entered again in another block", "fedkd/continual/live.py", "json.loads(before)[:2] == [run, round]", "False", LIVE, "test_a_round_that_is_entered_again_has_the_block_that_it_had"),
    _m("a record that cannot be read stops the stream", "fedkd/continual/live.py", "        except Exception as error:  # a record may be anything", "        except ZeroDivisionError as error:  # a record may be anything", LIVE, "test_whatever_a_source_holds_is_refused_and_stops_no_other"),
    _m("a stream that fails chooses the code of a reply", AGENT, "        except Exception:  # what is in a source must never choose the code of a reply\n", "        except ZeroDivisionError:\n", LEARNS_ON, "test_a_stream_that_fails_in_any_way_stops_no_answer"),
    _m("a refused round bound to its spent block", "fedkd/continual/live.py", "if again and before is not None", "if before is not None", LEARNS_ON, "test_a_round_that_was_refused_is_asked_again_in_the_block_of_that_time"),
    _m("one wrong clock closes all blocks until its date", "fedkd/continual/live.py", "first if entered else min(first, int(before) + 1)", "first", LEARNS_ON, "test_one_look_at_a_wrong_clock_closes_one_block"),
    _m("a student that never reaches its file", "client/command.py", '        if agent.ledger.state("student") is not None:', "        if False:", LEARNS_ON, "test_a_student_that_a_kill_kept_from_its_file_is_there_after_the_next_start"),
    _m("a version that was rolled back comes back", "client/upkeep.py", "*serving.given_up(), ", "", LEARNS_ON, "test_a_version_that_was_rolled_back_stays_so_after_a_restart"),
    _m("changed files taken again", "fedkd/continual/live.py", "        if before is not None:\n", "        if False:\n", LIVE, "test_a_file_that_was_changed_after_it_was_taken_is_ignored"),
    _m("a block still open when it is learned", "fedkd/continual/live.py", "        self.seal(block)\n        self._put", "        self._put", LEARNS_ON, "test_what_comes_after_its_block_was_charged_is_never_learned"),
    _m("the limit of another block", BOOK, "accountant, block_of(more))", 'accountant, "new")', LEARNS_ON, "test_each_block_has_its_own_limit_and_a_spent_one_is_refused_while_learning_goes_on"),
    _m("noise of few rounds for the sum of all blocks", CONTRACT, "most if index < own else offer.rounds", "most", LEARNS_ON, "test_a_lifetime_limit_takes_the_noise_of_all_rounds"),
    _m("a contract of other rounds a block", CONTRACT, '    few &= contract.mechanism != "dp_sgd" or contract.block_rounds == policy.block_rounds\n', "", LEARNS_ON, "test_another_number_of_rounds_a_block_needs_another_contract"),
    _m("what is served shapes what trains", "client/upkeep.py", "        told = ", "        if verdict.promoted:\n            self._agent.ledger.put_state({\"lineage\": \"bare\"})\n        told = ", LEARNS_ON, "test_what_trains_and_answers_is_the_same_whatever_is_served"),
    _m("zeros with a sign in the order of arrival", "fedkd/aggregate/robust.py", "        block += 0.0", "        block += -0.0", RULE, "TestMedian::test_a_zero_with_a_sign_changes_no_byte"),
    _m("answers with noise to any rule", "fedkd/coordinator.py", ' and self._aggregate != "mean":', " and needed:", "tests/unit/test_coordinator.py", "test_answers_with_noise_of_their_own_are_for_the_mean_alone"),
    _m("noised answers for any rule", "fedkd/config/answers.py", '    "gaussian": ("mean",),', '    "gaussian": _OF_PROBABILITIES,', POLICY, "test_answers_with_noise_are_given_for_a_mean_alone"),
    _m("a client counted twice in a median", "fedkd/aggregate/robust.py", "        if client in acc.rows:\n", "        if False:\n", "tests/property/test_rules.py", "test_a_client_counts_once"),
    _m("nothing trimmed", "fedkd/aggregate/robust.py", "ordered[:, cut : clients - cut].mean", "ordered[:, :].mean", "tests/property/test_rules.py", "test_two_of_five_liars_do_not_change_what_three_say_alike"),
    _m("a codec that was not agreed", "fedkd/codecs.py", " or carried.dtype != FLOATS[name]:", ":", "tests/unit/test_coordinator.py", "test_answers_travel_in_the_codec_that_was_agreed"),
    _m("classes that are not there", "fedkd/codecs.py", "(which >= classes).any() or ", "", CODEC, "test_rows_that_name_no_class_or_no_largest_entry_are_refused"),
    _m("a class named twice", "fedkd/codecs.py", "(np.diff(which, axis=1) <= 0).any() or ", "", CODEC, "test_rows_that_name_no_class_or_no_largest_entry_are_refused"),
    _m("more than the whole", "fedkd/codecs.py", " or (total > LEVELS + kept / 2).any():", ":", CODEC, "test_rows_that_name_no_class_or_no_largest_entry_are_refused"),
    _m("compressed bytes without a limit", "fedkd/codecs.py", "stream.decompress(data, size + 1)", "stream.decompress(data)", CODEC, "test_a_few_bytes_that_stand_for_many_are_not_blown_up"),
    _m("further examples by the seed of each party", "fedkd/data/augment.py", "int(proxy.hash, 16)", "id(proxy)", AUGMENTED, "test_server_and_clients_make_the_same_examples_of_the_same_file"),
    _m("further examples not counted", CONTRACT, "    there = pool(offer.examples, offer.augment)", "    there = 10**9", POLICY, "test_more_than_there_is_cannot_be_asked"),
    _m("a plan beyond the examples that there are", CONTRACT, "int(plan.asked[-1]) < contract.pool", "True", POLICY, "test_no_more_is_answered_than_the_policy_allows_however_it_is_made"),
    _m("examples that cannot be made", AGENT, "        if not fits(self._proxy, offer.augment):", "        if False:", POLICY, "test_what_cannot_be_made_of_the_proxy_set_is_refused_before_it_costs"),
    _m("more answers where every one costs", "fedkd/config/scenario.py", 'if self.augment.kind != "none" and', "if False and", AUGMENTED, "test_where_every_answer_costs_more_of_them_are_refused"),
    # -- what turns cells into inputs
    _m("scales fitted on private rows", "simulations/split.py", "encoding.fitted(data, train.x[parts.proxy])", "encoding.fitted(data, train.x)", ENCODING, "test_no_private_row_changes_the_proxy_set_or_its_encoding"),
    _m("rows of a client not scaled by the proxy set", "client/learner.py", "sources.load(data, base)", "sources.load(self._config.data, base)", ENCODING, "test_a_deployed_client_encodes_by_the_proxy_set"),
    _m("numeric columns that nobody scaled", "fedkd/data/encoding.py", "if not column.categories and column.mean is None:", "if False:", ENCODING, "test_private_rows_never_scale_themselves"),
    _m("labels in another order", "fedkd/data/encoding.py", "if data.labels and labels and data.labels != labels:", "if False:", ENCODING, "test_a_client_with_another_encoding_does_not_start"),
    _m("categories in another order", "fedkd/data/encoding.py", "if own.categories != known.categories:", "if False:", ENCODING, "test_a_client_with_another_encoding_does_not_start"),
    _m("columns in another order", "fedkd/data/encoding.py", "if names != known:", "if False:", ENCODING, "test_a_client_with_another_encoding_does_not_start"),
    _m("lists that grow with the rows", "fedkd/data/tables.py", "        if str(cell) not in number:\n", "        number.setdefault(str(cell), len(number))\n        if False:\n", TABLES, "test_a_faulty_table_names_file_line_and_column"),
    _m("labels that grow with the folders", "fedkd/data/images.py", "sorted(present - set(data.labels))", "()", IMAGES, "test_what_does_not_belong_is_named"),
    # -- comparisons
    _m("chosen by the test part", "simulations/sweep.py", 'measured["tune_accuracy"]', 'measured["accuracy"]', SWEPT, "test_tuning_looks_at_the_public_split_alone"),
    _m("two units in one column of a comparison", "fedkd/report/comparison_table.py", 'if row.unit in (unit, "none") else "–"', 'if True else "–"', SWEPT, "test_two_units_are_never_in_one_column"),
    _m("one result counted twice", "fedkd/report/comparisons.py", 'if one.config["seed"] == other.config["seed"]:', "if False:", SWEPT, "test_one_result_is_not_counted_twice"),
    _m("another run taken for a cell", "simulations/sweep.py", "return config_hash(config.load(Scenario, self.folder / \"config.yaml\")) == config_hash(self.scenario)", "return True", SWEPT, "test_a_run_that_has_another_configuration_is_not_taken_for_a_cell"),
    _m("a comparison's noise for one of its rounds", BASELINES, "plan.name, \"simulation\", view.proxy.hash, n, classes, n, plan.rounds, ", "plan.name, \"simulation\", view.proxy.hash, n, classes, n, 1, ", COMPARED, "test_a_contract_of_silos_has_the_noise_of_all_their_rounds"),
    _m("silos of DP-SGD weighed by their counts", BASELINES, "by_size=plan.name not in PRIVATE", "by_size=True", COMPARED, "test_dp_silos_are_never_weighed_by_their_private_counts"),
    _m("silos of DP-SGD without a look at the network", BASELINES, "                check_private(self._fresh(self._plans[name]).network)\n", "                pass\n", COMPARED, "test_a_network_that_dp_sgd_cannot_train_is_refused_before_the_first_round"),
    _m("the first weights of FedProx forgotten", SILOS, "(p - start).square()", "p.square()", COMPARED, "test_the_proximal_terms_gradient_is_mu_times_the_way_from_the_start"),
    # -- streams, and what keeps them
    _m("experiences by a count", "fedkd/continual/stream.py", "    marks = fingerprints(examples.x)\n", "    return np.arange(len(examples)) % blocks\n    marks = fingerprints(examples.x)\n", STREAM, "test_leaving_one_example_out_moves_no_other_one"),
    _m("lists of classes grown from labels", "fedkd/continual/stream.py", "in enumerate(class_lists(stream, train.classes, seed, client))\n    ]", "in enumerate(class_lists(stream, int(train.y.max(initial=0)) + 1, seed, client))\n    ]", STREAM, "test_the_lists_of_classes_are_fixed_whatever_labels_are_there"),
    _m("anchor with mass on new classes", "fedkd/continual/anchor.py", "said.masked_fill(~known, -torch.inf)", "said", METHODS, "test_the_anchor_keeps_old_answers_on_proxies_without_mass_on_new_classes"),
    _m("anchor that moves", "fedkd/continual/methods.py", "        loss = super().loss(network, some)\n        if self._distillation is None:\n", "        loss = super().loss(network, some)\n        if self._now.before:\n            self.begin(network, self._now)\n        if self._distillation is None:\n", METHODS, "test_the_anchor_stays_frozen_while_the_network_learns"),
    _m("buffer without a bound", "fedkd/continual/replay.py", ".argsort(stable=True)[: self._capacity]", ".argsort(stable=True)", METHODS, "test_a_buffer_is_bounded_and_holds_what_has_come"),
    _m("limit of another block", "fedkd/config/policy.py", "        return self.block_epsilons.get(block, self.epsilon)\n", "        return self.epsilon\n", POLICY, "test_every_block_may_have_a_limit_of_its_own"),
    _m("lowest limit forgotten", "fedkd/config/policy.py", "            return min([self.epsilon, *self.block_epsilons.values()])\n", "            return self.epsilon\n", POLICY, "test_what_touches_all_blocks_keeps_the_lowest_limit"),
    _m("answers about a proxy set that is not here", "client/agent.py", "        self._check_held(offer.proxy)\n", "", REFRESH, "test_a_client_that_holds_the_old_version_says_so_and_goes_on_with_it"),
    _m("soft labels of a proxy set that is not here", "client/agent.py", "        self._check_held(plan.proxy)\n", "", REFRESH, "test_a_client_that_holds_the_old_version_says_so_and_goes_on_with_it"),
    _m("weights on features that they were not trained on", "client/agent.py", "        if known not in (None, view.features_hash) and", "        if False and", REFRESH, "test_a_version_with_other_features_is_refused_once_a_student_has_learned"),
    _m("block changed under its contract", "client/agent.py", "check_plan(self.policy, contract, plan, self.config.block)", "check_plan(self.policy, contract, plan, contract.events[0].blocks[0] if contract else \"all\")", POLICY, "test_a_contract_of_one_block_does_not_pay_for_a_block_with_a_lower_limit"),
    _m("limits of blocks that nothing is added to", BOOK, "*more], accountant, block_of(more))", "*more], accountant)", POLICY, "test_every_block_may_have_a_limit_of_its_own"),
    _m("garbage asked for ever", "server/tally.py", "return self._strikes[client] >= STRIKES", "return False", GARBAGE, "test_who_sends_only_garbage_is_asked_no_more_and_has_no_influence"),
    _m("quarantine forgotten at a restart", "server/loop.py", 'Quarantine(strikes)', "Quarantine()", GARBAGE, "test_a_resumed_run_remembers_whom_it_has_left_out"),
    _m("replayed reply taken", "fedkd/coordinator.py", "if (answers.run, answers.client, answers.round, answers.plan) != expected:", "if False:", GARBAGE, "test_a_replayed_reply_is_refused_and_told"),
    _m("damaged checkpoint used", "server/run.py", "if mark != digest(pack(arrays, meta)):", "if False:", GARBAGE, "test_a_damaged_checkpoint_costs_a_round_and_not_the_run"),
    _m("round given up while clients start again", "server/loop.py", "return tally.silent(self._setting.clients) > 0 and seconds < self._setting.patience", "return False", ENDS, "test_a_round_waits_for_a_client_that_starts_again"),
    _m("failing app started for ever", "server/commands.py", "self.status == FAILED and not self.details.startswith(_RAISED)", "self.status == FAILED", ENDS, "test_an_app_that_ends_with_an_error_of_its_own_is_not_started_again"),
    _m("one relay's flood passed on", "server/gate.py", "if not self._allowances[name].enter():", "if not self._allowances[name].enter() and False:", GATE, "test_a_flood_of_one_relay_is_turned_away_and_told_once_and_others_are_served"),
    _m("caller says where it is", "server/gate.py", "proxy_headers=False,", "proxy_headers=True,", GATE, "test_any_request_of_a_stranger_is_refused_and_the_log_stays_short"),
    _m("half a file left on a full disk", "fedkd/state.py", "        temporary.unlink(missing_ok=True)  # on a full disk", "        pass  # on a full disk", DISK, "test_an_agent_on_a_full_disk_answers_nothing_and_later_the_same_bytes_for_one_charge"),
    _m("console filled by garbage", "client/console.py", "if self._malformed <= MALFORMED_TOLD:", "if True:", FUZZ, "test_the_console_is_told_of_garbage_a_hundred_times_at_most"),
    # -- what a review has found
    _m("votes of an earlier round given again", BOOK, "        if round < self._chain.last_round(run) and _is_noised_elsewhere(charge):\n", "        if False:\n", POLICY, "test_votes_of_a_round_whose_total_has_left_are_not_given_again"),
    _m("a sum noised again from an older checkpoint", "server/run.py", "            if not (again and self._previous.exists()):\n", "            if not self._previous.exists():\n", "tests/unit/test_garbage.py", "test_what_the_server_has_noised_is_never_gone_back_to"),
    _m("students of other shards go on", "client/learner.py", "        if students != len(self._lineages):\n", "        if students < len(self._lineages):\n", POLICY, "test_students_of_other_shards_are_no_start_for_votes"),
    _m("lost rounds charged by today's policy alone", COSTS, "(*own, *(event for event in earlier if not any(_covers(one, event) for one in own)))", "(*own,)", COSTED, "test_a_lost_round_is_charged_for_all_that_it_may_have_been"),
    _m("one data under two blocks", AGENT, "        if known not in (None, self.config.block):\n", "        if False:\n", POLICY, "test_data_that_has_been_charged_is_not_charged_as_another_block"),
    _m("no protection at the server's choice", "fedkd/config/policy.py", 'if "none" in self.also and self.mechanism != "none":', "if False:", POLICY, "test_a_policy_that_lets_the_server_choose_no_protection_is_refused"),
    _m("a delta that protects nobody", "fedkd/config/policy.py", "self.delta * self.nominal_examples >= 1:", "self.delta >= 1:", POLICY, "test_a_delta_that_admits_publishing_an_example_is_refused"),
    _m("the aggregator's noise the same in every round", "fedkd/coordinator.py", 'key = simulation_key(self._config.seed, "aggregator", run, round) if simulated else fresh_key()', 'key = simulation_key(self._config.seed, "aggregator", run, 1)', "tests/unit/test_coordinator.py", "test_the_aggregators_noise_is_fresh_unless_every_client_simulates"),
    _m("the aggregator's noise reproducible for one who simulates", "fedkd/coordinator.py", 'all(demand.noise == "simulation" for demand in demands)', 'any(demand.noise == "simulation" for demand in demands)', "tests/unit/test_coordinator.py", "test_the_aggregators_noise_is_fresh_unless_every_client_simulates"),
    _m("less noise under an old contract", CONTRACT, 'loud = contract.mechanism == "none" or all(', 'loud = True or all(', RELEASE, "test_a_stricter_policy_holds_at_once_also_under_an_old_contract"),
    _m("the filter's order chosen after the fact", LIMITS, "self.first or more", "[*self.events, *more]", POLICY, "test_the_order_of_the_filter_is_the_first_contracts"),
    _m("architecture of a further mechanism not looked at", AGENT, '"dp_sgd" in (self.policy.mechanism, *self.policy.also)', '"dp_sgd" == self.policy.mechanism', SGD, "test_an_agent_does_not_start_with_batch_norm"),
    _m("labels outside the snapshot", "client/learner.py", 'pack({"x": own.x, "y": own.y}, {})', 'pack({"x": own.x}, {})', LEDGER, "test_other_data_never_meets_the_same_noise"),
    _m("other shards under an old contract", CONTRACT, 'shards = contract.mechanism != "votes" or contract.shards == policy.shards', "shards = True", POLICY, "test_other_shards_end_a_contract"),
)
# fmt: on


def applies(mutant: Mutant, root: Path = ROOT) -> bool:
    """Whether the old text is there, exactly once."""
    return (root / mutant.file).read_text().count(mutant.old) == 1


def copy(to: Path) -> None:
    """What the tests need of the checkout."""
    for name in COPIED:
        source, target = ROOT / name, to / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.tmp"))
        else:
            shutil.copy(source, target)


def run_tests(root: Path, nodes: list[str]) -> tuple[int, str]:
    """Exit code of pytest, and its report. For a process of its own, which has imported nothing of the checkout yet."""
    import pytest

    sys.path.insert(0, str(root))
    os.chdir(root)
    sys.dont_write_bytecode = True  # a mutant may have the size and the second of the original
    options = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    report = io.StringIO()
    with contextlib.redirect_stdout(report), contextlib.redirect_stderr(report):
        code = int(pytest.main([*options, *nodes]))
    import fedkd

    if not Path(fedkd.__file__).is_relative_to(root.resolve()):
        raise RuntimeError("the tests did not run on the copy")
    return code, report.getvalue()


def try_out(mutant: Mutant) -> str | None:
    """The test that killed the mutant; None if it survives. Raises RuntimeError if it could not be tried."""
    if not applies(mutant):
        raise RuntimeError("its old text is not there exactly once")
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        root = Path(folder)
        copy(root)
        path = root / mutant.file
        path.write_text(path.read_text().replace(mutant.old, mutant.new))
        code, report = run_tests(root, mutant.nodes)
    if code == 0:
        return None
    failed = [line for line in report.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    if code != 1 or not failed:
        raise RuntimeError(f"pytest ended with {code}: {report.strip().splitlines()[-1:]}")
    return failed[0].partition(" ")[2].partition(" - ")[0].partition("::")[2]


def verdict(mutant: Mutant) -> tuple[bool, str]:
    """Whether it was killed, and a line that says by what."""
    try:
        killer = try_out(mutant)
    except RuntimeError as error:
        return False, f"{mutant.name} | NOT TRIED: {error}"
    return killer is not None, f"{mutant.name} | {killer or 'SURVIVED'}"


def check_unchanged(chosen: Sequence[Mutant]) -> str | None:
    """The report of the tests if they fail without any mutant."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy(Path(folder))
        code, report = run_tests(Path(folder), sorted({node for mutant in chosen for node in mutant.nodes}))
    return report if code else None


def main(names: list[str]) -> int:
    """Try the named mutants, or all."""
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    unknown = set(names) - {mutant.name for mutant in chosen}
    if unknown:
        print("no such mutant:", ", ".join(sorted(unknown)))
        return 1
    for name in SLOW_IMPORTS:
        importlib.import_module(name)
    good = True
    # every mutant in a fresh fork, which has the slow imports already
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        report = pool.apply(check_unchanged, (chosen,))
        if report is not None:
            print("the tests do not pass without a mutant:", report, sep="\n")
            return 1
        print("mutant | killed by")
        for killed, line in pool.imap(verdict, chosen):
            print(line, flush=True)
            good &= killed
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
