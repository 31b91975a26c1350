//! The calls that a search has not placed yet: a list of their events by time, and a set of bits.
//!
//! The events of the answered calls are a list by time. Lifting a call takes both its events out of
//! the list; backtracking puts them in again, in the opposite order. Calls of unknown outcome have
//! no return and are not in the list. A set of lifted calls is kept as the words of its bits from
//! the first word that is not full, so its size does not grow with the history.
//!
//! Both searches use this: that of the store's operations and that of a [model](super::model).

/// Number of a call: the answered ones first, then those of unknown outcome.
pub(super) type CallId = usize;

/// Place in the list of events. 0 is the head of the list, which also follows the last event.
pub(super) type Event = usize;

const BITS: usize = u64::BITS as usize;

pub(super) struct Pending {
    answered: usize,
    next: Vec<Event>,
    previous: Vec<Event>,
    /// Bits of the lifted calls. The answered calls come first; the others start at a word of their
    /// own.
    lifted: Vec<u64>,
    /// Words of `lifted` below this one are full.
    full_words: usize,
    answered_lifted: usize,
}

fn call_event(id: CallId) -> Event {
    1 + 2 * id
}

/// The call that the event belongs to.
pub(super) fn owner(event: Event) -> CallId {
    (event - 1) / 2
}

/// Returns true if the event is a call, and false if it is a return or the head of the list.
pub(super) fn is_call(event: Event) -> bool {
    event % 2 == 1
}

impl Pending {
    /// `times` are those of the answered calls, call and return; `open_count` calls of unknown
    /// outcome follow them.
    pub(super) fn new(times: &[(u64, u64)], open_count: usize) -> Self {
        let count = times.len();
        let mut events: Vec<(u64, bool, Event)> = Vec::with_capacity(2 * count);
        for (id, (called_at, returned_at)) in times.iter().enumerate() {
            // At equal times calls come before returns: intervals that touch overlap.
            events.push((*called_at, false, call_event(id)));
            events.push((*returned_at, true, call_event(id) + 1));
        }
        events.sort_unstable();
        let (mut next, mut previous) = (vec![0; 2 * count + 1], vec![0; 2 * count + 1]);
        let mut last = 0;
        for (_, _, event) in events {
            (next[last], previous[event]) = (event, last);
            last = event;
        }
        (next[last], previous[0]) = (0, last);
        let words = count.div_ceil(BITS) + open_count.div_ceil(BITS);
        Self {
            answered: count,
            next,
            previous,
            lifted: vec![0; words],
            full_words: 0,
            answered_lifted: 0,
        }
    }

    /// The first event that is left, or 0 if none is.
    pub(super) fn first(&self) -> Event {
        self.next[0]
    }

    /// The event after this one. For a call that was just lifted: the event that now stands in the
    /// place of its own.
    pub(super) fn after(&self, event: Event) -> Event {
        match self.is_lifted(owner(event)) {
            true => self.next[self.previous[event]],
            false => self.next[event],
        }
    }

    /// The answered call that returns first among those that are left.
    ///
    /// # Panics
    /// If no answered call is left.
    pub(super) fn first_to_return(&self) -> CallId {
        let mut event = self.next[0];
        while is_call(event) {
            event = self.next[event];
        }
        assert_ne!(event, 0, "a call that is in the list has its return there");
        owner(event)
    }

    /// Returns true if every answered call is lifted.
    pub(super) fn all_answered_lifted(&self) -> bool {
        self.answered_lifted == self.answered
    }

    pub(super) fn is_lifted(&self, id: CallId) -> bool {
        let (word, bit) = self.bit(id);
        self.lifted[word] & bit != 0
    }

    pub(super) fn lift(&mut self, id: CallId) {
        let (word, bit) = self.bit(id);
        assert_eq!(self.lifted[word] & bit, 0, "each is lifted once");
        self.lifted[word] |= bit;
        if id < self.answered {
            self.answered_lifted += 1;
            for event in [call_event(id), call_event(id) + 1] {
                let (before, after) = (self.previous[event], self.next[event]);
                (self.next[before], self.previous[after]) = (after, before);
            }
        }
    }

    /// Takes back the last lift, which was that of this call.
    pub(super) fn unlift(&mut self, id: CallId) {
        let (word, bit) = self.bit(id);
        assert_ne!(self.lifted[word] & bit, 0, "it was lifted");
        self.lifted[word] &= !bit;
        if id < self.answered {
            self.full_words = self.full_words.min(id / BITS);
            self.answered_lifted -= 1;
            for event in [call_event(id) + 1, call_event(id)] {
                let (before, after) = (self.previous[event], self.next[event]);
                (self.next[before], self.previous[after]) = (event, event);
            }
        }
    }

    /// The set of lifted calls, equal for equal sets of one history.
    pub(super) fn lifted_set(&mut self) -> Box<[u64]> {
        let open_from = self.answered.div_ceil(BITS);
        while self.full_words < open_from && self.lifted[self.full_words] == u64::MAX {
            self.full_words += 1;
        }
        let (mut end, mut count) = (self.full_words, self.full_words * BITS);
        while count < self.answered_lifted {
            count += self.lifted[end].count_ones() as usize;
            end += 1;
        }
        // The number of full words tells where the words of the answered calls end: the others are
        // always as many.
        let mut set = Vec::with_capacity(1 + end - self.full_words + self.lifted.len() - open_from);
        set.push(self.full_words as u64);
        set.extend_from_slice(&self.lifted[self.full_words..end]);
        set.extend_from_slice(&self.lifted[open_from..]);
        set.into_boxed_slice()
    }

    fn bit(&self, id: CallId) -> (usize, u64) {
        let place = match id.checked_sub(self.answered) {
            None => id,
            Some(open) => self.answered.div_ceil(BITS) * BITS + open,
        };
        (place / BITS, 1 << (place % BITS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A call of the first word is taken back while later words stay full.
    #[test]
    fn different_calls_are_different_sets() {
        let times: Vec<(u64, u64)> = (0..4 * BITS as u64).map(|at| (at, 1_000 + at)).collect();
        let mut pending = Pending::new(&times, 0);
        for id in 1..3 * BITS {
            pending.lift(id);
        }
        pending.lift(0);
        let all = pending.lifted_set();
        pending.unlift(0);
        let without_the_first = pending.lifted_set();
        pending.lift(3 * BITS);
        let another_instead = pending.lifted_set();
        pending.unlift(3 * BITS);
        assert_eq!(pending.lifted_set(), without_the_first);
        pending.lift(0);
        assert_eq!(pending.lifted_set(), all);
        assert!(all != without_the_first && all != another_instead);
        assert_ne!(without_the_first, another_instead);
        // The same number of calls, of which one is another.
        pending.unlift(0);
        pending.unlift(3 * BITS - 1);
        pending.lift(0);
        pending.lift(3 * BITS);
        assert_ne!(pending.lifted_set(), all);
    }
}
