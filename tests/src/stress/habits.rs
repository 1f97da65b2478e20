//! How an app and its helpers behave: everything that apps were seen to do, and what the format allows.

use crate::stack::random::Random;

/// Every page size that SQLite has.
pub const PAGE_SIZES: [u32; 8] = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536];

/// The settings of the writers of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Habits {
    /// Of each process that writes.
    pub writers: Vec<Vec<String>>,
    /// Of each process that only visits.
    pub visitors: Vec<Vec<String>>,
    /// Encrypted by the app, with a key that we do not have.
    pub cipher: bool,
    /// The log may not be read while it is written, or at all: a capture may be refused.
    pub may_refuse: bool,
}

impl Habits {
    /// One app with these options.
    pub fn one(options: &str) -> Self {
        Self { writers: vec![words(options)], visitors: Vec::new(), cipher: false, may_refuse: true }
    }

    /// The same, encrypted.
    pub fn encrypted(options: &str) -> Self {
        Self { cipher: true, ..Self::one(options) }
    }

    /// Anything. `cipher`: the program for encrypted databases is there.
    pub fn random(random: &mut Random, cipher: bool) -> Self {
        let journal = *random.pick(&["wal", "wal", "wal", "wal", "wal", "delete", "truncate", "persist"]);
        let cipher = cipher && random.one_in(6);
        let mut common = words(&format!("--journal {journal}"));
        let mut add = |option: &str, value: u64| common.extend([option.to_owned(), value.to_string()]);
        if !cipher {
            add("--page-size", u64::from(*random.pick(&PAGE_SIZES)));
            if random.one_in(3) {
                add("--mmap-mb", 64);
            }
        }
        if random.one_in(3) {
            add("--cache-pages", 5);
        }
        if random.one_in(8) {
            add("--dawdle-ms", random.between(1, 10));
        }
        let kinds = ["none", "none", "full", "incremental"];
        common.extend(words(&format!("--auto-vacuum {}", random.pick(&kinds))));
        common.extend(words(&format!("--sync {}", random.pick(&["off", "normal", "full"]))));

        let processes = if cipher { 1 } else { *random.pick(&[1, 1, 1, 2, 3]) };
        let visitors = if cipher { 0 } else { *random.pick(&[0, 0, 1, 2]) };
        let shared = processes + visitors > 1;
        let log = journal == "wal";
        let writer = |random: &mut Random| {
            let mut options = common.clone();
            let mut add = |option: &str, value: u64| options.extend([option.to_owned(), value.to_string()]);
            let rates: &[u64] = if log { &[20, 100, 400, 1500] } else { &[4, 15, 40] };
            add("--rate", *random.pick(rates));
            if log {
                add("--autocheckpoint", *random.pick(&[0, 1, 7, 20, 100, 300, 1000]));
                add("--checkpoint-every", *random.pick(&[0, 0, 3, 25, 100]));
            }
            add("--reopen-every", *random.pick(&[0, 0, 0, 4, 50]));
            add("--rollback-every", *random.pick(&[0, 0, 30]));
            add("--vacuum-every", *random.pick(&[0, 0, 40, 150]));
            if !cipher {
                add("--resize-every", *random.pick(&[0, 0, 0, 60]));
                add("--switch-every", *random.pick(&[0, 0, 0, 35]));
            }
            if log && random.one_in(6) {
                options.push("--truncate-each".to_owned());
            }
            if cipher {
                options.extend(words("--busy-timeout-ms 20000"));
            }
            if shared {
                options.extend(words("--shared --busy-timeout-ms 20000"));
            }
            options
        };
        let writers = (0..processes).map(|_| writer(random)).collect();
        let visitor = |random: &mut Random| {
            let pages = *random.pick(&[0, 10, 200, 1000]);
            words(&format!("--visitor --shared --busy-timeout-ms 20000 --autocheckpoint {pages}"))
        };
        let visitors = (0..visitors).map(|_| visitor(random)).collect();
        Self { writers, visitors, cipher, may_refuse: true }
    }

    /// Nobody waits for locks: whoever sees one that is ours fails.
    pub fn alone(&self) -> bool {
        // The program for encrypted databases outlives the one that started it for a moment.
        self.writers.len() + self.visitors.len() == 1 && !self.cipher
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}
