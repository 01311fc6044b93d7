//! Reports as pages: one HTML file each, with plots as SVG inside, that asks for nothing else.

use std::fmt::Write;

use plotters::coord::ranged1d::{NoDefaultFormatting, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::compare::{Compared, PHASES, Report};
use crate::record::{Record, Roof, spec_text};

/// Colours that stand out from white and from black.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0x3b, 0x7d, 0xd8),
    RGBColor(0xd9, 0x7a, 0x1e),
    RGBColor(0x2f, 0x9e, 0x5b),
    RGBColor(0xb8, 0x4a, 0xa3),
    RGBColor(0x8a, 0x7a, 0x2a),
    RGBColor(0xcf, 0x45, 0x45),
    RGBColor(0x2a, 0x96, 0xa8),
    RGBColor(0x84, 0x6a, 0xd6),
];

/// What is drawn in the page's own colours is black here; see the rules in [`page`].
pub(crate) const INK: RGBColor = RGBColor(0, 0, 0);
pub(crate) const FAINT: RGBColor = RGBColor(0x80, 0x80, 0x80);

pub(crate) const SIZE: (u32, u32) = (880, 420);

pub(crate) fn colour(number: usize) -> RGBColor {
    COLOURS[number % COLOURS.len()]
}

/// Text as HTML shows it.
pub(crate) fn plain(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A page of its own.
pub(crate) fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{0}</title>\n<style>\n\
         :root{{color-scheme:light dark}}\n\
         body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}\n\
         figure{{margin:1rem 0;overflow-x:auto}}figure svg{{max-width:100%;height:auto}}\n\
         svg text{{fill:CanvasText}}svg [stroke=\"#000000\"]{{stroke:CanvasText}}svg [fill=\"#000000\"]{{fill:CanvasText}}\n\
         table{{border-collapse:collapse;display:block;overflow-x:auto;font-variant-numeric:tabular-nums}}\n\
         th,td{{text-align:left;padding:.2rem .9rem .2rem 0;white-space:nowrap;border-bottom:1px solid color-mix(in srgb,CanvasText 15%,Canvas)}}\n\
         .key{{display:inline-block;width:.8em;height:.8em;margin:0 .4em 0 1em;border-radius:50%}}\n\
         .named{{white-space:nowrap}}\n\
         .past{{color:#cf4545;font-weight:600}}\n\
         </style></head>\n<body><h1>{0}</h1>\n{body}</body></html>\n",
        plain(title)
    )
}

/// A table with a head.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut text = String::from("<table><thead><tr>");
    head.iter().for_each(|cell| text += &format!("<th scope=\"col\">{}</th>", plain(cell)));
    text += "</tr></thead><tbody>\n";
    for row in rows {
        text += "<tr>";
        row.iter().for_each(|cell| text += &format!("<td>{}</td>", plain(cell)));
        text += "</tr>\n";
    }
    text + "</tbody></table>\n"
}

/// What the colours of a plot stand for.
pub(crate) fn key<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut text = String::from("<p>");
    for (number, name) in names.into_iter().enumerate() {
        let RGBColor(r, g, b) = colour(number);
        let _ = write!(
            text,
            "<span class=\"named\"><span class=\"key\" style=\"background:#{r:02x}{g:02x}{b:02x}\"></span>{}</span> ",
            plain(name)
        );
    }
    text + "</p>\n"
}

/// A plot with what it shows in words; nothing if it cannot be drawn.
pub(crate) fn figure(caption: &str, size: (u32, u32), draw: impl FnOnce(&Area<'_>) -> Drawn) -> String {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        if let Err(error) = draw(&area) {
            tracing::warn!("{caption}: not drawn: {error}");
            return String::new();
        }
    }
    // A label for those who do not see it.
    let label = format!("<svg role=\"img\" aria-label=\"{}\" ", plain(caption));
    format!(
        "<figure>{}<figcaption>{}</figcaption></figure>\n",
        svg.replacen("<svg ", &label, 1),
        plain(caption)
    )
}

pub(crate) type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
pub(crate) type Drawn = Result<(), Box<dyn std::error::Error>>;

/// The page of `ocelli bench kernels`: each kernel under the roofs, and the rows.
#[must_use]
pub fn kernels(record: &Record) -> String {
    let machine = &record.machine;
    let place = match &machine.adapter {
        Some(adapter) => format!("{}, {}, {}", adapter.name, adapter.api, adapter.driver),
        None => format!("{}, {}, {} threads", machine.cpu, machine.isa, machine.threads),
    };
    let mut ops: Vec<&str> = record.rows.iter().map(|row| &*row.op).collect();
    ops.sort_unstable();
    ops.dedup();
    let rows: Vec<Vec<String>> = record
        .rows
        .iter()
        .map(|row| {
            let amount = if row.roof == Roof::ReadGbps { row.bytes } else { row.flops };
            vec![
                row.op.clone(),
                spec_text(&row.spec),
                row.variant.clone() + if row.picked { "" } else { " (not picked)" },
                format!("{:.1}", row.median_us),
                format!("{:.1} to {:.1}", row.p20_us, row.p80_us),
                row.warm_us.map(|us| format!("{us:.1}")).unwrap_or_default(),
                format!("{:.1}", amount as f64 / row.median_us / 1e3),
                row.roof.label().to_owned(),
                format!("{:.0}%", 100.0 * row.fraction),
            ]
        })
        .collect();
    let words = record.disturbed.iter().flat_map(crate::machine::Disturbed::words);
    let disturbed: String = words.map(|text| format!("<p class=\"past\">{}</p>\n", plain(&text))).collect();
    let body = format!(
        "<p>{}</p>\n<p>{}</p>\n{disturbed}{}{}{}",
        plain(&place),
        plain(&record.roofs_text()),
        figure("Each kernel by what it computes for a byte, under what the machine can do", SIZE, |area| {
            roofline(area, record, &ops)
        }),
        key(ops.iter().copied()),
        table(
            &["op", "spec", "variant", "median us", "20% to 80%", "warm us", "G/s", "roof", "of roof"],
            &rows
        )
    );
    page("Kernels of Ocelli", &body)
}

/// Operations for a byte and 1e9 operations a second, of what has any.
fn points(record: &Record) -> Vec<(&str, f64, f64)> {
    let rows = record.rows.iter().filter(|row| row.flops > 0 && row.bytes > 0);
    rows.map(|row| (&*row.op, row.flops as f64 / row.bytes as f64, row.flops as f64 / row.median_us / 1e3))
        .collect()
}

fn roofline(area: &Area<'_>, record: &Record, ops: &[&str]) -> Drawn {
    const MATH: [Roof; 5] =
        [Roof::FmaF32Gflops, Roof::Int8Gops, Roof::Bf16Gflops, Roof::F16Gflops, Roof::MatrixF16Gflops];
    let all = points(record);
    let reads = record.roofs.read_gbps.max(1e-3);
    let roofs: Vec<(Roof, f64)> = MATH
        .into_iter()
        .filter_map(|roof| Some((roof, roof.of(&record.roofs, false)?)))
        .filter(|(_, rate)| *rate > 0.0)
        .collect();
    let top = roofs.iter().map(|(_, rate)| *rate).fold(reads, f64::max);
    let of = |value: fn(&(&str, f64, f64)) -> f64| all.iter().map(value).filter(|v| *v > 0.0);
    let left = of(|p| p.1).fold(0.25, f64::min) / 2.0;
    let right = of(|p| p.1).fold(top / reads, f64::max) * 4.0;
    let low = of(|p| p.2).fold(reads * left, f64::min) / 2.0;
    let high = of(|p| p.2).fold(top, f64::max) * 2.0;
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d((left..right).log_scale(), (low..high).log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(FAINT.mix(0.08))
        .bold_line_style(FAINT.mix(0.25))
        .axis_style(INK)
        .label_style(("sans-serif", 14))
        .x_desc("operations for a byte")
        .y_desc("1e9 operations a second")
        .x_label_formatter(&|v| short(*v))
        .y_label_formatter(&|v| short(*v))
        .draw()?;
    for (roof, rate) in &roofs {
        let knee = rate / reads;
        let line = [(left.max(low / reads), left.max(low / reads) * reads), (knee, *rate), (right, *rate)];
        chart.draw_series(LineSeries::new(line, INK))?;
        let place = (knee.max(left) * 1.1, rate * 1.04);
        let above = Pos::new(HPos::Left, VPos::Bottom);
        let style = TextStyle::from(("sans-serif", 13)).pos(above);
        chart.draw_series([Text::new(roof.label(), place, style)])?;
    }
    for (op, intensity, rate) in all {
        let number = ops.iter().position(|known| *known == op).unwrap_or(0);
        chart.draw_series([Circle::new((intensity, rate), 4, colour(number).mix(0.75).filled())])?;
    }
    area.present()?;
    Ok(())
}

/// Three digits, or a power of ten.
pub(crate) fn short(value: f64) -> String {
    if (0.01..100_000.0).contains(&value.abs()) {
        let digits = if value >= 10.0 { 0 } else { 2 };
        let text = format!("{value:.digits$}");
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
    } else {
        format!("{value:.0e}")
    }
}

/// The page of `ocelli compare`: stages side by side, drift by layer, and the figures.
#[must_use]
pub fn compared(report: &Report) -> String {
    let names = || report.candidates.iter().map(|run| &*run.name);
    let mut body = format!(
        "<p>{}: {} requests, answers of {} tokens, medians of {} runs.</p>\n",
        plain(&report.model),
        report.requests.len(),
        report.tokens,
        report.runs
    );
    let height = 110 + 44 * report.candidates.len() as u32;
    body += &figure("Milliseconds of each stage, all requests", (SIZE.0, height), |area| {
        bars(area, &report.candidates)
    });
    body += &key(PHASES.iter().map(|(_, name)| *name));
    let drifted: Vec<&Compared> = report.candidates.iter().filter(|run| run.drift.is_some()).collect();
    if !drifted.is_empty() {
        let from = names().next().unwrap_or_default().to_owned();
        body +=
            &figure(&format!("Relative error of each stage from {from}"), SIZE, |area| drift(area, &drifted));
        body += &key(drifted.iter().map(|run| &*run.name));
    }
    let speeds: Vec<Vec<String>> = report
        .candidates
        .iter()
        .map(|run| {
            let figure = |q: crate::model::Quantiles, digits: usize| {
                format!("{:.digits$} ({:.digits$} to {:.digits$})", q.median, q.p20, q.p80)
            };
            let megabytes = |bytes: u64| format!("{:.1}", bytes as f64 / 1e6);
            vec![
                run.name.clone(),
                run.device.clone(),
                figure(run.speed.tower_ms, 1),
                figure(run.speed.prefill_tokens_per_s, 0),
                figure(run.speed.decode_tokens_per_s, 1),
                figure(run.speed.first_token_ms, 1),
                figure(run.speed.requests_per_s, 2),
                megabytes(run.memory.weight_bytes),
                megabytes(run.memory.activation_bytes),
            ]
        })
        .collect();
    body += "<h2>Speed and memory</h2>\n";
    let head = [
        "",
        "device",
        "tower ms",
        "prefill tokens/s",
        "decode tokens/s",
        "first token ms",
        "requests/s",
        "weights MB",
        "activations MB",
    ];
    body += &table(&head, &speeds);
    body += "<h2>Drift</h2>\n";
    let drifts: Vec<Vec<String>> = drifted
        .iter()
        .filter_map(|run| Some((run, run.drift.as_ref()?)))
        .map(|(run, drift)| {
            let others = drift.first_different.iter().flatten();
            let first = others.clone().min().map_or_else(|| "none".to_owned(), ToString::to_string);
            let bound =
                |value: Option<f64>| value.map_or_else(|| "any".to_owned(), |value| format!("{value:.0e}"));
            vec![
                run.name.clone(),
                format!("{:.2e} of {}", drift.error, bound(drift.bounds.error)),
                format!("{:.2e} of {}", drift.kl, bound(drift.bounds.kl)),
                format!("{:.2}%", 100.0 * drift.top1),
                format!("{first}, in {} of {} requests", others.count(), report.requests.len()),
                if drift.past.is_empty() { "within".into() } else { drift.past.join("; ") },
            ]
        })
        .collect();
    body += &table(
        &["", "largest error", "divergence, nats", "likeliest alike", "first other token", "bounds"],
        &drifts,
    );
    if !report.pass {
        body += "<p class=\"past\">A run drifts past its bounds.</p>\n";
    }
    page("Backends of Ocelli compared", &body)
}

fn bars(area: &Area<'_>, runs: &[Compared]) -> Drawn {
    let total = |run: &Compared| PHASES.iter().map(|(phase, _)| run.speed.of(*phase).median).sum::<f64>();
    let most = runs.iter().map(total).fold(0.0, f64::max).max(1e-3) * 1.02;
    let count = runs.len();
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(170)
        .build_cartesian_2d(0.0..most, Rows(count))?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .light_line_style(FAINT.mix(0.08))
        .bold_line_style(FAINT.mix(0.25))
        .axis_style(INK)
        .label_style(("sans-serif", 14))
        .y_labels(count)
        .x_desc("milliseconds")
        .y_label_formatter(&|row| {
            let number = count.checked_sub(1).and_then(|last| last.checked_sub(row.floor() as usize));
            number.and_then(|number| runs.get(number)).map_or_else(String::new, |run| run.name.clone())
        })
        .draw()?;
    for (number, run) in runs.iter().enumerate() {
        let row = (count - 1 - number) as f64;
        let mut start = 0.0;
        for (place, (phase, _)) in PHASES.iter().enumerate() {
            let end = start + run.speed.of(*phase).median;
            let bar = [(start, row + 0.2), (end, row + 0.8)];
            chart.draw_series([Rectangle::new(bar, colour(place).filled())])?;
            start = end;
        }
    }
    area.present()?;
    Ok(())
}

/// An axis of so many rows, each with its label in its middle.
struct Rows(usize);

impl Ranged for Rows {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let length = f64::from(limit.1 - limit.0);
        limit.0 + (length * value / self.0.max(1) as f64).round() as i32
    }

    fn key_points<Hint: plotters::coord::ranged1d::KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        (0..self.0).map(|row| row as f64 + 0.5).collect()
    }

    fn range(&self) -> std::ops::Range<f64> {
        0.0..self.0 as f64
    }
}

impl ValueFormatter<f64> for Rows {
    fn format_ext(&self, value: &f64) -> String {
        value.to_string()
    }
}

fn drift(area: &Area<'_>, runs: &[&Compared]) -> Drawn {
    let stages = |run: &Compared| run.drift.as_ref().map(|drift| drift.stages.clone()).unwrap_or_default();
    let longest = runs.iter().map(|run| stages(run)).max_by_key(Vec::len).unwrap_or_default();
    // A stage without any error has no place on an axis of powers.
    let errors = runs.iter().flat_map(|run| stages(run)).map(|stage| stage.error);
    let errors: Vec<f64> = errors.filter(|error| error.is_finite() && *error > 0.0).collect();
    let (low, high) =
        errors.iter().fold((1f64, 1e-9f64), |(low, high), &error| (low.min(error), high.max(error)));
    let (low, high) = (low.min(high) / 2.0, high * 2.0);
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d(-0.5..longest.len() as f64 - 0.5, (low..high).log_scale())?;
    let name = |at: f64| match longest.get(at.round().max(0.0) as usize) {
        Some(stage) if (at - at.round()).abs() < 0.01 => match stage.layer {
            Some(layer) => format!("{} {layer}", initial(&stage.part)),
            None => initial(&stage.part),
        },
        _ => String::new(),
    };
    chart
        .configure_mesh()
        .light_line_style(FAINT.mix(0.08))
        .bold_line_style(FAINT.mix(0.25))
        .axis_style(INK)
        .label_style(("sans-serif", 13))
        .x_labels(12)
        .y_desc("relative error")
        .x_label_formatter(&|at| name(*at))
        .y_label_formatter(&|v| format!("{v:.0e}"))
        .draw()?;
    for (number, run) in runs.iter().enumerate() {
        let line: Vec<(f64, f64)> = stages(run)
            .iter()
            .enumerate()
            .map(|(at, stage)| (at as f64, stage.error.clamp(low, high)))
            .collect();
        chart.draw_series(LineSeries::new(line.clone(), colour(number).stroke_width(2)))?;
        chart.draw_series(line.into_iter().map(|at| Circle::new(at, 3, colour(number).filled())))?;
    }
    area.present()?;
    Ok(())
}

/// A stage's name in the space of a label.
fn initial(part: &str) -> String {
    match part {
        "vision_last_hidden" => "tower".into(),
        "image_features" => "features".into(),
        "inputs_embeds" => "embeds".into(),
        "text_layer" => "layer".into(),
        other => other.replace('_', " "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let found: Vec<String> = [0.25, 1.0, 12.4, 99_999.0, 1e7, 0.001].map(short).to_vec();
        assert_eq!(found, ["0.25", "1", "12", "99999", "1e7", "1e-3"]);
    }

    #[test]
    fn names_of_models_do_not_become_markup() {
        let report = Report {
            schema: crate::compare::SCHEMA.into(),
            model: "<script>alert(1)</script>".into(),
            requests: vec![],
            tokens: 1,
            runs: 1,
            pass: true,
            candidates: vec![],
            left_out: vec![],
        };
        assert!(!compared(&report).contains("<script"));
    }
}
