//! Numbers that follow from a seed (SplitMix64), and a made-up vocabulary used as languages use theirs. Pure.

/// Words of the vocabulary: about what one person's chats know.
const WORDS: usize = 30_000;

/// A stream of numbers.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    /// The stream number `stream` of `seed`.
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        let mut mixed = Self(seed ^ stream.wrapping_mul(0xd6e8_feb8_6659_fd93));
        Self(mixed.number())
    }

    /// The next number.
    pub(crate) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }

    /// From 0 to 1, 1 excluded.
    pub(crate) fn fraction(&mut self) -> f64 {
        (self.number() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// True in `percent` of 100 cases.
    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// A rank below `count`: rank r is about as frequent as 1 / (r + 1) says (Zipf).
    pub(crate) fn rank(&mut self, count: usize) -> usize {
        let rank = ((count as f64).ln() * self.fraction()).exp() as usize;
        rank.min(count) - 1
    }

    /// Fills `bytes` with what no program can compress.
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let number = self.number().to_le_bytes();
            chunk.copy_from_slice(&number[..chunk.len()]);
        }
    }
}

/// Made-up words, the frequent ones short.
#[derive(Debug)]
pub(crate) struct Vocabulary(Vec<String>);

impl Vocabulary {
    /// The same words for everybody.
    pub(crate) fn new() -> Self {
        const ONSETS: [&str; 16] =
            ["b", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "st", "tr"];
        const NUCLEI: [&str; 10] = ["a", "e", "i", "o", "u", "ai", "ei", "ea", "en", "er"];
        let mut random = Random::new(0, 0);
        let mut word = |rank: usize| {
            let syllables = 1 + (rank as f64 + 1.0).ln() as u64 / 3 + random.below(2);
            let mut word = String::new();
            for _ in 0..syllables {
                word.push_str(ONSETS[random.below(16) as usize]);
                word.push_str(NUCLEI[random.below(10) as usize]);
            }
            word
        };
        Self((0..WORDS).map(&mut word).collect())
    }

    /// A message of about nine words: most are shorter, some much longer.
    pub(crate) fn text(&self, random: &mut Random) -> String {
        let words = 1 + (-(1.0 - random.fraction()).ln() * 8.0) as usize;
        let mut text = String::new();
        for _ in 0..words.min(200) {
            text.push_str(&self.0[random.rank(WORDS)]);
            text.push(' ');
        }
        text.pop();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_and_stream_give_the_same_text() {
        let words = Vocabulary::new();
        let text = |seed, stream| words.text(&mut Random::new(seed, stream));
        assert_eq!(text(1, 2), text(1, 2));
        assert_ne!(text(1, 2), text(1, 3));
        assert_ne!(text(1, 2), text(2, 2));
    }

    #[test]
    fn the_first_words_are_used_most() {
        let mut random = Random::new(1, 1);
        let mut uses = [0; 4];
        for _ in 0..10_000 {
            uses[(random.rank(10_000) + 1).ilog10() as usize] += 1;
        }
        // every decade of ranks is about as frequent as the next
        assert!(uses.iter().all(|&uses| (2300..2700).contains(&uses)), "{uses:?}");
    }
}
