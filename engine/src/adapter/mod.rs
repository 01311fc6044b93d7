//! Low-rank adapters (LoRA): `y = x W^T + s (x A^T) B^T` beside the products of a model, whose weights stay as they are.
//!
//! A model notes on its context which modules each of its products is of ([`Ctx::site`]). An [`Adapter`] is placed for those sites;
//! while it is in use, [`Ctx::exec`] runs its two small products after each product that it has a part in: on any device, with
//! weights of any format, and under a tape like all else. Requests of one batch may have different adapters: each takes the rows of its
//! own.

mod merged;
mod peft;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use ocelli_kernels::ops::{Activation, Matmul, Pointwise};
use ocelli_kernels::{DType, View, Weights};

pub use merged::{Delta, Deltas};
pub use peft::{LoraConfig, Peft, module_of, tensor_name};

use crate::ctx::Ctx;
use crate::error::{Error, Result};

/// A module whose products an adapter may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteModule {
    /// Its path in the checkpoint.
    pub path: String,
    /// Features that it gives.
    pub n: usize,
    /// Features that it takes.
    pub k: usize,
    /// Whether its columns are stored in another order than the features have: such cannot be adapted.
    pub ordered: bool,
}

/// Which weights products were noted with: the first plane of their first part.
type Place = (usize, usize);

fn place(w: &Weights) -> Option<Place> {
    let plane = w.parts().first()?.planes.first()?;
    Some((plane.storage().id(), plane.offset()))
}

/// Modules whose results lie side by side in one product, in order.
type Site = Vec<SiteModule>;

/// What a context knows of adapters.
#[derive(Default)]
pub(crate) struct Adapters {
    sites: HashMap<Place, Site>,
    named: HashMap<String, Arc<Adapter>>,
    used: Used,
}

/// Whose adapters rows have.
#[derive(Clone, Default)]
enum Used {
    #[default]
    None,
    /// All rows the same.
    All(Arc<Adapter>),
    /// Rows of the batch, each range with its own; others have none.
    Rows(Vec<(Range<usize>, Arc<Adapter>)>),
}

/// The matrices of one module.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// The module's path in the checkpoint.
    pub module: String,
    /// `[r, k]`.
    pub a: View,
    /// `[n, r]`.
    pub b: View,
    /// What their product is multiplied with.
    pub scale: f32,
}

/// An adapter on the sites of a context.
pub struct Adapter {
    /// What it is called.
    pub name: String,
    sites: HashMap<Place, Placed>,
    /// Modules that it has matrices for.
    modules: Vec<String>,
}

/// An adapter's part in one product.
struct Placed {
    /// The matrices A of its modules, `[sum of r, k]`.
    a: Weights,
    parts: Vec<Part>,
}

/// Its part in the results of one module.
struct Part {
    /// Columns of the product.
    columns: Range<usize>,
    /// Columns of `x A^T`.
    ranks: Range<usize>,
    /// `[n, r]`.
    b: Weights,
    scale: f32,
}

impl Adapter {
    /// Modules that it changes, by their paths in the checkpoint.
    #[must_use]
    pub fn modules(&self) -> &[String] {
        &self.modules
    }
}

impl std::fmt::Debug for Adapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "adapter {} of {} modules", self.name, self.modules.len())
    }
}

impl Ctx {
    /// Notes that products with `w` give the results of these modules side by side: each with its path and features; `ordered` tells
    /// whether their columns are stored in another order.
    pub fn site<'a>(
        &mut self,
        w: &Weights,
        modules: impl IntoIterator<Item = (&'a str, usize)>,
        ordered: bool,
    ) {
        let Some(place) = place(w) else { return };
        let module = |(path, n): (&str, usize)| SiteModule { path: path.to_owned(), n, k: w.k(), ordered };
        self.adapters.sites.insert(place, modules.into_iter().map(module).collect());
    }

    /// Modules that adapters can be made for, in the order of their paths.
    #[must_use]
    pub fn adaptable(&self) -> Vec<SiteModule> {
        let mut all: Vec<SiteModule> = self.adapters.sites.values().flatten().cloned().collect();
        all.sort_by(|a, b| a.path.cmp(&b.path));
        all
    }

    /// Lays an adapter out for the products of the model that was loaded on this context.
    ///
    /// # Errors
    /// If the model has no such module, or shapes differ.
    pub fn place_adapter(&mut self, name: &str, all: &[LowRank]) -> Result<Adapter> {
        let refuse = |module: &str, what: String| Error::Adapter {
            name: name.to_owned(),
            reason: format!("`{module}`: {what}"),
        };
        let mut of: HashMap<&str, &LowRank> = all.iter().map(|low| (&*low.module, low)).collect();
        let mut sites = HashMap::new();
        for (&place, site) in &self.adapters.sites {
            let (mut first, mut ranks) = (0, 0);
            let (mut a, mut parts) = (Vec::new(), Vec::new());
            for module in site {
                let columns = first..first + module.n;
                first = columns.end;
                let Some(low) = of.remove(&*module.path) else { continue };
                let r = low.a.size(0);
                if module.ordered {
                    return Err(refuse(
                        &module.path,
                        "its columns are stored in the order of activations (g_idx): not built".into(),
                    ));
                }
                for (what, view, expected) in [("A", &low.a, [r, module.k]), ("B", &low.b, [module.n, r])] {
                    if view.shape() != expected {
                        let found = view.shape();
                        return Err(refuse(
                            &module.path,
                            format!("{what}: expected shape {expected:?}, found {found:?}"),
                        ));
                    }
                }
                a.push(Weights::dense(low.a.clone(), None)?);
                let b = Weights::dense(low.b.clone(), None)?;
                parts.push(Part { columns, ranks: ranks..ranks + r, b, scale: low.scale });
                ranks += r;
            }
            if !parts.is_empty() {
                sites.insert(place, Placed { a: Weights::stack(a)?, parts });
            }
        }
        if let Some(module) = of.keys().min() {
            return Err(refuse(
                module,
                "the model has no linear layer of this name that adapters can be made for".into(),
            ));
        }
        let mut modules: Vec<String> = all.iter().map(|low| low.module.clone()).collect();
        modules.sort_unstable();
        Ok(Adapter { name: name.to_owned(), sites, modules })
    }

    /// Keeps an adapter for requests that ask for its name.
    pub fn name_adapter(&mut self, adapter: Adapter) {
        self.adapters.named.insert(adapter.name.clone(), Arc::new(adapter));
    }

    /// The adapter of a name.
    ///
    /// # Errors
    /// If there is none.
    pub fn named_adapter(&self, name: &str) -> Result<Arc<Adapter>> {
        self.adapters.named.get(name).cloned().ok_or_else(|| Error::Adapter {
            name: name.to_owned(),
            reason: "there is none of this name".into(),
        })
    }

    /// Has all products use an adapter from now on, or none.
    pub fn adapt(&mut self, adapter: Option<Arc<Adapter>>) {
        self.adapters.used = adapter.map_or(Used::None, Used::All);
    }

    /// Runs `work`, in whose products the rows of each range use an adapter of their own, and others what is used without it.
    pub fn adapt_rows<R>(
        &mut self,
        rows: Vec<(Range<usize>, Arc<Adapter>)>,
        work: impl FnOnce(&mut Self) -> R,
    ) -> R {
        if rows.is_empty() {
            return work(self);
        }
        let before = std::mem::replace(&mut self.adapters.used, Used::Rows(rows));
        let result = work(self);
        self.adapters.used = before;
        result
    }

    /// Whether a product has to take rows as they are, as an adapter has a part in it.
    pub(crate) fn is_adapted(&self, op: &Matmul) -> bool {
        let Some(place) = place(&op.w) else { return false };
        match &self.adapters.used {
            Used::None => false,
            Used::All(adapter) => adapter.sites.contains_key(&place),
            Used::Rows(rows) => rows.iter().any(|(_, adapter)| adapter.sites.contains_key(&place)),
        }
    }

    /// Numbers that tell recorded steps with different adapters apart.
    pub(crate) fn adapted_key(&self) -> Vec<usize> {
        let number = |adapter: &Arc<Adapter>| Arc::as_ptr(adapter) as usize;
        match &self.adapters.used {
            Used::None => Vec::new(),
            Used::All(adapter) => vec![number(adapter)],
            Used::Rows(rows) => {
                rows.iter().flat_map(|(rows, adapter)| [rows.start, rows.end, number(adapter)]).collect()
            }
        }
    }

    /// Runs a product and what adapters add to it.
    pub(crate) fn exec_adapted(&mut self, path: &str, op: &Matmul) -> Result<()> {
        let m = op.x.size(0);
        let rows = match self.adapters.used.clone() {
            Used::None => Vec::new(),
            Used::All(adapter) => vec![(0..m, adapter)],
            Used::Rows(rows) => rows,
        };
        let finishes = op.act != Activation::None || op.gated;
        // What an adapter adds goes in before a function that is fused.
        let product = if finishes {
            let z = self.alloc(&[m, op.w.n()], self.between(op))?;
            let out = self.view(&z)?;
            Matmul { out, residual: None, act: Activation::None, gated: false, ..op.clone() }
        } else {
            op.clone()
        };
        self.exec_plain(path, &product)?;
        for (rows, adapter) in rows {
            let Some(placed) = place(&op.w).and_then(|place| adapter.sites.get(&place)) else { continue };
            if rows.end > m {
                let reason =
                    format!("{path}: expected the rows of a batch of {} tokens, found {m}", rows.end);
                return Err(Error::Adapter { name: adapter.name.clone(), reason });
            }
            let x = op.x.narrow(0, rows.start, rows.len())?;
            let out = product.out.narrow(0, rows.start, rows.len())?;
            self.scope(|cx| cx.add_low_rank(path, placed, &x, &out, op))?;
        }
        if !finishes {
            return Ok(());
        }
        let z = product.out;
        let half = z.size(1) / 2;
        let (arg, by) = match op.gated {
            true => (z.narrow(1, 0, half)?, Some(z.narrow(1, half, half)?)),
            false => (z, None),
        };
        let add = op.residual.clone();
        self.exec_plain(path, &Pointwise { act: op.act, by, add, ..Pointwise::new(arg, op.out.clone()) })
    }

    /// `out += s (x A^T) B^T` for the modules of one product.
    fn add_low_rank(&mut self, path: &str, placed: &Placed, x: &View, out: &View, op: &Matmul) -> Result<()> {
        let t = self.alloc(&[x.size(0), placed.a.n()], self.between(op))?;
        let t = self.view(&t)?;
        let product = Matmul { math: op.math, ..Matmul::new(x.clone(), placed.a.clone(), t.clone()) };
        self.exec_plain(path, &product)?;
        for part in &placed.parts {
            let mut x = t.narrow(1, part.ranks.start, part.ranks.len())?;
            if part.scale != 1.0 {
                let scaled = self.alloc(x.shape(), x.dtype())?;
                let scaled = self.view(&scaled)?;
                self.exec_plain(path, &Pointwise { scale: part.scale, ..Pointwise::new(x, scaled.clone()) })?;
                x = scaled;
            }
            let to = out.narrow(1, part.columns.start, part.columns.len())?;
            let residual = Some(to.clone());
            let product = Matmul { math: op.math, residual, ..Matmul::new(x, part.b.clone(), to) };
            self.exec_plain(path, &product)?;
        }
        Ok(())
    }

    /// Type of what lies between the products of an adapter: that of its input, f32 where gradients are wanted.
    fn between(&self, op: &Matmul) -> DType {
        if self.tape.is_some() { DType::F32 } else { op.x.dtype() }
    }
}

#[cfg(test)]
mod tests;
