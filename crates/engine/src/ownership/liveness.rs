//! Whether another node lives, as far as this one can see. It does no I/O, and compares no two machines' clocks.
//!
//! Every node keeps a *watch*, its boot and a counter on an object of its own. An observer looks at both now and then, and counts by its
//! own clock (one that goes on while the machine sleeps) how long neither gave a sign. It counts only time in which its own
//! lease was good: what it cannot see because *it* is cut off, or because the platform stands still, is nobody's death.

use std::time::Duration;

use dunnage_driver::Sign;
use dunnage_model::BootId;

/// How long a silent node whose clients have a volume open is only suspected.
pub const SUSPECT_FOR: Duration = Duration::from_secs(5 * 60);

/// How a node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It gave a sign of life not long ago, or we have not looked for long enough.
    Alive,
    /// Its daemon is silent, and a client of it has the volume open: its task may live.
    Suspect,
    /// Nothing of it was seen for long enough.
    Dead,
}

/// What one node has seen of a run of another. Times are readings of the observer's clock.
#[derive(Debug, Clone)]
pub struct Observer {
    boot: BootId,
    /// Another run of the node has the lease: this one has ended, whatever the clocks say.
    succeeded: bool,
    counter: Option<u64>,
    /// The last reading at which it gave a sign: its watch was there, or its counter another than before.
    sign: Duration,
    /// The last reading at which there was something to see.
    looked: Duration,
}

impl Observer {
    /// Begins to look.
    pub fn new(boot: BootId, now: Duration) -> Observer {
        Observer { boot, succeeded: false, counter: None, sign: now, looked: now }
    }

    /// What was asked for at `asked` and answered at `answered`: a sign counts as late as it can have been given, and that there is
    /// none as early. A node that never had a lease (`None`) gives no sign.
    pub fn see(&mut self, asked: Duration, answered: Duration, seen: Option<Sign>) {
        self.looked = self.looked.max(asked);
        let Some(Sign { boot, watched, counter }) = seen else { return };
        if boot != self.boot {
            self.succeeded = true;
            return;
        }
        if watched || self.counter != Some(counter) {
            self.sign = self.sign.max(answered);
        }
        self.counter = Some(counter);
    }

    /// How it stands, as seen until the last look, where nobody may be silent for longer than `silence`. `lease` is the reading
    /// since when our own lease has been good without a break; `open` says whether a client of it has the volume open.
    pub fn standing(&self, silence: Duration, lease: Option<Duration>, open: bool) -> Standing {
        if self.succeeded {
            return Standing::Dead;
        }
        match (self.silent(lease) >= silence, open) {
            (false, _) => Standing::Alive,
            (true, false) => Standing::Dead,
            (true, true) if self.silent(lease) >= SUSPECT_FOR => Standing::Dead,
            (true, true) => Standing::Suspect,
        }
    }

    /// For how long it has given no sign while we looked, and could see.
    pub fn silent(&self, lease: Option<Duration>) -> Duration {
        lease.map_or(Duration::ZERO, |lease| self.looked.saturating_sub(self.sign.max(lease)))
    }
}
