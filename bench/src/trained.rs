//! The page of `ocelli train`: how a run went, step by step.

use plotters::prelude::*;

use crate::page::{Area, Drawn, FAINT, INK, SIZE, colour, figure, key, page, plain, short, table};

/// Figures of a step.
#[derive(Clone, Copy, Debug, Default)]
pub struct Step {
    /// Number, counted from 1.
    pub step: u64,
    /// Loss of its rows.
    pub loss: f64,
    /// Loss of the rows for validation, where it was computed.
    pub validation: Option<f64>,
    /// Share of them that were answered exactly, likewise.
    pub exact: Option<f64>,
    /// Learning rate.
    pub rate: f64,
    /// Norm of the gradient before it was clipped.
    pub norm: f64,
    /// Tokens a second.
    pub tokens_per_s: f64,
}

/// A line of a plot.
struct Line<'a> {
    name: &'a str,
    points: Vec<(f64, f64)>,
    /// Whether each point is to be seen: of lines with few.
    dots: bool,
}

impl<'a> Line<'a> {
    fn of(name: &'a str, steps: &[Step], value: impl Fn(&Step) -> Option<f64>, dots: bool) -> Self {
        let point = |step: &Step| Some((step.step as f64, value(step).filter(|value| value.is_finite())?));
        Self { name, points: steps.iter().filter_map(point).collect(), dots }
    }
}

/// Steps that a mean goes over: a fiftieth of them, so that its line is smooth.
fn smooth(steps: &[Step]) -> Vec<(f64, f64)> {
    let width = (steps.len() / 50).max(1);
    let mean = |some: &[Step]| some.iter().map(|step| step.loss).sum::<f64>() / some.len() as f64;
    (width..=steps.len()).map(|end| (steps[end - 1].step as f64, mean(&steps[end - width..end]))).collect()
}

/// The page of a run: `facts` are names with what they are.
#[must_use]
pub fn trained(title: &str, facts: &[(String, String)], steps: &[Step]) -> String {
    let rows: Vec<Vec<String>> =
        facts.iter().map(|(name, value)| vec![name.clone(), value.clone()]).collect();
    let mut body = table(&["", ""], &rows);
    let mean = if steps.len() >= 100 { smooth(steps) } else { Vec::new() };
    let losses = vec![
        Line::of("loss of a step", steps, |step| Some(step.loss), false),
        Line { name: "mean of the last steps", points: mean, dots: false },
        Line::of("validation", steps, |step| step.validation, true),
    ];
    let loss = "Loss by step";
    let plots: [(&str, &str, Vec<Line<'_>>); 5] = [
        (loss, "nats a token, or the mean of squares", losses),
        (
            "Share of the rows for validation that are answered exactly",
            "share",
            vec![Line::of("exact", steps, |step| step.exact, true)],
        ),
        ("Learning rate", "rate", vec![Line::of("rate", steps, |step| Some(step.rate), false)]),
        (
            "Norm of the gradient before it is clipped",
            "norm",
            vec![Line::of("norm", steps, |step| Some(step.norm), false)],
        ),
        (
            "Tokens a second",
            "tokens/s",
            vec![Line::of("tokens/s", steps, |step| Some(step.tokens_per_s), false)],
        ),
    ];
    for (caption, unit, lines) in &plots {
        if lines.iter().all(|line| line.points.is_empty()) {
            continue;
        }
        body += &figure(caption, (SIZE.0, if *caption == loss { SIZE.1 } else { SIZE.1 * 2 / 3 }), |area| {
            curves(area, unit, lines)
        });
        if lines.len() > 1 {
            body += &key(lines.iter().map(|line| line.name));
        }
    }
    if steps.is_empty() {
        body += &format!("<p>{}</p>\n", plain("No step was done."));
    }
    page(title, &body)
}

/// The ends of an axis that shows all values, with some room.
fn ends(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let (low, high) = (values.clone().fold(f64::INFINITY, f64::min), values.fold(0.0, f64::max));
    // From zero, unless all lies far above it.
    let low = if low > 0.5 * high { low - 0.1 * (high - low) } else { low.min(0.0) };
    let room = 0.05 * (high - low);
    if room > 0.0 {
        (low, high + room)
    } else {
        (low - 0.5 * low.abs() - 1e-9, high + 0.5 * high.abs() + 1e-9)
    }
}

fn curves(area: &Area<'_>, unit: &str, lines: &[Line<'_>]) -> Drawn {
    let points = || lines.iter().flat_map(|line| line.points.iter().copied());
    let first = points().map(|(x, _)| x).fold(f64::INFINITY, f64::min);
    let last = points().map(|(x, _)| x).fold(first + 1.0, f64::max);
    let (low, high) = ends(points().map(|(_, y)| y).collect::<Vec<_>>().into_iter());
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d(first..last, low..high)?;
    chart
        .configure_mesh()
        .light_line_style(FAINT.mix(0.08))
        .bold_line_style(FAINT.mix(0.25))
        .axis_style(INK)
        .label_style(("sans-serif", 14))
        .x_desc("step")
        .y_desc(unit)
        .x_label_formatter(&|v| if v.fract() == 0.0 { format!("{v:.0}") } else { String::new() })
        .y_label_formatter(&|v| short(*v))
        .draw()?;
    for (number, line) in lines.iter().enumerate() {
        let faint = number == 0 && lines.get(1).is_some_and(|second| !second.points.is_empty());
        let style = colour(number).mix(if faint { 0.4 } else { 1.0 }).stroke_width(2);
        chart.draw_series(LineSeries::new(line.points.iter().copied(), style))?;
        if line.dots || line.points.len() == 1 {
            let dots = line.points.iter().map(|&at| Circle::new(at, 3, colour(number).filled()));
            chart.draw_series(dots)?;
        }
    }
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64) -> Step {
        let loss = 3.0 / step as f64;
        let validation = step.is_multiple_of(10).then_some(loss + 0.2);
        Step { step, loss, validation, exact: None, rate: 1e-4, norm: 1.0, tokens_per_s: 900.0 }
    }

    #[test]
    fn each_figure_that_there_is_has_a_plot() {
        let steps: Vec<Step> = (1..=200).map(step).collect();
        let facts = [("model".to_owned(), "<b>demo</b>".to_owned())];
        let page = trained("Training", &facts, &steps);
        assert_eq!(page.matches("<svg ").count(), 4, "there is no share of exact answers");
        assert!(page.contains("&lt;b&gt;demo") && !page.contains("<b>demo"));
        for outside in ["http://", "https://", "src=", "@import", "url("] {
            let own = page.replace("http://www.w3.org/2000/svg", "");
            assert!(!own.contains(outside), "{outside}");
        }
        let exact = [Step { exact: Some(0.5), ..step(1) }];
        assert_eq!(trained("Training", &[], &exact).matches("<svg ").count(), 5);
        assert!(trained("Training", &[], &[]).contains("No step was done."));
    }

    #[test]
    fn means_are_of_the_last_steps() {
        let steps: Vec<Step> = (1..=100).map(|at| Step { loss: at as f64, ..step(at) }).collect();
        let means = smooth(&steps);
        assert_eq!((means.len(), means[0], means[98]), (99, (2.0, 1.5), (100.0, 99.5)));
    }

    #[test]
    fn axes_have_room() {
        let of = |values: &[f64]| ends(values.iter().copied());
        assert_eq!(of(&[0.0, 2.0]), (0.0, 2.1));
        let (low, high) = of(&[3.0, 3.0]);
        assert!(low < 3.0 && high > 3.0);
    }
}
