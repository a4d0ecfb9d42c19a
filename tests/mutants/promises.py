"""Faults that break a promise: one line of the worker or the runner changed, and the test that must notice.

Read by test_promises.py, which plants each in a copy of the package and runs the promise's own test.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FAULTS", "Fault"]


@dataclass(frozen=True)
class Fault:
    """`old`, which stands once in `file`, becomes `new`; `test` (in tests/promises) must then fail by assertion."""

    promise: int
    what: str
    file: str
    old: str
    new: str
    test: str


FAULTS = (
    Fault(
        1,
        "a refused job is dropped without a word",
        "worker/sending.py",
        "await self.outcomes.give_up(job, verdicts.rejected(job, error))",
        "pass",
        "test_every_fate_of_a_job_gives_each_task_exactly_one_outcome",
    ),
    Fault(
        1,
        "an outcome that the host did not take is dropped",
        "worker/outcomes.py",
        "await asyncio.sleep(backoff.next())",
        "break",
        "test_an_outcome_that_the_host_does_not_take_is_offered_again",
    ),
    Fault(
        1,
        "a task that is offered again runs again",
        "worker/engine.py",
        "if task.id in self._ledger:",
        "if False:",
        "test_a_task_that_is_offered_twice_runs_once",
    ),
    Fault(
        2,
        "the backend's FAILED is believed before the store is looked at",
        "worker/polling.py",
        "await self.results.collect()",
        "pass",
        "test_a_result_counts_although_the_backend_says_failed",
    ),
    Fault(
        2,
        "no grace for a result that lags behind its job",
        "worker/tracking.py",
        "and now - self.final_since < rules.grace_s",
        "and False",
        "test_success_without_a_result_waits_out_the_grace",
    ),
    Fault(
        2,
        "evidence of a dead attempt ends a job that lives",
        "worker/tracking.py",
        "if self._is_absent(now, rules.settle_s):",
        "if self.evidence or self._is_absent(now, rules.settle_s):",
        "test_evidence_of_a_dead_attempt_does_not_beat_the_result_of_the_next",
    ),
    Fault(
        3,
        "one omission is enough",
        "worker/tracking.py",
        "return self.omissions > 1 and now - self.omitted_since >= settle_s",
        "return now - self.omitted_since >= settle_s",
        "test_one_omission_is_never_enough",
    ),
    Fault(
        3,
        "two omissions in quick succession are enough",
        "worker/tracking.py",
        "return self.omissions > 1 and now - self.omitted_since >= settle_s",
        "return self.omissions > 1",
        "test_omissions_count_only_when_they_are_settle_s_apart",
    ),
    Fault(
        3,
        "another job under a reused id is taken for ours",
        "worker/polling.py",
        "or status.name not in {None, job.name}:",
        "or False:",
        "test_a_status_under_another_name_is_another_job",
    ),
    Fault(
        3,
        "the rest of a vanished pack is sent again without stop markers",
        "worker/polling.py",
        "if verdict is Verdict.VANISHED:",
        "if False:",
        "test_the_rest_of_a_vanished_pack_is_sent_again_behind_stop_markers",
    ),
    Fault(
        4,
        "a failed poll is taken for an empty answer",
        "worker/polling.py",
        "failed = error",
        "self._take_in({job_id: asked[job_id] for job_id in some}, [])",
        "test_jobs_are_kept_and_the_user_is_told_while_polls_fail",
    ),
    Fault(
        4,
        "failed polls are repeated as fast as before",
        "worker/polling.py",
        "delay = backoff.next()",
        "delay = shortest",
        "test_failed_polls_back_off",
    ),
    Fault(
        4,
        "one batch that fails ends the round",
        "worker/polling.py",
        "failed = error",
        "raise",
        "test_one_bad_batch_does_not_hide_the_others",
    ),
    Fault(
        5,
        "an ambiguous submit is sent again at once",
        "worker/sending.py",
        "self.spawn(self._look_up(job, error))\n                return",
        "continue",
        "test_a_submit_that_worked_without_an_answer_makes_one_job",
    ),
    Fault(
        5,
        "one look is enough to send again",
        "worker/sending.py",
        "for look in range(2):",
        "for look in range(1):",
        "test_a_submit_that_did_not_work_is_sent_again_after_settling",
    ),
    Fault(
        5,
        "the second of two jobs under one name is left running",
        "worker/sending.py",
        "await self._cancel_twins(job, ids[1:])",
        "pass",
        "test_of_two_jobs_under_one_name_one_is_cancelled",
    ),
    Fault(
        5,
        "retries are not bounded by the user's number",
        "worker/polling.py",
        "entry.attempts < self.retries",
        "entry.attempts <= self.retries",
        "test_retries_are_bounded_and_counted",
    ),
    Fault(
        6,
        "a job that is over keeps its slot through the grace",
        "worker/polling.py",
        "self.ledger.holders.discard(job)",
        "pass",
        "test_a_job_that_is_over_frees_its_slot_before_the_grace_is",
    ),
    Fault(
        6,
        "a slot is freed by a poll only, not by its results",
        "worker/ledger.py",
        "            job.settled_at = now\n            self.holders.discard(job)",
        "            job.settled_at = now",
        "test_results_free_their_slots_while_a_poll_hangs",
    ),
    Fault(
        6,
        "a job that outlives its last outcome is left alone",
        "worker/tracking.py",
        "if self.settled_at is not None and now - self.settled_at >= _LINGER_S:",
        "if False:",
        "test_a_job_that_outlives_its_last_outcome_is_cancelled",
    ),
    Fault(
        6,
        "a cancel that failed is forgotten",
        "worker/cancelling.py",
        "await asyncio.sleep(delay)\n                continue",
        "await asyncio.sleep(delay)",
        "test_a_cancel_that_fails_is_sent_again",
    ),
    Fault(
        7,
        "a later result takes the place of the first",
        "runner/pack.py",
        "self.store.put(self._key(place, where), data, create=True)",
        "self.store.put(self._key(place, where), data)",
        "test_of_two_runs_the_first_result_wins_and_the_second_is_recorded",
    ),
    Fault(
        7,
        "a second run leaves no record",
        "runner/pack.py",
        "if nonce != self.attempt:",
        "if False:",
        "test_of_two_runs_the_first_result_wins_and_the_second_is_recorded",
    ),
    Fault(
        7,
        "a task whose result is there is run again",
        "runner/pack.py",
        'if self._patiently(lambda: self.store.exists(self._key(place, "result"))):',
        "if False:",
        "test_a_task_whose_result_is_there_is_not_run_again",
    ),
    Fault(
        7,
        "a second run is not counted",
        "worker/results.py",
        'self._ledger.counts["second_runs"] += 1',
        "pass",
        "test_the_worker_counts_a_second_run",
    ),
    Fault(
        10,
        "a plain method runs on the event loop",
        "worker/calls.py",
        "return await _in_thread(lambda: _collected(function(*arguments), collect))",
        "return _collected(function(*arguments), collect)",
        "test_a_blocking_adapter_does_not_block_the_event_loop",
    ),
    Fault(
        10,
        "the worker looks for results although there are no jobs",
        "worker/results.py",
        "await self._ledger.until(lambda: bool(self._ledger.holders))",
        "pass",
        "test_an_idle_worker_makes_no_call_and_uses_no_cpu_to_speak_of",
    ),
    Fault(
        10,
        "the store's folders are open to everybody",
        "store.py",
        "each.mkdir(mode=0o700, exist_ok=True)",
        "each.mkdir(exist_ok=True)",
        "test_the_store_is_for_its_owner_alone",
    ),
    Fault(
        11,
        "a large argument travels in each task's payload",
        "worker/blobs.py",
        "_SHARED_ABOVE = 16 << 10",
        "_SHARED_ABOVE = 16 << 30",
        "test_an_argument_that_a_hundred_tasks_share_is_stored_once",
    ),
    Fault(
        11,
        "a shared argument goes with the first task that is done",
        "worker/blobs.py",
        "shared.holders -= 1",
        "shared.holders = 0",
        "test_a_shared_argument_goes_with_the_last_task_that_needs_it",
    ),
    Fault(
        11,
        "what a job had in the store stays there",
        "worker/storage.py",
        "await self.do(self.store.delete, unwanted)",
        "pass",
        "test_nothing_of_a_delivered_task_stays_in_the_store",
    ),
    Fault(
        12,
        "each job is polled by itself",
        "worker/polling.py",
        "size = self.calls.limits.poll_batch or len(ids) or 1",
        "size = 1",
        "test_a_round_of_polls_takes_as_few_calls_as_the_limit_allows",
    ),
    Fault(
        12,
        "more ids than the backend takes are asked for at once",
        "worker/polling.py",
        "size = self.calls.limits.poll_batch or len(ids) or 1",
        "size = len(ids) or 1",
        "test_a_round_of_polls_takes_as_few_calls_as_the_limit_allows",
    ),
    Fault(
        12,
        "each task is a job of its own",
        "worker/sending.py",
        "entries = self.ledger.waiting.pack(self.plan.tasks_per_job)",
        "entries = self.ledger.waiting.pack(1)",
        "test_submits_do_not_grow_with_the_tasks_of_a_pack",
    ),
    Fault(
        12,
        "polls do not slow down while there is no news",
        "worker/polling.py",
        "min(longest, delay * 1.5)",
        "delay",
        "test_polls_slow_down_while_there_is_no_news",
    ),
)
