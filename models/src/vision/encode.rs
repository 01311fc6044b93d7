//! Pictures through a tower: tiles of one size together, a tensor for each picture.

use ocelli_engine::image::{Assembly, Pixels as TilePixels, PreparedImage, Tile};
use ocelli_engine::{Ctx, Error, Features, Phase, Result, Stage, Tensor};
use ocelli_kernels::ops::{GatherRows, Pointwise, ScatterRows};
use ocelli_kernels::{DType, Weights};

use super::{FastVit, Layout, Pixels, Vit};
use crate::layers::copy_rows;

/// Most patches that go through the tower at once: bounds the memory of activations, and is more than enough rows to
/// use each weight many times.
const MAX_PATCHES: usize = 2048;

/// What stands between tower and decoder.
pub trait Connect {
    /// Rows of features of a tile with that grid of patches. Errors if the grid does not fit.
    fn rows(&self, grid: (usize, usize)) -> Result<usize>;

    /// `x: [tiles * (extra + rows * cols), d_vision]  ->  out: [tiles * rows(grid), d_text]`.
    fn connect(&self, cx: &mut Ctx, x: &Tensor, grid: (usize, usize), out: &Tensor) -> Result<()>;

    /// The row `[1, d_text]` that ends a line of features, of models that have one.
    fn newline(&self) -> Option<&Tensor> {
        None
    }

    /// Rows `[rows, d_text]` behind the features of each picture, which tokens of their own stand for.
    fn behind(&self) -> Option<&Tensor> {
        None
    }

    /// Type of the features.
    fn dtype(&self, cx: &Ctx) -> DType {
        cx.dtype()
    }

    /// The order in which the tower's layers take the patches of a tile, and their windows; `None`: row by row.
    fn layout(&self, grid: (usize, usize)) -> Option<Layout> {
        let _ = grid;
        None
    }

    /// Layers of the tower, ascending, whose results are taken beside the tower's own.
    fn deep(&self) -> &[usize] {
        &[]
    }

    /// Which of [`deep`](Self::deep) the features that replace embeddings come from; `None`: from the tower's own result.
    fn first(&self) -> Option<usize> {
        None
    }

    /// For each of the first layers of the decoder, which of [`deep`](Self::deep) the features come from that are added to its result;
    /// `None`: it has no such.
    fn groups(&self) -> Vec<Option<usize>> {
        (0..self.deep().len()).map(Some).collect()
    }

    /// The number under which features are shown that are added to the result of the decoder's layer `number`.
    fn shown(&self, number: usize) -> usize {
        number
    }

    /// As [`connect`](Self::connect), features that are added to the result of the decoder's layer `number`.
    fn connect_deep(
        &self,
        cx: &mut Ctx,
        number: usize,
        x: &Tensor,
        grid: (usize, usize),
        out: &Tensor,
    ) -> Result<()> {
        let _ = number;
        self.connect(cx, x, grid, out)
    }
}

/// A tower whose pictures go through it one by one, and what stands between it and the decoder.
pub struct ByTile<C> {
    /// The tower.
    pub tower: FastVit,
    /// What is behind it.
    pub connector: C,
}

impl<C: Connect> ByTile<C> {
    /// Features of each picture, `[rows, d]`.
    pub fn encode(&self, cx: &mut Ctx, d: usize, images: &[&PreparedImage]) -> Result<Vec<Features>> {
        let mut all = Vec::with_capacity(images.len());
        for (number, image) in images.iter().enumerate() {
            let [tile] = &image.tiles[..] else {
                let found = image.tiles.len();
                return Err(Error::Request(format!("picture: expected one tile, found {found}")));
            };
            let (size, plan) = ((tile.height, tile.width), self.tower.plan());
            let grid = plan.grid(size);
            let rows = cx.alloc_owned(&[self.connector.rows(grid)?, d], cx.dtype())?;
            cx.scope(|cx| {
                let values = upload(cx, images, &[(number, tile)])?;
                let pixels = Pixels { values, mean: image.normalize.mean, std: image.normalize.std };
                let hidden = cx.alloc(&[grid.0 * grid.1, plan.d()], cx.dtype())?;
                cx.measure(Phase::Tower, |cx| self.tower.write_to(cx, &pixels, size, &hidden))?;
                cx.measure(Phase::Connector, |cx| self.connector.connect(cx, &hidden, grid, &rows))?;
                cx.stage(Stage::FEATURES, &rows)
            })?;
            cx.timings.tiles += 1;
            all.push(Features::of_rows(rows));
        }
        Ok(all)
    }
}

/// Features of a picture, and the rows that are there.
struct Filled {
    rows: Tensor,
    deep: Vec<Tensor>,
    filled: usize,
}

/// Features of each picture, `[image_tokens, d]` with `d` features a token, on memory of their own.
pub fn encode(
    cx: &mut Ctx,
    tower: &Vit,
    connector: &dyn Connect,
    d: usize,
    images: &[&PreparedImage],
) -> Result<Vec<Features>> {
    let mut tiles: Vec<(usize, &Tile)> = Vec::new();
    let groups = connector.groups();
    let mut outs = Vec::with_capacity(images.len());
    for (number, image) in images.iter().enumerate() {
        let mut rows = 0;
        for tile in &image.tiles {
            rows += connector.rows(tower.grid(tile.height, tile.width)?)?;
            tiles.push((number, tile));
        }
        rows += usize::from(image.assembly.is_some()) + connector.behind().map_or(0, |behind| behind.size(0));
        let deep = groups.iter().map(|from| cx.alloc_owned(&[from.map_or(0, |_| rows), d], cx.dtype()));
        let deep = deep.collect::<Result<_>>()?;
        outs.push(Filled { rows: cx.alloc_owned(&[rows, d], connector.dtype(cx))?, deep, filled: 0 });
    }
    let mut rest = &tiles[..];
    while let Some(&(number, first)) = rest.first() {
        let grid = tower.grid(first.height, first.width)?;
        let normalize = images[number].normalize;
        let most = (MAX_PATCHES / (grid.0 * grid.1)).max(1);
        let alike = |&&(other, tile): &&(usize, &Tile)| {
            let alike = |tile: &Tile| (tile.height, tile.width, tile.frames());
            alike(tile) == alike(first) && images[other].normalize == normalize
        };
        let count = rest.iter().take(most).take_while(alike).count();
        let (batch, after) = rest.split_at(count);
        cx.scope(|cx| {
            let values = upload(cx, images, batch)?;
            let pixels = Pixels { values, mean: normalize.mean, std: normalize.std };
            let layout = connector.layout(grid);
            let (hidden, deep) = cx.measure(Phase::Tower, |cx| {
                tower.forward_deep(cx, &pixels, batch.len(), grid, layout.as_ref(), connector.deep())
            })?;
            let per_tile = hidden.size(0) / batch.len();
            let mut row = 0;
            for same in batch.chunk_by(|a, b| a.0 == b.0) {
                let assembled = images[same[0].0].assembly.is_some();
                let out = &mut outs[same[0].0];
                let (first, rows) = (out.filled, same.len() * connector.rows(grid)?);
                let part = |x: &Tensor| x.narrow(0, row, same.len() * per_tile);
                let to = out.rows.narrow(0, first, rows)?;
                let from = connector.first().and_then(|number| deep.get(number)).unwrap_or(&hidden);
                cx.measure(Phase::Connector, |cx| connector.connect(cx, &part(from)?, grid, &to))?;
                if !assembled {
                    cx.stage(Stage::FEATURES, &to)?;
                }
                for (number, (from, out)) in groups.iter().zip(&out.deep).enumerate() {
                    let Some(x) = from.and_then(|from| deep.get(from)) else { continue };
                    let to = out.narrow(0, first, rows)?;
                    cx.measure(Phase::Connector, |cx| {
                        connector.connect_deep(cx, number, &part(x)?, grid, &to)
                    })?;
                    if !assembled {
                        cx.stage(deep_stage(connector, number), &to)?;
                    }
                }
                out.filled += rows;
                row += same.len() * per_tile;
            }
            Ok(())
        })?;
        cx.timings.tiles += count;
        rest = after;
    }
    let mut all = Vec::with_capacity(outs.len());
    for (Filled { rows, mut deep, filled }, image) in outs.into_iter().zip(images) {
        let rows = match &image.assembly {
            None => {
                if let Some(behind) = connector.behind() {
                    copy_rows(cx, "features", behind, &rows.narrow(0, filled, behind.size(0))?)?;
                }
                rows
            }
            Some(assembly) => {
                for (number, rows) in deep.iter_mut().enumerate().filter(|(_, rows)| rows.size(0) > 0) {
                    let stage = deep_stage(connector, number);
                    *rows = assemble(cx, connector, rows, filled, assembly, stage)?;
                }
                assemble(cx, connector, &rows, filled, assembly, Stage::FEATURES)?
            }
        };
        all.push(Features { deep, ..Features::of_rows(rows) });
    }
    Ok(all)
}

/// What features are shown as that are added to the result of the decoder's layer `number`.
fn deep_stage(connector: &dyn Connect, number: usize) -> Stage {
    Stage::layer("deepstack_features", connector.shown(number))
}

/// The rows that `assembly` makes of the first `filled` ones of `rows`, which has room for one more, shown as `stage`; on memory of
/// their own.
fn assemble(
    cx: &mut Ctx,
    connector: &dyn Connect,
    rows: &Tensor,
    filled: usize,
    assembly: &Assembly,
    stage: Stage,
) -> Result<Tensor> {
    const PATH: &str = "features";
    let (count, d) = (assembly.len(), rows.size(1));
    let out = cx.alloc_owned(&[count, d], cx.dtype())?;
    cx.scope(|cx| {
        if let Some(newline) = connector.newline() {
            let last = cx.upload(&[1], &[filled as i32])?;
            let op = ScatterRows { src: cx.view(newline)?, rows: cx.view(&last)?, out: cx.view(rows)? };
            cx.exec(PATH, &op)?;
        }
        for tap in 0..assembly.taps {
            let part = tap * count..(tap + 1) * count;
            let weights = assembly.weights.get(part.clone());
            let ids = cx.upload(&[count], assembly.rows.get(part).unwrap_or_default())?;
            let picked = match weights {
                Some(_) => cx.alloc(&[count, d], cx.dtype())?,
                None => out.clone(),
            };
            let table = Weights::dense(cx.view(rows)?, None)?;
            let op = GatherRows { table, ids: cx.view(&ids)?, scale: 1.0, out: cx.view(&picked)? };
            cx.exec(PATH, &op)?;
            if let Some(weights) = weights {
                let weights = cx.upload(&[count], weights)?;
                let out = cx.view(&out)?;
                let op = Pointwise {
                    row: Some(cx.view(&weights)?),
                    add: (tap > 0).then(|| out.clone()),
                    ..Pointwise::new(cx.view(&picked)?, out)
                };
                cx.exec(PATH, &op)?;
            }
        }
        cx.stage(stage, &out)
    })?;
    Ok(out)
}

/// One buffer with the pixels of all tiles, which are of one size and of as many frames: those of the first frames, then of the second.
pub(crate) fn upload(cx: &mut Ctx, images: &[&PreparedImage], tiles: &[(usize, &Tile)]) -> Result<Tensor> {
    let Some((_, first)) = tiles.first() else { return Err(Error::Request("no tiles".into())) };
    let (height, width, frames) = (first.height, first.width, first.frames());
    let (len, count) = (height * width * 3, tiles.len() * frames);
    let mut bytes = Vec::with_capacity(count * len);
    for frame in 0..frames {
        for (_, tile) in tiles {
            if let TilePixels::Rgb8(levels) = &tile.pixels {
                bytes.extend_from_slice(levels.get(frame * len..(frame + 1) * len).unwrap_or_default());
            }
        }
    }
    if bytes.len() == count * len {
        return cx.upload(&[count, height, width, 3], &bytes);
    }
    let mut values = Vec::with_capacity(count * len);
    for &(number, tile) in tiles {
        tile.write_values(&images[number].normalize, &mut values);
    }
    if frames > 1 {
        let by_tile = values;
        values = Vec::with_capacity(count * len);
        for (frame, tile) in (0..frames).flat_map(|frame| (0..tiles.len()).map(move |tile| (frame, tile))) {
            let from = (tile * frames + frame) * len;
            values.extend_from_slice(by_tile.get(from..from + len).unwrap_or_default());
        }
    }
    cx.upload(&[count, 3, height, width], &values)
}
