//! Which matrices of a layer take what a norm or another matrix of it gives, and nothing else takes.

use ocelli_engine::weights::{Fold, Producer, Scope};

use super::{Keys, LayerPlan, Mix, Norms, TextPlan};

/// Declares those of the layer at `scope`: its norms before attention and MLP, values that attention only adds up, and the ungated half of
/// an MLP.
pub(super) fn declare(scope: &Scope<'_>, plan: &TextPlan, layer: LayerPlan) {
    let names = plan.names;
    let (attention, mlp) = (scope.at(names.attention), scope.at(names.mlp));
    let attends = layer.mix == Mix::Attention;
    let experts = layer.experts && plan.experts.is_some();
    let [gate, up, down] = names.projections;
    let qkv = || -> Vec<String> {
        let count = match layer.keys {
            Keys::Own => 3,
            Keys::AlsoValues => 2,
            Keys::Earlier => 1,
        };
        names.qkv[..count].iter().map(|name| attention.path(name)).collect()
    };
    let joined = mlp.at("gate_up_proj").exists();
    let inner = || -> Option<Vec<String>> {
        match (experts && !plan.experts_beside, plan.mlp_gated, joined) {
            (true, ..) => None,
            (_, false, _) => Some(vec![mlp.path(up)]),
            (.., true) => Some(vec![mlp.path("gate_up_proj")]),
            _ => Some(vec![mlp.path(gate), mlp.path(up)]),
        }
    };
    let add = |from: Producer, into: Vec<String>, columns: (usize, usize)| {
        scope.checkpoint().fold(Fold { from, into, columns });
    };
    let norm =
        |name: &str| Producer::Norm { weight: scope.at(name).path("weight"), offset: plan.norm_offset };
    match plan.norms {
        Norms::Before | Norms::Around => {
            if attends {
                add(norm(names.norm1), qkv(), (1, 1));
            }
            let before = if plan.norms == Norms::Before { names.norm2 } else { names.around[1] };
            if let Some(inner) = inner() {
                add(norm(before), inner, (1, 1));
            }
        }
        Norms::Shared => {
            if let Some(inner) = inner().filter(|_| attends) {
                add(norm(names.norm1), qkv().into_iter().chain(inner).collect(), (1, 1));
            }
        }
        // Sums are what layers give to each other.
        Norms::After => {}
    }
    if plan.mlp_gated && inner().is_some() {
        let (module, first) = if joined { ("gate_up_proj", layer.mlp) } else { (up, 0) };
        let from = Producer::Rows { module: mlp.path(module), first, count: layer.mlp };
        add(from, vec![mlp.path(down)], (1, 1));
    }
    if attends && layer.keys == Keys::Own && !plan.value_norm && layer.heads_kv > 0 {
        let count = layer.heads_kv * layer.head_dim;
        let from = Producer::Rows { module: attention.path(names.qkv[2]), first: 0, count };
        add(from, vec![attention.path(names.out)], (layer.head_dim, plan.heads_q / layer.heads_kv));
    }
}
