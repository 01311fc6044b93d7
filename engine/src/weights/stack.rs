//! Matrices of one size that lie one after another in each of their tensors: experts.

use ocelli_kernels::{DType, Format, Grouped, KMajor, View, Weights, Zero};

use super::{Scope, TensorInfo, WeightError, published};

/// The columns of `x` that those of a matrix meet, if they are in another order.
pub type Columns = Option<Vec<i32>>;

/// Which of several matrices.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stack {
    /// Its number.
    pub index: usize,
    /// How many there are: the first axis of each tensor. Tensors without that axis hold for all.
    pub of: usize,
    /// Whether names follow that of a parameter, not that of a module: `experts.down_proj`, `experts.down_proj_scale_inv`.
    pub joined: bool,
    /// Whether rows and columns are exchanged: `[of, k, n]`.
    pub turned: bool,
}

impl<'a> Scope<'a> {
    /// Matrix `index` of `of` in each tensor of the module here, whose first axis is as long.
    #[must_use]
    pub fn part(&self, index: usize, of: usize) -> Self {
        self.clone().with_stack(Stack { index, of, joined: false, turned: false })
    }

    /// Matrix `index` of `of` of the parameter `name` here, whose other tensors have that name and a suffix. `turned`: it is stored
    /// with rows and columns exchanged.
    #[must_use]
    pub fn parameter(&self, name: &str, index: usize, of: usize, turned: bool) -> Self {
        self.at(name).with_stack(Stack { index, of, joined: true, turned })
    }

    /// Whether the matrix here is stored with rows and columns exchanged.
    pub(super) fn is_turned(&self) -> bool {
        self.stack.is_some_and(|stack| stack.turned)
    }

    /// The name of a tensor of a parameter: the first that exists of the ways to write it.
    pub(super) fn joined(&self, name: &str) -> Option<String> {
        let prefix = self.prefix();
        if !self.stack?.joined {
            return None;
        }
        if matches!(name, "" | "weight") {
            return Some(prefix.to_owned());
        }
        let (long, short) = (format!("{prefix}_{name}"), name.strip_prefix("weight_"));
        let short = short.map(|short| format!("{prefix}_{short}"));
        // What is not there either way is told by the shorter name, but for ModelOpt's, which are the longer ones.
        Some(match short {
            Some(short) if !self.checkpoint().contains(&long) => short,
            _ => long,
        })
    }

    /// What a tensor is to the one matrix that is meant.
    pub(super) fn one_of(&self, info: TensorInfo<'a>) -> TensorInfo<'a> {
        match self.stack {
            Some(Stack { of, .. }) if info.shape.first() == Some(&of) && of > 0 => {
                TensorInfo { shape: &info.shape[1..], bytes: info.bytes / of, ..info }
            }
            _ => info,
        }
    }

    /// The number of the matrix that is meant, and of all, if the tensor has them one after another.
    fn place(&self, name: &str) -> Option<(usize, usize)> {
        let stack = self.stack?;
        let info = self.checkpoint().info(&self.path(name))?;
        (info.shape.first() == Some(&stack.of) && stack.of > 0).then_some((stack.index, stack.of))
    }

    /// The bytes of a tensor, as [`Checkpoint::raw`](super::Checkpoint::raw); of a stack, those of one matrix.
    pub(super) fn raw(&self, name: &str) -> Result<&'a [u8], WeightError> {
        let bytes = self.checkpoint().raw(&self.path(name))?;
        let Some((index, of)) = self.place(name) else { return Ok(bytes) };
        let size = bytes.len() / of;
        bytes.get(index * size..(index + 1) * size).ok_or_else(|| self.beyond(name, index, of))
    }

    /// A tensor seen as this shape, as [`Checkpoint::tensor_as`](super::Checkpoint::tensor_as); of a stack, one matrix of it.
    pub(super) fn tensor_as(&self, name: &str, shape: &[usize]) -> Result<View, WeightError> {
        self.seen(name, shape, |path, shape| self.checkpoint().tensor_as(path, shape))
    }

    /// A tensor seen as this shape and its elements as another type, as [`Checkpoint::plane`](super::Checkpoint::plane); of a stack,
    /// one matrix of it.
    pub(super) fn plane(&self, name: &str, shape: &[usize], dtype: DType) -> Result<View, WeightError> {
        self.seen(name, shape, |path, shape| self.checkpoint().plane(path, shape, dtype))
    }

    /// Rows of `k` bytes as words, as [`Checkpoint::words`](super::Checkpoint::words); of a stack, those of one matrix.
    pub(super) fn words(&self, name: &str, n: usize, k: usize) -> Result<View, WeightError> {
        let path = self.path(name);
        let Some((index, of)) = self.place(name) else { return self.checkpoint().words(&path, n, k) };
        let all = self.checkpoint().words(&path, n.saturating_mul(of), k)?;
        all.narrow(0, index * n, n)
            .map_err(|error| WeightError::shape(self.checkpoint().path(), &path, &error))
    }

    fn seen(
        &self,
        name: &str,
        shape: &[usize],
        whole: impl Fn(&str, &[usize]) -> Result<View, WeightError>,
    ) -> Result<View, WeightError> {
        let path = self.path(name);
        let Some((index, of)) = self.place(name) else { return whole(&path, shape) };
        let all: Vec<usize> = [of].iter().chain(shape).copied().collect();
        let view = whole(&path, &all)?;
        view.narrow(0, index, 1)
            .and_then(|view| view.reshape(shape))
            .map_err(|error| WeightError::shape(self.checkpoint().path(), &path, &error))
    }

    fn beyond(&self, name: &str, index: usize, of: usize) -> WeightError {
        WeightError::tensor(
            self.checkpoint().path(),
            &self.path(name),
            format!("axis 0: expected more than {index} matrices, found {of}"),
        )
    }
}

/// Matrices without biases as one, the rows of each below those of the one before: each a place, its rows, and `k` columns. They have
/// to be stored alike; integers whose zero points are all the centre are, to such with others.
///
/// # Errors
/// As [`Scope::linear`], and if two are stored in different ways.
pub fn stacked(all: &[(Scope<'_>, usize)], k: usize) -> Result<Weights, WeightError> {
    let (w, orders) = stacked_in_order(all, k)?;
    match orders.iter().zip(all).find(|(order, _)| order.is_some()) {
        Some((_, (scope, _))) => {
            Err(scope.unsupported("columns in activation order (g_idx) in a stack".into()))
        }
        None => Ok(w),
    }
}

/// As [`stacked`], and for each the columns of `x` that its columns meet, if they are in another order.
///
/// # Errors
/// As [`Scope::linear_in_order`], and if two are stored in different ways.
pub fn stacked_in_order(
    all: &[(Scope<'_>, usize)],
    k: usize,
) -> Result<(Weights, Vec<Columns>), WeightError> {
    let (mut parts, mut orders) = (Vec::with_capacity(all.len()), Vec::with_capacity(all.len()));
    for (scope, n) in all {
        let (w, order) = scope.linear_in_order(*n, k, false)?;
        parts.push(w);
        orders.push(order);
    }
    // Zero points and an order of groups can be added to those that do without.
    let zero =
        |w: &Weights| w.format().codes().map(|grouped| grouped.zero).filter(|zero| *zero != Zero::None);
    let zero = parts.iter().find_map(zero).unwrap_or_default();
    let ordered = |w: &Weights| matches!(w.format(), Format::KMajor(_, KMajor::ActOrder));
    let ordered = parts.iter().any(ordered);
    for (part, (scope, _)) in parts.iter_mut().zip(all) {
        let with =
            |grouped: Grouped| if grouped.zero == Zero::None { Grouped { zero, ..grouped } } else { grouped };
        let wanted = match part.format() {
            Format::Grouped(grouped) if zero == Zero::Codes => Format::Grouped(with(grouped)),
            Format::KMajor(grouped, KMajor::Gptq) if ordered => {
                Format::KMajor(with(grouped), KMajor::ActOrder)
            }
            Format::KMajor(grouped, kind) => Format::KMajor(with(grouped), kind),
            other => other,
        };
        if wanted != part.format() {
            *part = published::with_planes(scope, part, wanted)?;
        }
    }
    let wanted = parts.first().map(Weights::format);
    if let Some((part, (scope, _))) = parts.iter().zip(all).find(|(part, _)| Some(part.format()) != wanted) {
        let wanted = wanted.map_or_else(String::new, |format| format.to_string());
        let first = all.first().map_or("", |(first, _)| first.prefix());
        return Err(scope.unsupported(format!("{} beside {wanted} of `{first}` in one stack", part.format())));
    }
    let (path, name) = all.first().map_or(("", ""), |(first, _)| (first.checkpoint().path(), first.prefix()));
    let w = Weights::stack(parts).map_err(|error| WeightError::shape(path, name, &error))?;
    Ok((w, orders))
}
