//! What happens in a chat database: message `n` and what comes with it follow from a seed. Pure.
//!
//! The shape is that of real messengers: rows at the end of a table, identifiers that scatter over an index, receipts
//! that follow their message, small pictures that do not compress.

use crate::random::{Random, Vocabulary};

/// Chats of the database; a few have most of the messages.
pub(crate) const CHATS: usize = 200;
/// People who write.
const PEOPLE: usize = 400;
const EMOJI: [&str; 8] = ["👍", "❤️", "😂", "😮", "😢", "🙏", "🎉", "👀"];
/// One message in so many has a picture: about 45 bytes a message.
const MEDIA_EVERY: u64 = 55;
/// One live message goes out about every half minute.
const MS_A_MESSAGE: i64 = 37_000;
const FIRST_MS: i64 = 1_600_000_000_000;

/// A message and the events that follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) n: i64,
    pub(crate) chat: i64,
    pub(crate) sender: i64,
    /// Random, as UUIDs are.
    pub(crate) stanza: [u8; 16],
    pub(crate) sent_ms: i64,
    pub(crate) body: String,
    pub(crate) media: Option<Media>,
    /// Receipts of this or of earlier messages: message and person.
    pub(crate) receipts: Vec<(i64, i64)>,
    /// A reaction to this or an earlier message.
    pub(crate) reaction: Option<(i64, i64, &'static str)>,
}

/// A picture's row; the picture itself is a file elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Media {
    pub(crate) file: String,
    pub(crate) bytes: i64,
    pub(crate) thumbnail: Vec<u8>,
}

/// Message `n`, which is at least 1.
pub(crate) fn message(words: &Vocabulary, seed: u64, n: i64) -> Message {
    let mut random = Random::new(seed, n as u64);
    let mut stanza = [0; 16];
    random.fill(&mut stanza);
    let recent = |random: &mut Random| n - (random.below(20) as i64).min(n - 1);
    let mut receipts = Vec::new();
    while receipts.len() < 3 && random.percent(45) {
        receipts.push((recent(&mut random), random.rank(PEOPLE) as i64));
    }
    let reaction = random
        .percent(10)
        .then(|| (recent(&mut random), random.rank(PEOPLE) as i64, EMOJI[random.rank(EMOJI.len())]));
    let media = random.below(MEDIA_EVERY) == 0;
    Message {
        n,
        chat: random.rank(CHATS) as i64,
        sender: random.rank(PEOPLE) as i64,
        stanza,
        sent_ms: FIRST_MS + n * MS_A_MESSAGE,
        body: words.text(&mut random),
        media: media.then(|| picture(&mut random, n)),
        receipts,
        reaction,
    }
}

fn picture(random: &mut Random, n: i64) -> Media {
    let mut thumbnail = vec![0; 1500 + random.below(2000) as usize];
    random.fill(&mut thumbnail);
    Media { file: format!("media/{n:08}.jpg"), bytes: 50_000 + random.below(1_000_000) as i64, thumbnail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_a_message_names_messages_that_exist() {
        let words = Vocabulary::new();
        for n in 1..500 {
            let message = message(&words, 1, n);
            assert!(message.receipts.iter().all(|&(of, _)| of >= 1 && of <= n));
            assert!(message.reaction.is_none_or(|(of, _, _)| of >= 1 && of <= n));
        }
    }

    #[test]
    fn a_message_depends_on_nothing_but_seed_and_number() {
        let words = Vocabulary::new();
        assert_eq!(message(&words, 3, 40), message(&words, 3, 40));
        assert_ne!(message(&words, 3, 40).stanza, message(&words, 4, 40).stanza);
    }
}
