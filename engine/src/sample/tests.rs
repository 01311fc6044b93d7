use ocelli_kernels::ops::{Sample, params as column};
use ocelli_kernels::{Backend, DType};
use proptest::prelude::*;

use super::*;
use crate::{Ctx, Precision};

/// The op on the CPU, for one row.
fn sample(
    logits: &[f32],
    params: &SamplingParams,
    history: &[u32],
    uniform: f32,
) -> Result<u32, crate::Error> {
    let device = ocelli_kernels::open(Backend::Cpu, &Default::default())?;
    let mut cx = Ctx::new(&*device, Precision::default())?;
    let mut row = [0.0; column::COUNT];
    row[column::TEMPERATURE] = params.temperature;
    row[column::TOP_K] = params.top_k as f32;
    row[column::TOP_P] = params.top_p;
    row[column::MIN_P] = params.min_p;
    row[column::REPETITION_PENALTY] = params.repetition_penalty;
    row[column::UNIFORM] = uniform;
    let history: Vec<i32> =
        history.iter().map(|&id| id as i32).filter(|&id| (id as usize) < logits.len()).collect();
    let logits = cx.upload(&[1, logits.len()], logits)?;
    let row = cx.upload(&[1, column::COUNT], &row)?;
    let history = cx.upload(&[1, history.len()], &history)?;
    let out = cx.alloc(&[1], DType::I32)?;
    let op = Sample {
        logits: cx.view(&logits)?,
        params: cx.view(&row)?,
        history: Some(cx.view(&history)?),
        mask: None,
        out: cx.view(&out)?,
    };
    cx.exec("sample", &op)?;
    Ok(cx.download_ids(&out)?[0] as u32)
}

fn params() -> impl Strategy<Value = SamplingParams> {
    (0.1f32..3.0, 0u32..20, 0.05f32..=1.0, 0.0f32..0.9, 0.5f32..2.0).prop_map(
        |(temperature, top_k, top_p, min_p, repetition_penalty)| SamplingParams {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            ..SamplingParams::default()
        },
    )
}

/// Logits with many ties and some excluded tokens.
fn logits() -> impl Strategy<Value = Vec<f32>> {
    let logit = prop_oneof![
        8 => -5.0f32..5.0,
        4 => (-3i32..4).prop_map(|x| x as f32),
        1 => Just(f32::NEG_INFINITY),
    ];
    prop::collection::vec(logit, 1..60)
        .prop_filter("one is kept", |logits| logits.iter().any(|l| *l > f32::NEG_INFINITY))
}

/// The distribution after all filters, written from the definitions and without the shortcuts of `sample`.
fn distribution(logits: &[f32], params: &SamplingParams, history: &[u32]) -> Vec<f64> {
    let mut scores: Vec<f64> = logits
        .iter()
        .enumerate()
        .map(|(id, &l)| match history.contains(&(id as u32)) {
            true if l < 0.0 => f64::from(l * params.repetition_penalty),
            true => f64::from(l / params.repetition_penalty),
            false => f64::from(l),
        })
        .map(|l| l / f64::from(params.temperature))
        .collect();
    let softmax = |scores: &[f64]| -> Vec<f64> {
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        scores.iter().map(|s| (s - max).exp() / total).collect()
    };
    let n = scores.len();
    if params.top_k > 0 {
        let larger = |s: f64, scores: &[f64]| scores.iter().filter(|o| **o > s).count();
        let before = scores.clone();
        for score in &mut scores {
            if larger(*score, &before) >= (params.top_k as usize).min(n) {
                *score = f64::NEG_INFINITY;
            }
        }
    }
    let p = softmax(&scores);
    for i in 0..n {
        let mass: f64 = (0..n).filter(|&j| p[j] > p[i] || (p[j] == p[i] && j < i)).map(|j| p[j]).sum();
        if params.top_p < 1.0 && mass >= f64::from(params.top_p) {
            scores[i] = f64::NEG_INFINITY;
        }
    }
    let p = softmax(&scores);
    let largest = p.iter().copied().fold(0.0, f64::max);
    for i in 0..n {
        if p[i] < f64::from(params.min_p) * largest {
            scores[i] = f64::NEG_INFINITY;
        }
    }
    softmax(&scores)
}

proptest! {
    #[test]
    fn follows_the_filtered_distribution(
        logits in logits(),
        params in params(),
        history in prop::collection::vec(0u32..80, 0..20),
        u in 0.0f32..1.0,
    ) {
        let p = distribution(&logits, &params, &history);
        let id = sample(&logits, &params, &history, u).unwrap() as usize;
        // The order of the cumulative distribution: falling probability, ties by rising id. The op adds in f32.
        let ahead = |other: usize| p[other] > p[id] || (p[other] == p[id] && other < id);
        let before: f64 = (0..p.len()).filter(|&other| ahead(other)).map(|other| p[other]).sum();
        let after = before + p[id];
        prop_assert!(p[id] > 0.0, "id {id} was filtered out: {p:?}");
        prop_assert!(before - 1e-5 <= f64::from(u) && f64::from(u) <= after + 1e-5, "{before} {u} {after}");
    }

    #[test]
    fn greedy_is_the_lowest_of_the_largest(logits in logits(), u in 0.0f32..1.0) {
        let id = sample(&logits, &SamplingParams::default(), &[], u).unwrap() as usize;
        prop_assert!(logits.iter().all(|l| *l <= logits[id]));
        prop_assert!(logits[..id].iter().all(|l| *l < logits[id]));
    }

    #[test]
    fn tight_filters_are_greedy(logits in logits(), mut params in params(), u in 0.0f32..1.0, which in 0..3) {
        params.repetition_penalty = 1.0;
        match which {
            0 => params.top_k = 1,
            1 => params.top_p = 1e-6,
            _ => params.min_p = 1.0,
        }
        let id = sample(&logits, &params, &[], u).unwrap() as usize;
        prop_assert!(logits.iter().all(|l| *l <= logits[id]));
    }

    #[test]
    fn one_history_entry_counts_once(logits in logits(), params in params(), id in 0u32..60, u in 0.0f32..1.0) {
        prop_assert_eq!(sample(&logits, &params, &[id], u).unwrap(), sample(&logits, &params, &[id; 5], u).unwrap());
    }

    #[test]
    fn uniform_is_in_range_and_reproducible(seed: u64, stream: u64, step: u64) {
        let u = uniform(seed, stream, step);
        prop_assert!((0.0..1.0).contains(&u));
        prop_assert_eq!(u, uniform(seed, stream, step));
        prop_assert_ne!(
            philox4x32([step as u32, 0, 0, 0], [1, 2]),
            philox4x32([(step as u32).wrapping_add(1), 0, 0, 0], [1, 2])
        );
    }
}

#[test]
fn top_p_counts_the_mass_before_a_token() {
    let logits: Vec<f32> = [0.1f32, 0.5, 0.15, 0.25].iter().map(|p| p.ln()).collect();
    let params = SamplingParams { temperature: 1.0, top_p: 0.7, ..SamplingParams::default() };
    // 0.5, then 0.25 (0.5 before it); 0.15 has 0.75 before it and goes.
    let chosen: Vec<u32> =
        [0.0, 0.66, 0.67, 0.999].iter().map(|&u| sample(&logits, &params, &[], u).unwrap()).collect();
    assert_eq!(chosen, [1, 1, 3, 3]);
}

#[test]
fn top_k_keeps_ties() {
    let params = SamplingParams { temperature: 1.0, top_k: 2, ..SamplingParams::default() };
    let chosen: Vec<u32> =
        [0.0, 0.5, 0.99].iter().map(|&u| sample(&[2.0, 0.0, 2.0, 2.0], &params, &[], u).unwrap()).collect();
    assert_eq!(chosen, [0, 2, 3]);
}

#[test]
fn penalty_divides_positive_and_multiplies_negative() {
    let params = SamplingParams { repetition_penalty: 2.0, ..SamplingParams::default() };
    let pick = |logits: &[f32], history: &[u32]| sample(logits, &params, history, 0.0).unwrap();
    assert_eq!(pick(&[2.0, -2.0, 1.5, 0.0], &[0]), 2, "2 becomes 1");
    assert_eq!(pick(&[-2.0, -3.0], &[0]), 1, "-2 becomes -4");
    assert_eq!(pick(&[-2.0, -3.0], &[0, 0, 1]), 0, "once each");
}

#[test]
fn ranges() {
    let ok = SamplingParams::default();
    assert_eq!(ok.validate(), Ok(()));
    let bad = |change: fn(&mut SamplingParams)| {
        let mut p = SamplingParams::default();
        change(&mut p);
        p.validate().unwrap_err().to_string()
    };
    assert_eq!(bad(|p| p.temperature = -1.0), "temperature: expected a number, 0 or above, found -1");
    assert_eq!(bad(|p| p.temperature = f32::NAN), "temperature: expected a number, 0 or above, found NaN");
    assert_eq!(bad(|p| p.top_p = 0.0), "top_p: expected a number above 0, at most 1, found 0");
    assert_eq!(bad(|p| p.min_p = 1.5), "min_p: expected a number from 0 to 1, found 1.5");
    assert_eq!(
        bad(|p| p.repetition_penalty = f32::INFINITY),
        "repetition_penalty: expected a number above 0, found inf"
    );
    assert_eq!(bad(|p| p.max_tokens = 0), "max_tokens: expected 1 or more, found 0");
    assert!(bad(|p| p.stop = vec![String::new()]).starts_with("stop: expected"));
}

#[test]
fn philox_known_answers() {
    // The known-answer file of the authors' Random123 library, philox 4x32 with 10 rounds.
    let cases = [
        ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
        ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
        (
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        ),
    ];
    for (counter, key, expected) in cases {
        assert_eq!(philox4x32(counter, key), expected);
    }
}

#[test]
fn uniforms_are_uniform() {
    const N: u64 = 40_000;
    let mut bins = [0u32; 20];
    for step in 0..N {
        bins[(uniform(7, 0, step) * 20.0) as usize] += 1;
    }
    // Chi squared with 19 degrees of freedom: above 43.8 once in a thousand.
    let expected = N as f64 / 20.0;
    let chi: f64 = bins.iter().map(|&b| (f64::from(b) - expected).powi(2) / expected).sum();
    assert!(chi < 43.8, "{chi}");
    assert_ne!(uniform(7, 0, 0), uniform(8, 0, 0));
    assert_ne!(uniform(7, 0, 0), uniform(7, 1, 0));
}
