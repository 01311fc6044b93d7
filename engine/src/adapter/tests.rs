use super::*;
use crate::ctx::Precision;
use ocelli_kernels::{Backend, DeviceOptions};

fn context() -> Ctx {
    let device = ocelli_kernels::open(Backend::Cpu, &DeviceOptions::default()).expect("the CPU");
    Ctx::new(&*device, Precision::default()).expect("a context")
}

fn matrix(cx: &mut Ctx, rows: usize, cols: usize, seed: usize) -> View {
    let values: Vec<f32> = (0..rows * cols).map(|i| ((i * 7 + seed * 13) % 11) as f32 * 0.1 - 0.5).collect();
    let tensor = cx.alloc_owned(&[rows, cols], DType::F32).expect("memory");
    cx.write_floats(&tensor, &values).expect("written");
    tensor.view().clone()
}

fn values(cx: &mut Ctx, view: &View) -> Vec<f64> {
    let mut bytes = vec![0f32; view.len()];
    cx.stream().read(view, bytemuck::cast_slice_mut(&mut bytes)).expect("read");
    bytes.into_iter().map(f64::from).collect()
}

/// `x [m, k] w^T [n, k]`.
fn product(x: &[f64], w: &[f64], k: usize) -> Vec<f64> {
    x.chunks(k).flat_map(|x| w.chunks(k).map(|w| x.iter().zip(w).map(|(x, w)| x * w).sum())).collect()
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// A gated product of two modules, one of them adapted, and rows of which some have no adapter.
#[test]
fn adapters_go_in_before_what_is_fused() {
    let mut cx = context();
    let (m, k, n, r) = (5, 6, 4, 2);
    let (gate, up) = (matrix(&mut cx, n, k, 1), matrix(&mut cx, n, k, 2));
    let w = Weights::stack([
        Weights::dense(gate.clone(), None).unwrap(),
        Weights::dense(up.clone(), None).unwrap(),
    ]);
    let w = w.expect("one matrix");
    cx.site(&w, [("gate", n), ("up", n)], false);
    let (a, b) = (matrix(&mut cx, r, k, 3), matrix(&mut cx, n, r, 4));
    let low = LowRank { module: "up".into(), a: a.clone(), b: b.clone(), scale: 0.5 };
    let adapter = Arc::new(cx.place_adapter("one", std::slice::from_ref(&low)).expect("it fits"));
    assert_eq!(adapter.modules(), ["up"]);
    let (x, h) = (matrix(&mut cx, m, k, 5), matrix(&mut cx, m, n, 6));
    let run = |cx: &mut Ctx| {
        let out = cx.alloc_owned(&[m, n], DType::F32).expect("memory");
        let mut op = Matmul::new(x.clone(), w.clone(), out.view().clone());
        (op.act, op.gated, op.residual) = (Activation::Silu, true, Some(h.clone()));
        cx.exec("mlp", &op).expect("it runs");
        values(cx, out.view())
    };
    let plain = run(&mut cx);
    let ranged = cx.adapt_rows(vec![(1..3, adapter.clone())], run);
    cx.adapt(Some(adapter));
    let all = run(&mut cx);
    cx.adapt(None);
    assert_eq!(run(&mut cx), plain);
    let [x, h, gate, up, a, b] = [&x, &h, &gate, &up, &a, &b].map(|view| values(&mut cx, view));
    let (gate, t) = (product(&x, &gate, k), product(&x, &a, k));
    let (up, added) = (product(&x, &up, k), product(&t, &b, r));
    for row in 0..m {
        for i in row * n..(row + 1) * n {
            let of = |scale: f64| silu(gate[i]) * (up[i] + scale * added[i]) + h[i];
            for (found, scale) in
                [(plain[i], 0.0), (all[i], 0.5), (ranged[i], if (1..3).contains(&row) { 0.5 } else { 0.0 })]
            {
                assert!((found - of(scale)).abs() < 1e-5, "row {row}: {found}, expected {}", of(scale));
            }
        }
    }
    // What does not fit is named.
    let wrong = |low: &LowRank, cx: &mut Ctx| match cx.place_adapter("two", std::slice::from_ref(low)) {
        Ok(_) => panic!("it fits"),
        Err(error) => error.to_string(),
    };
    let other = LowRank { module: "down".into(), ..low.clone() };
    assert!(wrong(&other, &mut cx).contains("`down`: the model has no linear layer"));
    let turned = LowRank { a: low.b.clone(), ..low };
    assert!(wrong(&turned, &mut cx).contains("A: expected shape"), "{}", wrong(&turned, &mut cx));
}

#[test]
fn names_and_scales_are_those_of_peft() {
    let name = tensor_name("model.layers.0.self_attn.q_proj", "A");
    assert_eq!(name, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight");
    assert_eq!(module_of(&name), Some(("model.layers.0.self_attn.q_proj", "A")));
    assert_eq!(module_of("base_model.model.a.b.lora_B.default.weight"), Some(("a.b", "B")));
    assert_eq!(module_of("base_model.model.a.b.weight"), None);
    let mut config = LoraConfig { r: 4, lora_alpha: 8.0, ..LoraConfig::default() };
    assert_eq!(config.scale("a.q_proj", 4), 2.0);
    config.alpha_pattern.insert("q_proj".into(), 2.0.into());
    assert_eq!((config.scale("a.q_proj", 4), config.scale("a.eq_proj", 4)), (0.5, 2.0));
    config.use_rslora = true;
    assert_eq!(config.scale("a.k_proj", 4), 4.0);
}
