//! One chart of a comparison, as SVG: a pair of bars for each case, operations a second on a
//! logarithmic scale, drawn from the same medians as the table.

use anyhow::anyhow;
use plotters::prelude::*;

/// One case of a comparison, in operations a second.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pair {
    /// Name of the case, such as `put, 64 clients`.
    pub(crate) case: String,
    pub(crate) kv: f64,
    pub(crate) peer: f64,
}

const WIDTH: u32 = 860;
const ROW_HEIGHT: u32 = 46;
const LABEL_WIDTH: u32 = 190;
const KV_COLOR: RGBColor = RGBColor(0x1f, 0x6f, 0xb4);
const PEER_COLOR: RGBColor = RGBColor(0xb0, 0xb0, 0xb0);

/// Draws the pairs from top to bottom; returns the text of an SVG file.
///
/// # Errors
/// There is no pair, or one has no rate.
pub(crate) fn draw(title: &str, peer: &str, pairs: &[Pair]) -> anyhow::Result<String> {
    let rates = || pairs.iter().flat_map(|pair| [pair.kv, pair.peer]);
    if pairs.is_empty() || rates().any(|rate| !rate.is_finite() || rate < 1.0) {
        return Err(anyhow!("a chart needs cases, and a rate for each side of each"));
    }
    let smallest = rates().fold(f64::INFINITY, f64::min);
    let largest = rates().fold(0.0, f64::max);
    let axis = 10f64.powf(smallest.log10().floor())..largest * 3.0;
    let row_count = pairs.len();
    let height = ROW_HEIGHT * row_count as u32 + 100;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 20))
            .margin(10)
            .x_label_area_size(30)
            .y_label_area_size(LABEL_WIDTH)
            .build_cartesian_2d(axis.clone().log_scale(), 0.0..row_count as f64)?;
        let case_at = |row: &f64| {
            let place = (row_count as f64 - row).floor();
            pairs.get(place as usize).map_or_else(String::new, |pair| pair.case.clone())
        };
        chart
            .configure_mesh()
            .disable_y_mesh()
            .y_labels(0)
            .y_label_formatter(&case_at)
            .x_desc("operations a second, logarithmic")
            .draw()?;
        for (number, pair) in pairs.iter().enumerate() {
            let top = (row_count - number) as f64;
            for (name, rate, color, upper) in
                [("kv", pair.kv, KV_COLOR, top - 0.10), (peer, pair.peer, PEER_COLOR, top - 0.48)]
            {
                let lower = upper - 0.36;
                let bar = [(axis.start, lower), (rate, upper)];
                chart.draw_series([Rectangle::new(bar, color.filled())])?;
                let text = format!("{name} {}", rounded(rate));
                let at = (rate * 1.04, upper - 0.04);
                chart.draw_series([Text::new(text, at, ("sans-serif", 14))])?;
            }
            let at = (10, 48 + ROW_HEIGHT as i32 * number as i32 + 14);
            area.draw(&Text::new(pair.case.clone(), at, ("sans-serif", 15)))?;
        }
        area.present()?;
    }
    Ok(svg)
}

/// Three significant digits, with k for thousands.
fn rounded(rate: f64) -> String {
    match rate {
        100_000.0.. => format!("{:.0}k", rate / 1e3),
        10_000.0.. => format!("{:.1}k", rate / 1e3),
        1_000.0.. => format!("{:.2}k", rate / 1e3),
        _ => format!("{rate:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(case: &str, kv: f64, peer: f64) -> Pair {
        Pair { case: case.to_owned(), kv, peer }
    }

    #[test]
    fn a_chart_shows_each_case_and_both_rates() {
        let pairs = [pair("put, 1 client", 2_690.0, 1_404.0), pair("get", 440_000.0, 28_000.0)];
        let svg = draw("kv beside etcd", "etcd", &pairs).expect("it can be drawn");
        for text in ["put, 1 client", "kv 2.69k", "etcd 1.40k", "kv 440k", "etcd 28.0k"] {
            assert!(svg.contains(text), "{text} is not in {svg}");
        }
    }

    #[test]
    fn a_case_without_a_rate_is_refused() {
        assert!(draw("kv beside etcd", "etcd", &[]).is_err());
        assert!(draw("kv beside etcd", "etcd", &[pair("put", 1_000.0, 0.0)]).is_err());
    }
}
