//! Reads of ranges take turns, so that no list keeps anybody waiting: neither the other readers nor the threads that serve requests.
//!
//! A read runs on a thread of [`pool`] while it has a turn. There are fewer turns than cores; a turn is over after about a millisecond, and
//! then it goes to whoever is next in a fair order of flows ([`pintle_base::fair`]), charged with what it did. Within a flow those who had
//! least come first. So a short range waits for one slice of each other flow at most, however long the lists are; and it is read by the thread
//! whose slice is over, before that goes on: nobody has to be woken for it.
//!
//! Who is not done after the first slice is large: it needs a place among a bounded number that hold memory, a thread and a view of the
//! state, of which no flow gets more than half. If there is none it waits, holding nothing, and begins anew.
//!
//! Always holds: reads that run are as many as `running` says, those inside another's pause not counted.

mod pool;
mod reading;

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};

use parking_lot::{Condvar, Mutex};
use pintle_base::clock::{self, Instant};
use pintle_base::fair;
use tokio::sync::oneshot;

use self::pool::Pool;
pub(crate) use self::reading::Reading;
use crate::error::StoreError;
use crate::limits;

/// Rows between two looks at the clock.
const ROWS_UNTIMED: u32 = 64;

pub(crate) struct Readers {
    state: Mutex<State>,
    /// Turns there are.
    turns: usize,
    pool: Pool,
}

#[derive(Default)]
struct State {
    running: usize,
    waiting: fair::Queue<Waiter>,
    /// Large reads, all and by flow.
    large: usize,
    large_of: BTreeMap<u64, usize>,
    large_waiting: fair::Queue<oneshot::Sender<Large>>,
}

/// Who gets a turn next.
enum Waiter {
    /// A read that has not begun.
    Job(Job),
    /// One between two slices.
    Thread(Arc<Parked>),
}

/// A read that has not begun.
struct Job {
    flow: u64,
    place: Option<Large>,
    asker: Weak<()>,
    run: Box<dyn FnOnce(Turn) + Send>,
}

#[derive(Default)]
struct Parked {
    woken: Mutex<bool>,
    changed: Condvar,
}

impl Parked {
    fn wake(&self) {
        *self.woken.lock() = true;
        self.changed.notify_one();
    }

    fn wait(&self) {
        let mut woken = self.woken.lock();
        while !*woken {
            self.changed.wait(&mut woken);
        }
    }
}

impl Readers {
    /// One core is always left to everything else.
    pub fn start() -> io::Result<Arc<Self>> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self::with_turns(cores.saturating_sub(1).max(1))
    }

    fn with_turns(turns: usize) -> io::Result<Arc<Self>> {
        // Who waits between two slices is large and keeps its thread.
        let pool = Pool::start(turns + limits::RANGE_READERS)?;
        Ok(Arc::new(Self { state: Mutex::default(), turns, pool }))
    }

    /// Does `read` when it is its turn. It is broken off once `asker` is dropped.
    ///
    /// # Errors
    /// [`StoreError::Overloaded`] if too many wait, in all or of this flow.
    pub async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        flow: u64,
        place: Option<Large>,
        asker: &Arc<()>,
        read: impl FnOnce(Turn) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let (sender, answer) = oneshot::channel();
        let run = Box::new(move |turn| {
            if !sender.is_closed() {
                let read = catch_unwind(AssertUnwindSafe(|| read(turn)));
                let read = read.inspect_err(|panic| tracing::error!(panic = text(&**panic), "a read panicked"));
                let _ = sender.send(read.ok()); // whoever asked may have gone away
            }
        });
        let job = Job { flow, place, asker: Arc::downgrade(asker), run };
        if let Some(job) = self.enter(job)? {
            self.begin(job);
        }
        answer.await.ok().flatten().ok_or(StoreError::Stopped)
    }

    /// Takes a turn for a job if one is free; otherwise it waits.
    fn enter(&self, job: Job) -> Result<Option<Job>, StoreError> {
        let mut state = self.state.lock();
        if state.running < self.turns && state.waiting.is_empty() {
            state.running += 1;
            return Ok(Some(job));
        }
        let many = state.waiting.len() >= limits::RANGES_WAITING;
        if many || state.waiting.waiting(job.flow) >= limits::RANGES_WAITING_OF_FLOW {
            return Err(StoreError::Overloaded);
        }
        state.waiting.push(job.flow, 0, Waiter::Job(job));
        Ok(None)
    }

    /// Has a thread work with a turn, first on `job`.
    fn begin(self: &Arc<Self>, job: Job) {
        let readers = Arc::clone(self);
        self.pool.run(move || {
            let mut next = Some(job);
            while let Some(job) = next {
                readers.read(job, false);
                next = readers.next();
            }
        });
    }

    fn read(self: &Arc<Self>, job: Job, within_another: bool) {
        let Job { flow, place, asker, run } = job;
        run(Turn {
            readers: Arc::clone(self),
            flow,
            large: place,
            asker,
            within_another,
            slice: 0,
            before: 0,
            rows: 0,
            began: clock::now(),
        });
    }

    /// A turn is over, and not to be gone on with: what the thread that had it does next, if it does anything.
    fn next(&self) -> Option<Job> {
        let mut state = self.state.lock();
        match state.waiting.pop() {
            None => {
                state.running -= 1;
                None
            }
            Some((_, Waiter::Job(job))) => Some(job),
            Some((_, Waiter::Thread(parked))) => {
                parked.wake();
                None
            }
        }
    }

    /// A slice of a large read is over: lets the others have theirs, until it is this one's turn again.
    fn pause(self: &Arc<Self>, flow: u64, work: u64, before: u64) {
        let parked = Arc::<Parked>::default();
        {
            let mut state = self.state.lock();
            state.waiting.charge(flow, work);
            if state.waiting.is_empty() {
                return;
            }
            state.waiting.push(flow, before, Waiter::Thread(Arc::clone(&parked)));
        }
        loop {
            let next = self.state.lock().waiting.pop();
            match next {
                // Short ones are read here, within this pause.
                Some((_, Waiter::Job(job))) if job.place.is_none() => {
                    self.read(job, true);
                    if *parked.woken.lock() {
                        // Another thread has handed its turn to this one, which has one too many.
                        return self.hand_on();
                    }
                }
                Some((_, Waiter::Job(job))) => {
                    self.begin(job);
                    return parked.wait();
                }
                Some((_, Waiter::Thread(other))) => {
                    if !Arc::ptr_eq(&other, &parked) {
                        other.wake();
                        parked.wait();
                    }
                    return;
                }
                // Another thread has just taken this one out, and hands its turn to it.
                None => {
                    self.state.lock().running -= 1;
                    return parked.wait();
                }
            }
        }
    }

    /// Gives a turn to whoever is next.
    fn hand_on(self: &Arc<Self>) {
        if let Some(job) = self.next() {
            self.begin(job);
        }
    }

    /// A place among the large ones, if one is free and nobody waits for it.
    fn try_large(self: &Arc<Self>, flow: u64) -> Option<Large> {
        let mut state = self.state.lock();
        if !state.large_waiting.is_empty() || !state.may_be_large(flow) {
            return None;
        }
        state.add_large(flow);
        Some(Large { readers: Arc::clone(self), flow, held: true })
    }

    /// Waits for such a place.
    pub async fn large(self: &Arc<Self>, flow: u64) -> Result<Large, StoreError> {
        let place = {
            let mut state = self.state.lock();
            if state.large_waiting.len() >= limits::RANGES_WAITING
                || state.large_waiting.waiting(flow) >= limits::RANGES_WAITING_OF_FLOW
            {
                return Err(StoreError::Overloaded);
            }
            let (sender, place) = oneshot::channel();
            state.large_waiting.push(flow, 0, sender);
            place
        };
        self.offer_large();
        place.await.map_err(|_| StoreError::Stopped)
    }

    /// Gives free places to those who wait.
    fn offer_large(self: &Arc<Self>) {
        loop {
            let (flow, sender) = {
                let mut guard = self.state.lock();
                let State { large, large_of, large_waiting, .. } = &mut *guard;
                if *large >= limits::RANGE_READERS {
                    return;
                }
                let few = |flow| large_of.get(&flow).copied().unwrap_or(0) < limits::RANGE_READERS_OF_FLOW;
                let Some((flow, sender)) = large_waiting.pop_of(few) else { return };
                large_waiting.charge(flow, 1);
                guard.add_large(flow);
                (flow, sender)
            };
            if let Err(mut place) = sender.send(Large { readers: Arc::clone(self), flow, held: true }) {
                place.held = false; // it has gone away
                self.state.lock().remove_large(flow);
            }
        }
    }
}

impl State {
    fn may_be_large(&self, flow: u64) -> bool {
        let of_flow = self.large_of.get(&flow).copied().unwrap_or(0);
        self.large < limits::RANGE_READERS && of_flow < limits::RANGE_READERS_OF_FLOW
    }

    fn add_large(&mut self, flow: u64) {
        self.large += 1;
        *self.large_of.entry(flow).or_default() += 1;
    }

    fn remove_large(&mut self, flow: u64) {
        self.large -= 1;
        if let Some(count) = self.large_of.get_mut(&flow) {
            *count -= 1;
            if *count == 0 {
                self.large_of.remove(&flow);
            }
        }
    }
}

/// A place among the large reads.
pub(crate) struct Large {
    readers: Arc<Readers>,
    flow: u64,
    held: bool,
}

impl Drop for Large {
    fn drop(&mut self) {
        if self.held {
            self.readers.state.lock().remove_large(self.flow);
            self.readers.offer_large();
        }
    }
}

/// The right to run now, and the account of what was done with it.
pub(crate) struct Turn {
    readers: Arc<Readers>,
    flow: u64,
    large: Option<Large>,
    /// Dead once nobody waits for the read any more.
    asker: Weak<()>,
    /// Whether another read pauses for this one: then it cannot pause itself.
    within_another: bool,
    /// Work of this slice and of those before it.
    slice: u64,
    before: u64,
    rows: u32,
    began: Instant,
}

impl Turn {
    /// Accounts for one row. Lets others run if it is time. To be broken off if there is no room for one more that is large.
    fn spend(&mut self, bytes: usize) -> ControlFlow<()> {
        self.slice += limits::ROW_COST + bytes as u64;
        self.rows = self.rows.wrapping_add(1);
        let timed = self.rows.is_multiple_of(ROWS_UNTIMED) || bytes > limits::SLICE_BYTES / 8;
        let over = self.slice >= limits::SLICE_BYTES as u64 || (timed && self.began.elapsed() >= limits::SLICE);
        if over { self.end_slice() } else { ControlFlow::Continue(()) }
    }

    fn end_slice(&mut self) -> ControlFlow<()> {
        if self.asker.strong_count() == 0 || self.within_another {
            return ControlFlow::Break(());
        }
        if self.large.is_none() {
            self.large = self.readers.try_large(self.flow);
            if self.large.is_none() {
                return ControlFlow::Break(());
            }
        }
        let work = std::mem::take(&mut self.slice);
        self.before += work;
        self.readers.pause(self.flow, work, self.before);
        self.began = clock::now();
        ControlFlow::Continue(())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.readers.state.lock().waiting.charge(self.flow, self.slice);
    }
}

fn text(panic: &(dyn std::any::Any + Send)) -> &str {
    let owned = || panic.downcast_ref::<String>().map(String::as_str);
    panic.downcast_ref::<&str>().copied().or_else(owned).unwrap_or("unknown panic")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    /// Reads `slices` slices; says whether it came to its end.
    fn read(slices: usize) -> impl FnOnce(Turn) -> bool + Send + 'static {
        move |mut turn| (0..slices).all(|_| turn.spend(limits::SLICE_BYTES).is_continue())
    }

    /// A read that goes on slice by slice until it is told to end.
    struct Endless {
        end: Arc<Mutex<bool>>,
        done: tokio::task::JoinHandle<Result<bool, StoreError>>,
    }

    impl Endless {
        async fn start(readers: &Arc<Readers>, flow: u64) -> Self {
            let end = Arc::new(Mutex::new(false));
            let place = within(readers.large(flow)).await.expect("a place");
            let (begun, waiting) = oneshot::channel();
            let (readers, ending) = (Arc::clone(readers), Arc::clone(&end));
            let done = tokio::spawn(async move {
                let read = move |mut turn: Turn| {
                    let mut begun = Some(begun);
                    while !*ending.lock() {
                        if turn.spend(limits::SLICE_BYTES).is_break() {
                            return false;
                        }
                        if let Some(begun) = begun.take() {
                            begun.send(()).expect("somebody waits");
                        }
                    }
                    true
                };
                readers.run(flow, Some(place), &Arc::new(()), read).await
            });
            within(waiting).await.expect("it began");
            Self { end, done }
        }

        async fn end(self) {
            *self.end.lock() = true;
            assert!(within(self.done).await.expect("it runs").expect("an answer"));
        }
    }

    async fn within<T>(future: impl Future<Output = T>) -> T {
        clock::timeout(DEADLINE, future).await.expect("in time")
    }

    fn idle(readers: &Readers) {
        let state = readers.state.lock();
        assert_eq!((state.waiting.len(), state.large, state.large_of.len()), (0, 0, 0));
    }

    async fn until_idle(readers: &Readers) {
        let over = async {
            while readers.state.lock().running > 0 {
                clock::sleep(Duration::from_millis(1)).await;
            }
        };
        within(over).await;
        idle(readers);
    }

    #[tokio::test]
    async fn a_short_read_is_done_between_two_slices_of_a_list() {
        let readers = Readers::with_turns(1).expect("threads");
        let (list, asker) = (Endless::start(&readers, 1).await, Arc::new(()));
        for flow in [2, 1, 3] {
            assert!(within(readers.run(flow, None, &asker, read(0))).await.expect("an answer"));
        }
        // One that is not short is broken off there, and goes on once it has a place.
        assert!(!within(readers.run(2, None, &asker, read(3))).await.expect("an answer"));
        let place = within(readers.large(2)).await.expect("a place");
        assert!(within(readers.run(2, Some(place), &asker, read(3))).await.expect("an answer"));
        list.end().await;
        until_idle(&readers).await;
    }

    #[tokio::test]
    async fn lists_of_one_flow_take_half_of_the_places() {
        let readers = Readers::with_turns(2).expect("threads");
        let (mut lists, asker) = (Vec::new(), Arc::new(()));
        for _ in 0..limits::RANGE_READERS_OF_FLOW {
            lists.push(Endless::start(&readers, 1).await);
        }
        assert!(!within(readers.run(1, None, &asker, read(1))).await.expect("an answer"));
        let place = readers.large(1);
        tokio::pin!(place);
        assert!(futures::poll!(&mut place).is_pending());
        // Another flow finds room.
        let other = within(readers.large(2)).await.expect("a place");
        assert!(within(readers.run(2, Some(other), &asker, read(3))).await.expect("an answer"));
        lists.pop().expect("a list").end().await;
        let place = within(place).await.expect("a place");
        assert!(within(readers.run(1, Some(place), &asker, read(3))).await.expect("an answer"));
        for list in lists {
            list.end().await;
        }
        until_idle(&readers).await;
    }

    #[tokio::test]
    async fn who_goes_away_takes_nothing_along() {
        let readers = Readers::with_turns(1).expect("threads");
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let asker = Arc::new(());
        let mut holding = Box::pin(readers.run(1, None, &asker, move |_| ended.recv().is_ok()));
        assert!(futures::poll!(&mut holding).is_pending());
        for _ in 0..1000 {
            let asker = Arc::new(());
            let mut gone = Box::pin(readers.run(2, None, &asker, |_| panic!("nobody asked")));
            assert!(futures::poll!(&mut gone).is_pending());
        }
        let mut waiting = Box::pin(readers.run(3, None, &asker, read(0)));
        assert!(futures::poll!(&mut waiting).is_pending());
        end.send(()).expect("it waits");
        assert!(within(holding).await.expect("an answer") && within(waiting).await.expect("an answer"));
        let (gone, begun) = (Arc::new(()), Arc::new(Mutex::new(false)));
        let tell = Arc::clone(&begun);
        let mut list = Box::pin(readers.run(1, None, &gone, move |mut turn: Turn| {
            *tell.lock() = true;
            while turn.spend(limits::SLICE_BYTES).is_continue() {}
        }));
        while !*begun.lock() {
            assert!(futures::poll!(&mut list).is_pending());
            clock::sleep(Duration::from_millis(1)).await;
        }
        drop(list);
        drop(gone);
        until_idle(&readers).await;
    }

    #[tokio::test]
    async fn a_flow_that_waits_too_much_is_refused_and_another_is_not() {
        let readers = Readers::with_turns(1).expect("threads");
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let asker = Arc::new(());
        let mut holding = Box::pin(readers.run(1, None, &asker, move |_| ended.recv().is_ok()));
        assert!(futures::poll!(&mut holding).is_pending());
        let mut waiting = Vec::new();
        for _ in 0..limits::RANGES_WAITING_OF_FLOW {
            let mut one = Box::pin(readers.run(2, None, &asker, read(0)));
            assert!(futures::poll!(&mut one).is_pending());
            waiting.push(one);
        }
        assert!(matches!(readers.run(2, None, &asker, read(0)).await, Err(StoreError::Overloaded)));
        assert!(futures::poll!(Box::pin(readers.run(3, None, &asker, read(0)))).is_pending());
        end.send(()).expect("it waits");
        assert!(within(holding).await.expect("an answer"));
        for one in waiting {
            assert!(within(one).await.expect("an answer"));
        }
        until_idle(&readers).await;
    }

    #[tokio::test]
    async fn many_reads_hand_their_turns_on_and_none_is_lost() {
        for turns in [1, 2, 3] {
            let readers = Readers::with_turns(turns).expect("threads");
            let mut tasks = tokio::task::JoinSet::new();
            for number in 0..300u64 {
                let (readers, flow) = (Arc::clone(&readers), number % 7);
                let slices = if number % 3 == 0 { 5 } else { 0 };
                tasks.spawn(async move {
                    let (asker, mut place) = (Arc::new(()), None);
                    while !readers.run(flow, place, &asker, read(slices)).await.expect("an answer") {
                        place = Some(readers.large(flow).await.expect("a place"));
                    }
                });
            }
            while let Some(ended) = within(tasks.join_next()).await {
                ended.expect("it ends");
            }
            until_idle(&readers).await;
        }
    }
}
