//! The store's goals beside what was measured: as a table for the terminal and as a picture (SVG) for the documents.
//!
//! Always holds: a figure of one system stands beside the other's; a bar to the right of the line is better than etcd,
//! whether more or less of the measure is good; the picture is readable on a light and on a dark background.

use std::fmt::Write as _;

/// What the ratio pintle/etcd of a measure has to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    pub fn met(self, ratio: f64) -> bool {
        match self {
            Self::AtLeast(goal) => ratio >= goal,
            Self::AtMost(goal) => ratio <= goal,
        }
    }

    /// How many times better than etcd a ratio is: above 1 is better, below is worse.
    fn advantage(self, ratio: f64) -> f64 {
        match self {
            Self::AtLeast(_) => ratio,
            Self::AtMost(_) => 1.0 / ratio,
        }
    }

    fn bound(self) -> f64 {
        match self {
            Self::AtLeast(goal) | Self::AtMost(goal) => goal,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(goal) => format!(">= {goal:.2}"),
            Self::AtMost(goal) => format!("<= {goal:.2}"),
        }
    }
}

/// A measure that has a goal.
#[derive(Clone, Debug)]
pub struct Line {
    pub label: String,
    pub ours: f64,
    pub theirs: f64,
    pub goal: Goal,
}

impl Line {
    /// Nothing when a figure is no figure: a ratio to zero says nothing.
    fn ratio(&self) -> Option<f64> {
        let ratio = self.ours / self.theirs;
        (ratio.is_finite() && ratio > 0.0).then_some(ratio)
    }
}

pub fn table(lines: &[Line]) -> String {
    let mut text = format!("{:<44} {:>10} {:>10} {:>7} {:>8}\n", "measure", "pintle", "etcd", "ratio", "goal");
    for line in lines {
        let (ratio, met) = match line.ratio() {
            Some(ratio) => (format!("{ratio:.2}"), if line.goal.met(ratio) { "met" } else { "missed" }),
            None => ("-".to_owned(), "not measured"),
        };
        let Line { label, ours, theirs, goal } = line;
        let _ = writeln!(text, "{label:<44} {ours:>10.2} {theirs:>10.2} {ratio:>7} {:>8}  {met}", goal.text());
    }
    text
}

/// Where bars may lie, in pixels.
const LEFT: f64 = 330.0;
const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 26.0;
/// Bars end at this many times better, or worse.
const MOST: f64 = 8.0;

/// The place of a factor on the axis, which is logarithmic: twice as good is as far from the middle as half as good.
fn place(factor: f64) -> f64 {
    LEFT + WIDTH * (1.0 + factor.clamp(1.0 / MOST, MOST).log2() / MOST.log2()) / 2.0
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

const STYLE: &str = "<style>text{font:12px sans-serif;fill:#222}.axis{stroke:#888}.met{fill:#2a8f4f}.missed{fill:#c8602a}\
    .goal{stroke:#222;stroke-width:2}@media(prefers-color-scheme:dark){text{fill:#ddd}.goal{stroke:#ddd}}</style>\n";

pub fn svg(title: &str, lines: &[Line]) -> String {
    #[allow(clippy::cast_precision_loss)] // a few dozen lines
    let bottom = 60.0 + HEIGHT * lines.len() as f64;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 900 {:.0}\" role=\"img\">\n{STYLE}\
         <text x=\"8\" y=\"18\">{}</text>\n\
         <text x=\"8\" y=\"38\">right of the line: better than etcd; stroke: the goal; figures: pintle / etcd</text>\n",
        bottom + 10.0,
        escape(title),
    );
    for (line, at) in lines.iter().zip(0_u32..) {
        let y = 50.0 + HEIGHT * f64::from(at);
        let _ = writeln!(text, "<text x=\"8\" y=\"{:.0}\">{}</text>", y + 16.0, escape(&line.label));
        let Some(ratio) = line.ratio() else {
            let _ = writeln!(text, "<text x=\"{LEFT}\" y=\"{:.0}\">not measured</text>", y + 16.0);
            continue;
        };
        let end = place(line.goal.advantage(ratio));
        let (from, width) = (end.min(place(1.0)), (end - place(1.0)).abs());
        let class = if line.goal.met(ratio) { "met" } else { "missed" };
        let goal = place(line.goal.advantage(line.goal.bound()));
        let _ = writeln!(
            text,
            "<rect class=\"{class}\" x=\"{from:.1}\" y=\"{:.0}\" width=\"{width:.1}\" height=\"16\"/>\
             <line class=\"goal\" x1=\"{goal:.1}\" x2=\"{goal:.1}\" y1=\"{y:.0}\" y2=\"{:.0}\"/>\
             <text x=\"{:.0}\" y=\"{:.0}\">{:.2} / {:.2} = {ratio:.2}</text>",
            y + 4.0,
            y + 24.0,
            LEFT + WIDTH + 10.0,
            y + 16.0,
            line.ours,
            line.theirs,
        );
    }
    let middle = place(1.0);
    let _ =
        writeln!(text, "<line class=\"axis\" x1=\"{middle}\" x2=\"{middle}\" y1=\"46\" y2=\"{bottom:.0}\"/>\n</svg>");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(ours: f64, theirs: f64, goal: Goal) -> Line {
        Line { label: "a < b".to_owned(), ours, theirs, goal }
    }

    #[test]
    fn a_goal_is_met_from_its_side() {
        let text = table(&[line(2.0, 1.0, Goal::AtLeast(2.0)), line(2.0, 1.0, Goal::AtMost(0.5))]);
        let ends: Vec<&str> = text.lines().skip(1).filter_map(|line| line.split_whitespace().last()).collect();
        assert_eq!(ends, ["met", "missed"], "{text}");
    }

    #[test]
    fn less_is_drawn_to_the_right_where_less_is_better() {
        assert!(place(Goal::AtMost(0.5).advantage(0.25)) > place(1.0));
        assert!(place(Goal::AtLeast(2.0).advantage(0.25)) < place(1.0));
        assert!((place(1e9) - (LEFT + WIDTH)).abs() < 1e-6);
    }

    #[test]
    fn a_picture_escapes_its_labels_and_says_what_was_not_measured() {
        let text = svg("t & u", &[line(1.0, 0.0, Goal::AtLeast(2.0)), line(3.0, 1.0, Goal::AtLeast(2.0))]);
        assert!(text.contains("a &lt; b") && text.contains("t &amp; u") && text.contains("not measured"), "{text}");
        assert_eq!(text.matches("<rect").count(), 1, "{text}");
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
    }
}
