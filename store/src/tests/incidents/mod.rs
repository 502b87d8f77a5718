//! One test for each incident of etcd's that could happen in a system like this one, named after etcd's issue, CVE or advisory. Each
//! says what happened there and what keeps it from happening here.
//!
//! Those that another test shows already, or that need several members or real processes:
//!
//! | incident | what happened | shown by |
//! |---|---|---|
//! | #11651 | a member restored its users without their roles, and judged otherwise than the rest | `tests::auth::users_and_roles_survive_a_restart_and_a_snapshot`, #14571 here |
//! | #14140, Jepsen | a reader saw an entry that was not synced, and a crash took it away | `pintle_raft::sim::nothing_acknowledged_is_lost_*`: every read is checked against what is left after the crashes |
//! | #14370 | a member alone answered before its log was synced | `pintle_raft::sim::etcd_14370_*` |
//! | #15220 | progress overtook queued events | `tests::watching::progress_comes_after_the_events_it_speaks_of`, `the_report_of_an_idle_watch_does_not_overtake_an_event` |
//! | #15271 | a snapshot was installed, and watchers got events again | `tests::watching::watches_survive_a_replaced_state_without_repetition` |
//! | #17529 | a slow watcher lost a batch | `tests::watching::a_slow_watcher_reads_the_ring_and_then_the_disk_and_misses_nothing` |
//! | #18055 | a second snapshot came while the first was installed, and the member panicked | `pintle_raft::snapshot::tests::etcd_18055_*` |
//! | #20221 | a watch of the future got earlier events once its member was restored | `tests::watching::a_watch_of_the_future_gets_nothing_before_its_start_also_after_the_state_was_replaced` |
//! | #20418 | a process that was paused answered a read with an index confirmed before the read came | `pintle-tests`, `incidents::etcd_20418_*` |
//! | #19557, #20967 | membership was kept in two places, and removed or promoted members came back as they had been | `pintle-tests`, `incidents::etcd_19557_20967_*` |
//! | Jepsen 3.4.3 | a lock was given to who had lost its lease while waiting | `tests::recipes::who_lost_its_lease_while_it_waited_does_not_get_the_lock`, `a_contender_whose_key_went_before_its_turn_was_looked_at_has_nothing` |
//! | #9888 | every change of the leader gave leases their full time again | `lease::tests::a_change_of_the_leader_costs_no_lease_and_prolongs_none_beyond_the_grace`; after a restore: `tests::snapshot::users_roles_leases_and_alarms_come_back` |
//! | formats of other versions | were read as if they were one's own | `mvcc::record::tests`, `pintle_raft::codec::tests`: each record names its format, an unknown one is refused |
//! | CVE-2021-28235 | passwords were logged | `pintle-tests`, `store::users_of_etcdctl_log_in_and_may_do_what_their_roles_say` |
//! | CVE-2018-5702 | a page of a rebound host name used the gateway | `tests::gateway::pages_of_named_origins_read_answers_and_foreign_hosts_get_none` |
//! | CVE-2020-15106, -15112 | a crafted log entry panicked the member | `pintle_raft::codec::tests`, `pintle_raft::log::tests`, and the fuzz targets |
//! | CVE-2026-33413 | calls were served to anybody because nobody had listed them | `etcd::gate::tests::every_method_of_the_protocol_has_the_rule_it_should_have`, `tests::auth::every_call_is_judged_by_who_makes_it` |
//! | CVE-2026-44283 | previous values and leases of puts in a transaction were not judged | `tests::auth::what_a_request_could_touch_counts_not_only_what_it_names`, CVE-2026-33343 here |
//! | GHSA-xg4h-6gfc-h4m8 | who might read one key watched everything after it | `tests::auth::a_watch_needs_the_right_to_read_what_it_watches` |
//! | GHSA-3wh4-j44w-pg92 | one of several listeners did not look at the revocation list | `pintle-tests`, `store_tls::ghsa_3wh4_j44w_pg92_*` |
//!
//! Not possible here: #15114 and #15136 of 2020 (there is no gateway that forwards to endpoints it discovered).

mod access;
mod connections;
mod crash;
mod history;
