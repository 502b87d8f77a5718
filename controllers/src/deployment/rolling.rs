//! The sizes of a deployment's replica sets during a rollout and when it is resized. Pure.

use std::cmp::Reverse;

use super::plan::{Draft, Input};
use super::revision::{self, DESIRED, MAX};

impl Draft<'_> {
    /// How large the newest set may be now.
    pub(super) fn room_for_newest(&self, at: usize) -> i32 {
        if self.fence.recreate {
            return self.wanted();
        }
        let (now, total) = (self.sets[at].replicas(), self.total());
        let room = self.fence.max_total() - total;
        if room <= 0 { now } else { now + room.min(self.wanted() - now).max(0) }
    }

    fn total(&self) -> i32 {
        self.sets.iter().map(|set| set.replicas()).fold(0, i32::saturating_add)
    }

    /// One step of a rolling update: grow the newest set, or else shrink the old ones.
    pub(super) fn roll(&mut self) {
        let created = self.newest.is_none();
        self.ensure_newest();
        let Some(newest) = self.newest else { return };
        if created || self.grow_or_trim(newest) {
            return;
        }
        self.shrink_old(newest);
    }

    fn grow_or_trim(&mut self, newest: usize) -> bool {
        let (now, wanted) = (self.sets[newest].replicas(), self.wanted());
        if now == wanted {
            return false;
        }
        let to = if now > wanted { wanted } else { self.room_for_newest(newest) };
        self.scale(newest, to)
    }

    fn shrink_old(&mut self, newest: usize) {
        let min_available = self.wanted() - self.fence.max_unavailable;
        let new_unavailable = self.sets[newest].replicas() - self.sets[newest].available();
        let budget = self.total() - min_available - new_unavailable;
        if budget <= 0 {
            return;
        }
        self.drop_unhealthy(budget);
        self.drop_available(min_available);
    }

    /// Takes old pods that are not available first: that costs nothing.
    fn drop_unhealthy(&mut self, budget: i32) {
        let mut left = budget;
        for at in self.old() {
            let (size, available) = (self.sets[at].replicas(), self.sets[at].available());
            let drop = left.min(size - available).max(0);
            if left > 0 && drop > 0 {
                self.scale(at, size - drop);
                left -= drop;
            }
        }
    }

    /// Takes as many available old pods as availability allows.
    fn drop_available(&mut self, min_available: i32) {
        let available: i32 = self.sets.iter().map(|set| set.available()).fold(0, i32::saturating_add);
        let mut left = available - min_available;
        for at in self.old() {
            let size = self.sets[at].replicas();
            let drop = left.min(size).max(0);
            if left > 0 && drop > 0 {
                self.scale(at, size - drop);
                left -= drop;
            }
        }
    }

    /// One step of a recreation: everything old ends before anything new begins.
    pub(super) fn recreate(&mut self, input: &Input<'_>) {
        let mut shrunk = false;
        for at in self.old() {
            if self.sets[at].replicas() > 0 {
                shrunk |= self.scale(at, 0);
            }
        }
        let old_pods = self.old().any(|at| input.busy.contains(self.sets[at].uid()));
        if shrunk || old_pods {
            return;
        }
        self.ensure_newest();
        if let Some(newest) = self.newest {
            self.scale(newest, self.wanted());
        }
    }

    /// True if the wanted size changed since the sets were last sized.
    pub(super) fn is_resized(&self) -> bool {
        let wanted = self.wanted();
        let mut active = self.sets.iter().filter(|set| set.replicas() > 0);
        active.any(|set| revision::noted(&set.set, DESIRED).is_some_and(|desired| desired != wanted))
    }

    /// Spreads a changed size over the sets that have pods, without moving the rollout on.
    pub(super) fn resize(&mut self) {
        if let Some(only) = self.active_or_latest() {
            self.scale(only, self.wanted());
            return;
        }
        if self.newest.is_some_and(|newest| self.is_saturated(newest)) {
            for at in self.old() {
                if self.sets[at].replicas() > 0 {
                    self.scale(at, 0);
                }
            }
        } else if !self.fence.recreate {
            self.resize_in_proportion();
        }
    }

    /// The one set with pods; without any, the newest, or the one made last.
    fn active_or_latest(&self) -> Option<usize> {
        let active: Vec<usize> = (0..self.sets.len()).filter(|at| self.sets[*at].replicas() > 0).collect();
        match active[..] {
            [] => self.newest.or(self.sets.len().checked_sub(1)),
            [only] => Some(only),
            _ => None,
        }
    }

    fn is_saturated(&self, at: usize) -> bool {
        let (set, wanted) = (&self.sets[at], self.wanted());
        set.replicas() == wanted && revision::noted(&set.set, DESIRED) == Some(wanted) && set.available() == wanted
    }

    /// Each active set gets its share of what is added or taken; the largest gets what rounding leaves.
    fn resize_in_proportion(&mut self) {
        let mut active: Vec<usize> = (0..self.sets.len()).filter(|at| self.sets[*at].replicas() > 0).collect();
        let total: i32 = active.iter().map(|at| self.sets[*at].replicas()).fold(0, i32::saturating_add);
        let allowed = if self.wanted() > 0 { self.fence.max_total() } else { 0 };
        let to_add = allowed - total;
        // Growth favours newer sets, shrinking hits older ones first.
        if to_add > 0 {
            active.sort_by_key(|at| (Reverse(self.sets[*at].replicas()), Reverse(*at)));
        } else {
            active.sort_by_key(|at| (Reverse(self.sets[*at].replicas()), *at));
        }
        let mut added = 0;
        let mut sizes = Vec::with_capacity(active.len());
        for at in &active {
            let share = self.share(*at, to_add, added);
            sizes.push(self.sets[*at].replicas() + share);
            added += share;
        }
        if let Some(first) = sizes.first_mut() {
            *first = (*first + to_add - added).max(0);
        }
        for (at, size) in active.into_iter().zip(sizes) {
            self.scale(at, size);
        }
    }

    /// The part of `to_add` that belongs to one set, of which `added` is given away already.
    fn share(&self, at: usize, to_add: i32, added: i32) -> i32 {
        let size = self.sets[at].replicas();
        if size == 0 || to_add == 0 || to_add == added {
            return 0;
        }
        let (fraction, left) = (self.fraction(at, size), to_add - added);
        if to_add > 0 { fraction.min(left) } else { fraction.max(left) }
    }

    /// By how much a set of `size` would change if it grew like the whole deployment.
    fn fraction(&self, at: usize, size: i32) -> i32 {
        if self.wanted() == 0 {
            return -size;
        }
        let noted = revision::noted(&self.sets[at].set, MAX).filter(|max| *max > 0);
        let before = noted.unwrap_or_else(|| self.total().max(1));
        let scaled = f64::from(size) * f64::from(self.fence.max_total()) / f64::from(before);
        // The quotient of two i32 products stays within i32 for any stored size, and the cast saturates.
        scaled.round() as i32 - size
    }
}
