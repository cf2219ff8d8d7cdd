//! The loss curve of a run as an SVG file.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

/// Points to draw; losses in nats per token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curve {
    pub train: Vec<(usize, f32)>,
    pub validation: Vec<(usize, f64)>,
}

impl Curve {
    /// Reads the curve back from a run's `metrics.jsonl`; lines that are not metrics are skipped.
    pub fn from_metrics(text: &str) -> Self {
        let mut curve = Self::default();
        for value in text
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        {
            let Some(step) = value["step"].as_u64() else {
                continue;
            };
            if let Some(loss) = value["train_loss"].as_f64() {
                curve.train.push((step as usize, loss as f32));
            }
            if let Some(loss) = value["val_loss"]
                .as_f64()
                .filter(|_| value["event"] == "validation")
            {
                curve.validation.push((step as usize, loss));
            }
        }
        curve
    }

    /// The drawing as SVG text.
    pub fn svg(&self, title: &str) -> Result<String> {
        let losses = || {
            self.train
                .iter()
                .map(|(_, l)| f64::from(*l))
                .chain(self.validation.iter().map(|(_, l)| *l))
                .filter(|l| l.is_finite())
        };
        let (low, high) = losses().fold((f64::MAX, f64::MIN), |(low, high), l| {
            (low.min(l), high.max(l))
        });
        let (low, high) = if low <= high {
            (low - 0.05, high + 0.05)
        } else {
            (0.0, 1.0)
        };
        let last = self
            .train
            .iter()
            .map(|(s, _)| *s)
            .chain(self.validation.iter().map(|(s, _)| *s))
            .max()
            .unwrap_or(1)
            .max(1);
        let mut text = String::new();
        {
            let area = SVGBackend::with_string(&mut text, (900, 480)).into_drawing_area();
            let fail = |error: String| anyhow!("drawing the loss curve: {error}");
            area.fill(&WHITE).map_err(|e| fail(e.to_string()))?;
            let mut chart = ChartBuilder::on(&area)
                .caption(title, ("sans-serif", 18))
                .margin(12)
                .x_label_area_size(36)
                .y_label_area_size(52)
                .build_cartesian_2d(0..last, low..high)
                .map_err(|e| fail(e.to_string()))?;
            chart
                .configure_mesh()
                .x_desc("step")
                .y_desc("loss (nats per token)")
                .draw()
                .map_err(|e| fail(e.to_string()))?;
            let train = self
                .train
                .iter()
                .map(|(s, l)| (*s, f64::from(*l)))
                .filter(|(_, l)| l.is_finite());
            chart
                .draw_series(LineSeries::new(train, &BLUE))
                .map_err(|e| fail(e.to_string()))?
                .label("training");
            let validation = self
                .validation
                .iter()
                .copied()
                .filter(|(_, l)| l.is_finite());
            chart
                .draw_series(validation.map(|point| Circle::new(point, 4, RED.filled())))
                .map_err(|e| fail(e.to_string()))?;
            area.present().map_err(|e| fail(e.to_string()))?;
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_from_metrics() {
        let text = "{\"event\":\"step\",\"step\":1,\"train_loss\":5.5}\nnot json\n{\"event\":\"step\",\"step\":2,\"train_loss\":null}\n{\"event\":\"validation\",\"step\":2,\"val_loss\":5.0}\n";
        let curve = Curve::from_metrics(text);
        assert_eq!(
            curve,
            Curve {
                train: vec![(1, 5.5)],
                validation: vec![(2, 5.0)]
            }
        );
        let svg = curve.svg("demo").unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("demo") && svg.contains("<circle"));
        Curve::default().svg("empty").unwrap();
    }
}
