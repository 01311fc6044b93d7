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

    /// Layers of the tower, ascending, whose results give features for the first layers of the decoder.
    fn deep(&self) -> &[usize] {
        &[]
    }

    /// As [`connect`](Self::connect), from the result of the deep layer `number` in that list.
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
    let mut outs = Vec::with_capacity(images.len());
    for (number, image) in images.iter().enumerate() {
        let mut rows = 0;
        for tile in &image.tiles {
            rows += connector.rows(tower.grid(tile.height, tile.width)?)?;
            tiles.push((number, tile));
        }
        rows += usize::from(image.assembly.is_some()) + connector.behind().map_or(0, |behind| behind.size(0));
        let deep = connector.deep().iter().map(|_| cx.alloc_owned(&[rows, d], cx.dtype()));
        let deep = deep.collect::<Result<_>>()?;
        outs.push(Filled { rows: cx.alloc_owned(&[rows, d], connector.dtype(cx))?, deep, filled: 0 });
    }
    let mut rest = &tiles[..];
    while let Some(&(number, first)) = rest.first() {
        let grid = tower.grid(first.height, first.width)?;
        let normalize = images[number].normalize;
        let most = (MAX_PATCHES / (grid.0 * grid.1)).max(1);
        let alike = |&&(other, tile): &&(usize, &Tile)| {
            (tile.height, tile.width) == (first.height, first.width) && images[other].normalize == normalize
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
                cx.measure(Phase::Connector, |cx| connector.connect(cx, &part(&hidden)?, grid, &to))?;
                if !assembled {
                    cx.stage(Stage::FEATURES, &to)?;
                }
                for (number, (x, out)) in deep.iter().zip(&out.deep).enumerate() {
                    let to = out.narrow(0, first, rows)?;
                    cx.measure(Phase::Connector, |cx| {
                        connector.connect_deep(cx, number, &part(x)?, grid, &to)
                    })?;
                    cx.stage(Stage::layer("deepstack_features", number), &to)?;
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
    for (Filled { rows, deep, filled }, image) in outs.into_iter().zip(images) {
        let rows = match &image.assembly {
            None => {
                if let Some(behind) = connector.behind() {
                    copy_rows(cx, "features", behind, &rows.narrow(0, filled, behind.size(0))?)?;
                }
                rows
            }
            Some(assembly) => assemble(cx, connector, &rows, filled, assembly)?,
        };
        all.push(Features { deep, ..Features::of_rows(rows) });
    }
    Ok(all)
}

/// The rows that `assembly` makes of the first `filled` ones of `rows`, which has room for one more; on memory of their own.
fn assemble(
    cx: &mut Ctx,
    connector: &dyn Connect,
    rows: &Tensor,
    filled: usize,
    assembly: &Assembly,
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
        cx.stage(Stage::FEATURES, &out)
    })?;
    Ok(out)
}

/// One buffer with the pixels of all tiles, which are of one size.
pub(crate) fn upload(cx: &mut Ctx, images: &[&PreparedImage], tiles: &[(usize, &Tile)]) -> Result<Tensor> {
    let Some((_, first)) = tiles.first() else { return Err(Error::Request("no tiles".into())) };
    let (height, width) = (first.height, first.width);
    let mut bytes = Vec::with_capacity(tiles.len() * height * width * 3);
    for (_, tile) in tiles {
        if let TilePixels::Rgb8(levels) = &tile.pixels {
            bytes.extend_from_slice(levels);
        }
    }
    if bytes.len() == tiles.len() * height * width * 3 {
        return cx.upload(&[tiles.len(), height, width, 3], &bytes);
    }
    let mut values = Vec::with_capacity(tiles.len() * height * width * 3);
    for &(number, tile) in tiles {
        tile.write_values(&images[number].normalize, &mut values);
    }
    cx.upload(&[tiles.len(), 3, height, width], &values)
}
