//! The text tower of a dual encoder.

use ocelli_engine::weights::{Role, Scope};
use ocelli_engine::{Ctx, Error, Result, Stage, Tensor};
use ocelli_kernels::ops::Seen;
use ocelli_kernels::{DType, Weights};

use crate::layers::{Embedding, Linear, Unit, add_rows, gather_rows};
use crate::vision::{Vit, VitPlan};

/// Most tokens that go through the tower at once.
const MAX_TOKENS: usize = 4096;

/// Which token's row a text becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// The first one of these tokens; the first token of all where there is none.
    First(Vec<u32>),
    /// The first one of the largest id.
    Largest,
    /// The last one, whatever it is.
    Last,
}

impl Row {
    /// Its number.
    fn of(&self, text: &[u32]) -> usize {
        match self {
            Self::First(ids) => text.iter().position(|id| ids.contains(id)).unwrap_or(0),
            Self::Largest => {
                let most = text.iter().max();
                text.iter().position(|id| Some(id) == most).unwrap_or(0)
            }
            Self::Last => text.len().saturating_sub(1),
        }
    }
}

/// A text tower.
#[derive(Clone, Debug)]
pub struct TextPlan {
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Most tokens of a text.
    pub positions: usize,
    /// The layers.
    pub layers: VitPlan,
    /// Whether tokens see no later ones.
    pub causal: bool,
    /// Which row is taken.
    pub row: Row,
    /// Length of the vectors.
    pub out: usize,
    /// Whether the projection to them has a bias.
    pub bias: bool,
}

/// Embeddings of tokens and positions, the layers of a tower, one row of each text, a projection.
pub struct TextTower {
    plan: TextPlan,
    path: String,
    embedding: Embedding,
    positions: Embedding,
    layers: Vit,
    head: Linear,
    unit: Unit,
}

impl TextTower {
    /// Loads the tower below `scope`, and its projection at `head`.
    pub fn load(cx: &mut Ctx, scope: &Scope<'_>, head: &Scope<'_>, plan: TextPlan) -> Result<Self> {
        let d = plan.layers.d;
        let embeddings = scope.at("embeddings").role(Role::Embedding);
        let table = embeddings.at("position_embedding").take("weight", &[plan.positions, d])?;
        let table = Weights::dense(cx.stream().place_view(&table)?, None)?;
        let (scope, head) = (scope.role(Role::Text), head.role(Role::Text));
        Ok(Self {
            path: scope.prefix().to_owned(),
            embedding: Embedding::load(cx, &embeddings.at("token_embedding"), plan.vocab, d, 1.0)?,
            positions: Embedding::of(embeddings.path("position_embedding"), table),
            layers: Vit::layers(cx, &scope, plan.layers.clone())?,
            head: Linear::load(cx, &head, plan.out, d, plan.bias)?,
            unit: Unit::new(cx, head.prefix(), plan.out)?,
            plan,
        })
    }

    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &TextPlan {
        &self.plan
    }

    /// Unit vectors f32 `[texts, out]` of texts of 1 to `positions` tokens each.
    pub fn forward(&self, cx: &mut Ctx, texts: &[Vec<u32>]) -> Result<Tensor> {
        let out = cx.alloc(&[texts.len(), self.plan.out], DType::F32)?;
        let mut first = 0;
        while let Some(rest) = texts.get(first..).filter(|rest| !rest.is_empty()) {
            let mut tokens = 0;
            let fits = |text: &&Vec<u32>| {
                tokens += text.len();
                tokens <= MAX_TOKENS
            };
            let count = rest.iter().take_while(fits).count().max(1);
            let part = out.narrow(0, first, count)?;
            cx.scope(|cx| self.batch(cx, &rest[..count], &part))?;
            first += count;
        }
        Ok(out)
    }

    fn batch(&self, cx: &mut Ctx, texts: &[Vec<u32>], out: &Tensor) -> Result<()> {
        let (mut ids, mut places, mut starts, mut rows) = (Vec::new(), Vec::new(), vec![0], Vec::new());
        for text in texts {
            if text.is_empty() || text.len() > self.plan.positions {
                let what = format!("expected 1 to {} tokens, found {}", self.plan.positions, text.len());
                return Err(Error::Request(format!("text: {what}")));
            }
            rows.push((ids.len() + self.plan.row.of(text)) as i32);
            ids.extend(text.iter().map(|&id| id as i32));
            places.extend(0..text.len() as i32);
            starts.push(ids.len());
        }
        let ids = cx.upload(&[ids.len()], &ids)?;
        let h = self.embedding.forward(cx, &ids)?;
        let places = cx.upload(&[places.len()], &places)?;
        let positions = self.positions.forward(cx, &places)?;
        add_rows(cx, &self.path, &h, &positions)?;
        let seen = if self.plan.causal { Seen::Causal { window: 0 } } else { Seen::All };
        self.layers.through(cx, &h, &starts, seen)?;
        cx.stage(Stage::of("text_last_hidden"), &h)?;
        let rows = gather_rows(cx, &self.path, &h, &rows)?;
        let vectors = cx.alloc(out.shape(), DType::F32)?;
        self.head.write_to(cx, &rows, &vectors)?;
        self.unit.write_to(cx, &vectors, out)?;
        cx.stage(Stage::of("text_embeds"), out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_texts() {
        let text = [7, 9, 3, 9, 3];
        let table = [
            (Row::First(vec![3]), 2),
            (Row::First(vec![8, 9]), 1),
            (Row::First(vec![8]), 0),
            (Row::Largest, 1),
            (Row::Last, 4),
        ];
        for (row, expected) in table {
            assert_eq!(row.of(&text), expected, "{row:?}");
        }
    }
}
