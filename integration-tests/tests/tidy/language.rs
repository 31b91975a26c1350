//! The language of comments: plain words, a noun or a verb first, 100 columns.

/// The widest line with a comment.
pub(crate) const COLUMNS_MAX: usize = 100;

/// Words that hide the actor, and metaphors that have a term of the field: (word, what to write).
const WORDS: &[(&str, &str)] = &[
    ("whoever", "the actor: leader, follower, peer, client, caller, operator"),
    ("whomever", "the actor"),
    ("somebody", "the actor"),
    ("nobody", "the actor: `no node`, `no client`"),
    ("anybody", "the actor: `any node`, `any client`"),
    ("hear", "`receive`, `observe`, `learn`"),
    ("hears", "`receives`, `observes`, `learns`"),
    ("heard", "`received`, `observed`, `learned`"),
    ("word counts", "`its votes and acknowledgements are counted`"),
    ("filled up", "`readmitted`, `caught up`"),
    ("see to", "the action"),
    ("sees to", "the action"),
    ("for ever", "`forever`, or the consequence"),
    ("any more", "`no longer`"),
];

/// First words of a comment that put the reader off.
const OPENERS: &[&str] = &["What", "Who", "Whom", "Whose", "Of", "Whether", "As [`"];

/// The comment of a line, if there is one, and whether it takes the whole line.
fn comment(line: &str) -> Option<(&str, bool)> {
    let trimmed = line.trim_start();
    if let Some(rest) = trimmed.strip_prefix("//") {
        return Some((rest.trim_start_matches(['/', '!']).trim(), true));
    }
    line.split_once(" // ").map(|(_, comment)| (comment.trim(), false))
}

fn contains_word(text: &str, word: &str) -> bool {
    let is_part =
        |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    let text = text.to_ascii_lowercase();
    text.match_indices(word).any(|(start, found)| {
        let before = start.checked_sub(1).and_then(|place| text.as_bytes().get(place));
        !is_part(before) && !is_part(text.as_bytes().get(start + found.len()))
    })
}

/// The lines of a source text that break a rule, each with the rule.
pub(crate) fn offences(text: &str) -> Vec<(usize, String)> {
    let mut offences = Vec::new();
    let mut is_start = true;
    for (number, line) in text.lines().enumerate() {
        let Some((comment, takes_line)) = comment(line) else {
            is_start = true;
            continue;
        };
        if line.chars().count() > COLUMNS_MAX {
            offences.push((number + 1, format!("wider than {COLUMNS_MAX} columns")));
        }
        if let Some((word, instead)) = WORDS.iter().find(|(word, _)| contains_word(comment, word)) {
            offences.push((number + 1, format!("`{word}`: write {instead}")));
        }
        let opener = OPENERS.iter().find(|opener| {
            let rest = comment.strip_prefix(**opener);
            rest.is_some_and(|rest| {
                opener.ends_with('`') || !rest.starts_with(|next: char| next.is_alphanumeric())
            })
        });
        if let Some(opener) = opener.filter(|_| is_start && !comment.contains('?')) {
            offences.push((
                number + 1,
                format!("opens with `{opener}`: begin with the noun or the verb"),
            ));
        }
        is_start = comment.is_empty() || !takes_line;
    }
    offences
}
