//! What governed workload identity needs, and the test that shows each.
//!
//! A test of `tests/house.rs` looks whether every test that is named here is there.
//!
//! | # | capability | shown by |
//! |---|---|---|
//! | 1 | a distinct identity for each workload, never shared | `tests/control_plane/registry.rs::two_names_for_the_same_process_are_refused`, `tests/control_plane/registry.rs::a_key_serves_one_name` |
//! | 2 | identity is proof of what runs, at run time | `tests/callers.rs::one_byte_more_is_another_program`, `tests/callers.rs::where_what_runs_is_attested_a_caller_must_be_in_the_list` |
//! | 3 | the node's identity is rooted in hardware; evidence before issuance | `tests/attacks/admission.rs::a_genuine_tpm_waits_until_somebody_admits_it`, `tests/attacks/identity.rs::a_software_key_beside_a_real_ek_attests_nothing`, the vectors of `tests/verify` |
//! | 4 | an owner for each workload | `src/control_plane/cli/args.rs::a_workload_needs_owner_purpose_place_and_selector`, `tests/control_plane/registry.rs::who_leaves_hands_over_or_leaves_nothing_behind` |
//! | 5 | a purpose, from a closed vocabulary where one is configured | `tests/control_plane/registry.rs::a_workload_is_suspended_resumed_and_changed_in_place`, `tests/control_plane/policy.rs::a_bundle_is_in_force_at_the_next_request_and_what_is_live_is_held_to_it` |
//! | 6 | a tier; one that nobody stated counts as 1 (`--tier` is not required: the command's form is fixed) | `src/control_plane/policy/tests/table.rs::no_input_is_dead`, `tests/control_plane/governance.rs::what_nobody_looks_at_is_due_and_then_suspended` |
//! | 7 | who leaves hands over, or their identities end | `tests/first_light.rs::an_owner_who_leaves_takes_their_identities_along` |
//! | 8 | an inventory instead of a spreadsheet | `src/control_plane/registry/inventory/tests.rs::its_rows_and_sums_are_the_stores_facts` |
//! | 9 | identity apart from the storage of secrets | there is no secret broker in this version: nothing of it can be needed |
//! | 10 | policy as code, decided at request time | `tests/control_plane/policy.rs::a_bundle_is_in_force_at_the_next_request_and_what_is_live_is_held_to_it` |
//! | 11 | no input of a decision is dead | `src/control_plane/policy/tests/table.rs::no_input_is_dead` |
//! | 12 | roles and attributes; a forbid wins | `src/control_plane/policy/tests/bundles.rs::a_forbid_wins_over_a_permit` |
//! | 13 | what was asked for narrows to what is granted (RFC 9396) | `tests/control_plane/grants.rs::a_token_says_what_was_granted_and_no_more`, `tests/tokens/enforcement.rs::a_token_permits_what_it_names_and_nothing_else` |
//! | 14 | approvals, exceptions and policy repeatable as code | `tests/control_plane/policy.rs::bundles_come_in_order_and_signed_by_enough`, `tests/control_plane/declared.rs::a_plan_is_shown_and_exactly_that_is_done_once` |
//! | 15 | a decision can be explained and made again | `src/control_plane/policy/tests/bundles.rs::ten_thousand_decisions_are_made_again_identically` |
//! | 16 | denied by default, and whenever something fails | `tests/control_plane/policy.rs::nothing_is_permitted_without_the_bundle_that_was_in_force`, `src/control_plane/policy/tests/bundles.rs::an_error_denies_whether_a_permit_or_a_forbid_has_it` |
//! | 17 | a bundle's own tests run before it counts | `tests/control_plane/policy.rs::a_bundle_whose_tests_fail_stays_out` |
//! | 18 | just in time, as short as the least that bounds it | `src/control_plane/policy/tests/random.rs::a_hundred_thousand_lifetimes_are_the_least_of_all_that_bounds_them` |
//! | 19 | for one task, audience and destination | `tests/tasks/life.rs::a_task_s_token_names_task_audience_and_what_was_granted`, `tests/control_plane/grants.rs::a_task_has_tokens_of_its_own_and_each_has_another_id` |
//! | 20 | taken back when the task ends | `tests/tasks/ends.rs::a_hundred_of_each_end_are_recorded_with_their_reasons` |
//! | 21 | … when it fails, is killed, runs out of memory, falls silent | `tests/tasks/ends.rs::a_hundred_of_each_end_are_recorded_with_their_reasons`, `tests/tasks/life.rs::a_task_has_its_own_credentials_renewed_while_it_lives` |
//! | 22 | … when its scope changes | `tests/tasks/withdrawn.rs::another_program_another_cgroup_is_another_scope`, `tests/callers.rs::a_caller_that_changes_loses_its_stream_within_a_second` |
//! | 23 | released only while the measurements stay valid | `tests/freshness.rs::no_release_after_an_extend_was_answered_1`, `tests/runtime.rs::no_release_after_a_disallowed_entry_was_extended` |
//! | 24 | rotation that no application sees | `tests/rotation.rs::a_rotation_under_load_cuts_nobody_off`, `tests/first_light.rs::rotation_is_pushed_at_half_life`; not ten minutes of it |
//! | 25 | revocation at machine speed | `tests/revocation/hundred.rs::a_workload_on_a_hundred_nodes_is_revoked`; a thousand nodes on request, in software |
//! | 26 | every record joined to identity, lease and decision | `tests/soak.rs::every_credential_has_one_issue_its_releases_and_one_end`, `tests/control_plane/records.rs::records_that_join_nothing_are_orphans` |
//! | 27 | tampering shows | `src/agent/journal/tests.rs::a_changed_byte_anywhere_is_found_and_named`, `src/control_plane/audit/tests.rs::a_changed_byte_in_any_column_is_found_and_named` |
//! | 28 | recorded before it is released | `tests/audit/durable.rs::a_record_is_on_the_disk_before_its_credential_leaves`, `tests/audit/full.rs::nothing_is_released_that_cant_be_recorded` |
//! | 29 | reviews that come due, and suspend | `tests/control_plane/governance.rs::what_nobody_looks_at_is_due_and_then_suspended` |
//! | 30 | a token outside its job is noticed and taken back | `tests/control_plane/records.rs::a_token_of_a_task_that_two_show_is_taken_back` |
//! | 31 | shown to an auditor | `tests/control_plane/governance.rs::a_report_asks_this_server_and_says_what_it_cannot_show` |
