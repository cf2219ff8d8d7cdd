//! The built-in English text: the King James Bible, which is in the public domain, as it comes with the
//! crate `bible-lib` (MIT). Verse references are not part of the text that the crate returns.
//!
//! Chapters are lines, books follow each other in canonical order: 3.4 MB. The crate ends each verse at its first
//! colon, so the text is abridged; the version is pinned because the demo's figures depend on every byte. The brackets that mark words added by the
//! translators and the quotation marks of one edition are dropped, so that it is plain prose.

use bible_lib::{Bible, Translation};

/// The whole text, the same on every call.
pub fn text() -> String {
    let bible = Bible::new(Translation::KingJames).expect("the text is compiled in");
    let mut text = String::with_capacity(4 << 20);
    for book in bible.get_sorted_books() {
        let mut chapters = bible.get_chapters(&book).expect("a listed book exists");
        chapters.sort_unstable();
        for chapter in chapters {
            let chapter = bible
                .get_chapter(&book, chapter, false)
                .expect("a listed chapter exists");
            text.extend(
                chapter
                    .trim_end()
                    .chars()
                    .filter(|c| !matches!(c, '[' | ']' | '‹' | '›')),
            );
            text.push('\n');
        }
    }
    text
}

/// Splits a text into training and validation: the last `fraction` of its bytes, cut after a line.
pub fn split(text: &str, fraction: f64) -> (&str, &str) {
    let mut cut = ((text.len() as f64) * (1.0 - fraction)) as usize;
    while !text.is_char_boundary(cut) {
        cut -= 1;
    }
    let cut = text[..cut].rfind('\n').map_or(cut, |newline| newline + 1);
    text.split_at(cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_plain_prose_in_canonical_order() {
        let text = text();
        assert!(text.starts_with(
            "In the beginning God created the heaven and the earth. And the earth was without form"
        ));
        assert!(text.ends_with("be with you all. Amen.\n"));
        assert_eq!(text.lines().count(), 1189, "chapters");
        assert_eq!(text.len(), 3_418_207);
        assert!(text.is_ascii());
    }

    #[test]
    fn split_cuts_after_a_line() {
        let (train, validation) = split("one\ntwo\nthree\nfour\n", 0.3);
        assert_eq!(train, "one\ntwo\n");
        assert_eq!(validation, "three\nfour\n");
        let (train, validation) = split("ééé", 0.5);
        assert_eq!((train, validation), ("é", "éé"));
    }
}
