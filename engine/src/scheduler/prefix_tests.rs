use std::sync::Arc;

use super::*;
use crate::image::{Normalize, Pixels, PreparedImage, Tile};
use crate::prompt::{Reach, Source, Span};

fn picture(level: u8) -> Media {
    let tile = Tile { height: 1, width: 1, pixels: Pixels::Rgb8(vec![level; 3]) };
    let (rows, cols, normalize) = (0, 0, Normalize::IDENTITY);
    Media::from(PreparedImage { tiles: vec![tile], rows, cols, normalize, assembly: None })
}

fn of(prompt: &Prompt, media: &[Media]) -> Vec<Key> {
    chain(prompt, media, None, &prompt.tokens)
}

#[test]
fn pages_in_common() {
    let text = |tokens: &[u32]| of(&Prompt::text(tokens.to_vec()), &[]);
    let tokens: Vec<u32> = (0..100).collect();
    let all = text(&tokens);
    assert_eq!(all.len(), 100 / PAGE);
    for other in [0, 1, 15, 16, 40, 95, 99] {
        let mut changed = tokens.clone();
        changed[other] += 1;
        assert_eq!(common(&all, &text(&changed)), (other / PAGE).min(all.len()), "token {other}");
        assert_eq!(common(&all, &text(&tokens[..other])), other / PAGE);
    }
    assert_eq!(common(&all, &all), all.len());
}

/// Whatever keys and values follow from changes the hash of its page and of those after it, and of none before.
#[test]
fn what_a_page_follows_from() {
    let base = Prompt {
        tokens: vec![1; 96],
        spans: vec![Span { media: 0, rows: 0..40, at: 20 }],
        positions: Positions::Axes { at: (0..96).map(|i| [i; 3]).collect(), next: 96 },
        blocks: std::iter::once(70..90).collect(),
        memory: vec![3],
        reaches: vec![Reach { from: 50, rows: 0..3, early: false }],
        ..Prompt::default()
    };
    let media = [picture(1)];
    let chain = of(&base, &media);
    let changed = |change: &dyn Fn(&mut Prompt)| {
        let mut prompt = base.clone();
        change(&mut prompt);
        common(&chain, &of(&prompt, &media))
    };
    assert_eq!(changed(&|_| ()), 6);
    assert_eq!(changed(&|prompt| prompt.spans[0].at = 19), 1);
    assert_eq!(changed(&|prompt| prompt.spans[0].rows = 1..41), 1);
    assert_eq!(changed(&|prompt| prompt.blocks[0].end = 91), 4);
    assert_eq!(changed(&|prompt| prompt.reaches[0].from = 48), 3);
    assert_eq!(changed(&|prompt| prompt.reaches[0].early = true), 3);
    assert_eq!(changed(&|prompt| prompt.memory = vec![4]), 0);
    let moved = |prompt: &mut Prompt| {
        if let Positions::Axes { at, .. } = &mut prompt.positions {
            at[33][2] += 1;
        }
    };
    assert_eq!(changed(&moved), 2);
    // Another picture: at once where it is remembered, else where it stands.
    assert_eq!(common(&chain, &of(&base, &[picture(2)])), 0);
    let seen = Prompt { memory: vec![], reaches: vec![], ..base.clone() };
    assert_eq!(common(&of(&seen, &[picture(1)]), &of(&seen, &[picture(2)])), 1);
    // What cannot be compared has no pages in common.
    let given = Media::from(crate::prompt::Features::default());
    assert!(of(&base, &[given]).is_empty());
    let source = Source { tokens: vec![1], spans: vec![] };
    assert!(of(&Prompt { source, ..base }, &media).is_empty());
}

#[test]
fn blocks_are_taken_whole() {
    let prompt = Prompt { tokens: vec![0; 100], blocks: vec![20..50, 50..64], ..Prompt::default() };
    for (pages, taken) in [(0, 0), (1, 1), (2, 1), (3, 1), (4, 4), (5, 5), (6, 6), (9, 6)] {
        assert_eq!(whole(&prompt, pages), taken, "{pages} pages");
    }
    assert_eq!(whole(&Prompt::text(vec![0; 64]), 4), 3, "a token is left to read");
    assert_eq!(whole(&Prompt::text(vec![]), 4), 0);
}

#[test]
fn pictures_of_the_same_pixels() {
    let key = |media: &Media| media.key();
    assert_eq!(key(&picture(1)), key(&picture(1)));
    assert_ne!(key(&picture(1)), key(&picture(2)));
    let Media::Picture(one) = picture(1) else { unreachable!() };
    let other = |change: &dyn Fn(&mut PreparedImage)| {
        let mut image = (**one).clone();
        change(&mut image);
        image.key() == one.key()
    };
    assert!(other(&|_| ()));
    assert!(!other(&|image| image.rows = 1));
    assert!(!other(&|image| image.normalize.std[2] = 2.0));
    assert!(!other(&|image| image.tiles[0].width = 3));
    assert!(!other(&|image| image.tiles[0].pixels = Pixels::F32(vec![1.0; 3])));
    assert!(!other(&|image| image.assembly = Some(crate::image::Assembly::of_rows(vec![0]))));
    assert_eq!(Arc::strong_count(&one), 1);
}
