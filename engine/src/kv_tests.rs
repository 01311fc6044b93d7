use ocelli_kernels::Caps;

use super::*;
use crate::ctx::Precision;

fn cache(groups: &[KvGroup], pages: &[usize]) -> KvCache {
    let (mut cx, _) = Ctx::dry(Caps::default(), Precision::default());
    KvCache::new(&mut cx, &KvLayout(groups.to_vec()), pages).unwrap()
}

const ALL: KvGroup = KvGroup { layers: 2, heads: 1, head_dim: 2, keep: Keep::All, blocks: Blocks::Whole };
const MEMORY: KvGroup = KvGroup { keep: Keep::Memory, ..ALL };
const STATE: KvGroup = KvGroup { keep: Keep::State, ..ALL };

#[test]
fn pages_come_and_go() {
    let mut kv = cache(&[ALL], &[5]);
    let (a, b) = (kv.open(0), kv.open(0));
    assert_eq!(kv.extend(a, PAGE + 1).unwrap()[0].len(), PAGE + 1);
    assert_eq!(kv.extend(b, 2 * PAGE).unwrap()[0][0], 2 * PAGE as i32);
    assert_eq!(kv.free_pages(0), 1);
    kv.extend(a, PAGE - 1).unwrap();
    kv.extend(a, 1).unwrap();
    assert!(kv.extend(b, 1).is_err(), "page 5 is taken");
    assert_eq!(kv.len(b), 2 * PAGE, "a refused extension changes nothing");
    kv.truncate(a, PAGE);
    assert_eq!((kv.len(a), kv.free_pages(0)), (PAGE, 2));
    kv.close(a);
    assert_eq!(kv.free_pages(0), 3);
    assert!(kv.extend(a, 1).is_err());
    assert_eq!(kv.extend(b, 3 * PAGE).unwrap()[0].len(), 3 * PAGE);
    kv.close(b);
    assert!(kv.is_empty() && kv.free_pages(0) == 5);
}

/// Codes take a byte each, and a scale for each head of each token; a memory stays in the type of activations.
#[test]
fn pages_of_codes() {
    let group = KvGroup { head_dim: 64, heads: 3, ..ALL };
    let bytes = |dtype| group.bytes_per_token(dtype);
    assert_eq!((bytes(DType::F32), bytes(DType::F16)), (2 * 2 * 3 * 256, 2 * 2 * 3 * 128));
    assert_eq!(bytes(DType::I8), 2 * 2 * 3 * 68);
    let precision = Precision { kv: Some(DType::I8), ..Precision::default() };
    let layout = KvLayout(vec![group, KvGroup { keep: Keep::Memory, ..group }]);
    let (mut cx, _) = Ctx::dry(Caps::default(), precision);
    let kv = KvCache::new(&mut cx, &layout, &[5, 2]).unwrap();
    let (codes, floats) = (kv.layer(0, 0).unwrap().0, kv.layer(1, 0).unwrap().0);
    assert_eq!((codes.dtype(), codes.shape()), (DType::I8, &[5, PAGE, 3, 68][..]));
    assert_eq!((floats.dtype(), floats.shape()), (DType::F32, &[2, PAGE, 3, 64][..]));
}

/// A sequence far longer than its window holds the pages of the window and no more, and its slots are those of its pages.
#[test]
fn pages_behind_a_window_return() {
    let window = 3 * PAGE + 5;
    let group = KvGroup { keep: Keep::Window(window), ..ALL };
    let held = group.most_pages(Extent { tokens: 100_000, memory: 0 }, 7);
    let mut kv = cache(&[ALL, group], &[1250, held]);
    let seq = kv.open(0);
    let mut most = 0;
    for step in 0..1500 {
        let new = 1 + step % 7;
        let slots = kv.extend(seq, new).unwrap();
        most = most.max(kv.used_pages(1));
        let pages: Vec<u32> = kv.pages(seq, 1).collect();
        let first = (kv.len(seq) - new + 1).saturating_sub(window);
        for token in first..kv.len(seq) {
            let page = pages[token / PAGE];
            let own = pages[first / PAGE..].iter().filter(|&&other| other == page).count();
            assert_eq!(own, 1, "pages are one's own");
        }
        assert_eq!(slots[1][0] as usize / PAGE, pages[(kv.len(seq) - new) / PAGE] as usize);
    }
    assert!(kv.len(seq) > 5000 && most <= held, "{most} pages of {held}");
    kv.close(seq);
    assert_eq!((kv.used_pages(0), kv.used_pages(1)), (0, 0));
}

/// A sequence holds the pages of the chunk that it is in, and of no chunk before.
#[test]
fn pages_of_ended_chunks_return() {
    let size = 3 * PAGE + 5;
    let group = KvGroup { keep: Keep::Chunk(size), ..ALL };
    let held = group.most_pages(Extent { tokens: 100_000, memory: 0 }, 7);
    let mut kv = cache(&[ALL, group], &[1250, held]);
    let seq = kv.open(0);
    let mut most = 0;
    for step in 0..1500 {
        let (new, before) = (1 + step % 7, kv.len(seq));
        let slots = kv.extend(seq, new).unwrap();
        most = most.max(kv.used_pages(1));
        let pages: Vec<u32> = kv.pages(seq, 1).collect();
        let first = (before - before % size) / PAGE;
        for (place, page) in pages.iter().enumerate().skip(first) {
            let own = pages[first..].iter().filter(|&other| other == page).count();
            assert_eq!(own, 1, "page {place} is one's own");
        }
        assert_eq!(slots[1][0] as usize / PAGE, pages[before / PAGE] as usize);
        kv.trim(seq);
        let len = kv.len(seq);
        assert_eq!(kv.used_pages(1), len.div_ceil(PAGE) - (len - len % size) / PAGE);
    }
    assert!(kv.len(seq) > 5000 && most <= held, "{most} pages of {held}");
}

/// A memory is taken with the first token and stays as it is, whatever follows, until the sequence ends or goes back to nothing.
#[test]
fn a_memory_is_written_once() {
    let mut kv = cache(&[ALL, MEMORY], &[8, 4]);
    let (a, b, none) = (kv.open(PAGE + 3), kv.open(2 * PAGE), kv.open(0));
    assert_eq!(kv.extend(a, 2).unwrap()[1].len(), PAGE + 3);
    assert!(kv.extend(a, 40).unwrap()[1].is_empty());
    assert!(kv.extend(none, 1).unwrap()[1].is_empty());
    kv.truncate(a, 1);
    assert_eq!(kv.used_pages(1), 2);
    let held: Vec<u32> = kv.pages(a, 1).collect();
    kv.extend(b, 1).unwrap();
    assert!(kv.pages(b, 1).all(|page| !held.contains(&page)));
    let mut c = kv.open(1);
    assert!(kv.extend(c, 1).unwrap_err().to_string().contains("need 1 more pages"));
    kv.truncate(a, 0);
    c = {
        kv.close(c);
        kv.open(1)
    };
    assert_eq!(kv.extend(c, 1).unwrap()[1].len(), 1);
    assert_eq!(kv.used_pages(1), 3);
    [a, b, c, none].into_iter().for_each(|seq| kv.close(seq));
    assert_eq!((kv.used_pages(0), kv.used_pages(1)), (0, 0));
}

/// Each sequence has a slot from its first token on; a state that went too far is not used again.
#[test]
fn a_state_has_a_slot_and_no_way_back() {
    let mut kv = cache(&[ALL, STATE], &[8, 2]);
    let (a, b, c) = (kv.open(0), kv.open(0), kv.open(0));
    let slot = kv.extend(a, 3).unwrap()[1].clone();
    assert_eq!(kv.extend(a, 30).unwrap()[1], slot);
    assert_ne!(kv.extend(b, 1).unwrap()[1], slot);
    assert!(kv.extend(c, 1).is_err(), "there are two slots");
    assert!(kv.layer(1, 0).is_none() && kv.state(0, 0).is_none());
    assert_eq!(kv.state(1, 1).unwrap().shape(), [2, 1, 2]);
    kv.truncate(a, 33);
    assert!(kv.is_whole(a), "nothing was cut");
    kv.truncate(a, 20);
    assert!(!kv.is_whole(a) && kv.is_whole(b));
    assert!(kv.extend(a, 1).unwrap_err().to_string().contains("further than its sequence"));
    kv.truncate(b, 0);
    assert!(kv.is_whole(b) && kv.free_pages(1) == 1, "its next token is its first");
    kv.close(a);
    assert_eq!(kv.extend(c, 1).unwrap()[1], slot);
    assert_eq!(STATE.bytes_per_token(DType::F16), 0);
    assert_eq!(STATE.bytes_per_page(DType::F16), 2 * 2 * 4);
}

/// Pages go back when the last sequence that holds them is done with them.
#[test]
fn sequences_share_what_they_begin_with() {
    let window = KvGroup { keep: Keep::Window(20), ..ALL };
    let mut kv = cache(&[ALL, MEMORY, window], &[9, 4, 20]);
    let a = kv.open(PAGE);
    kv.extend(a, 3 * PAGE + 2).unwrap();
    assert!(kv.share(a, PAGE + 1).is_none() && kv.share(a, 4 * PAGE).is_none());
    let b = kv.share(a, 2 * PAGE).unwrap();
    assert_eq!((kv.len(b), kv.used_pages(0), kv.used_pages(1)), (2 * PAGE, 4, 1));
    let own = kv.extend(b, 5).unwrap();
    assert!(own[1].is_empty() && kv.pages(a, 0).all(|page| page as usize != own[0][0] as usize / PAGE));
    assert!(kv.pages(a, 0).take(2).eq(kv.pages(b, 0).take(2)));
    kv.trim(a);
    assert!(kv.share(a, PAGE).is_none(), "behind the window");
    kv.close(a);
    assert_eq!((kv.used_pages(0), kv.used_pages(1)), (3, 1));
    // Into a page that is shared, it would write what another reads.
    let c = kv.share(b, 2 * PAGE).unwrap();
    kv.truncate(b, 2 * PAGE - 3);
    assert!(!kv.is_whole(b) && kv.is_whole(c));
    [b, c].into_iter().for_each(|seq| kv.close(seq));
    assert!((0..3).all(|group| kv.used_pages(group) == 0) && kv.is_empty());
    let mut kv = cache(&[ALL, STATE], &[9, 2]);
    let a = kv.open(0);
    kv.extend(a, 2 * PAGE).unwrap();
    assert!(kv.share(a, PAGE).is_none(), "a state is one sequence's");
}
