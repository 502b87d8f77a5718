//! The store's goals beside what was measured: as a table for the terminal and as a picture (SVG) for the documents.
//!
//! Always holds: a figure of one system stands beside the other's; a bar to the right of the line is better than etcd,
//! whether more or less of the measure is good; the picture is readable on a light and on a dark background.

use std::fmt::Write as _;

use super::figures;

/// What a measure has to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// The ratio pintle/etcd.
    AtLeast(f64),
    AtMost(f64),
    /// This store's own figure, whatever etcd's is.
    OwnAtLeast(f64),
    OwnAtMost(f64),
}

impl Goal {
    pub fn met(self, ours: f64, theirs: f64) -> bool {
        match self {
            Self::AtLeast(goal) => ours / theirs >= goal,
            Self::AtMost(goal) => ours / theirs <= goal,
            Self::OwnAtLeast(goal) => ours >= goal,
            Self::OwnAtMost(goal) => ours <= goal,
        }
    }

    /// How many times better than etcd a ratio is: above 1 is better, below is worse.
    fn advantage(self, ratio: f64) -> f64 {
        match self {
            Self::AtLeast(_) | Self::OwnAtLeast(_) => ratio,
            Self::AtMost(_) | Self::OwnAtMost(_) => 1.0 / ratio,
        }
    }

    /// The ratio that would just do.
    fn bound(self, theirs: f64) -> f64 {
        match self {
            Self::AtLeast(goal) | Self::AtMost(goal) => goal,
            Self::OwnAtLeast(goal) | Self::OwnAtMost(goal) => goal / theirs,
        }
    }

    pub fn text(self) -> String {
        match self {
            Self::AtLeast(goal) => format!(">= {goal:.2}"),
            Self::AtMost(goal) => format!("<= {goal:.2}"),
            Self::OwnAtLeast(goal) => format!("own >= {goal:.1}"),
            Self::OwnAtMost(goal) => format!("own <= {goal:.1}"),
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
    fn ratio(&self) -> Option<f64> {
        figures::ratio(self.ours, self.theirs)
    }

    /// What is said of it: `met`, `missed`, or that a figure is no figure.
    pub fn verdict(&self) -> &'static str {
        match self.ratio() {
            None => "not measured",
            Some(_) if self.goal.met(self.ours, self.theirs) => "met",
            Some(_) => "missed",
        }
    }
}

pub fn table(lines: &[Line]) -> String {
    let mut text = format!("{:<64} {:>10} {:>10} {:>7} {:>10}\n", "goal", "pintle", "etcd", "ratio", "goal");
    for line in lines {
        let ratio = line.ratio().map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
        let Line { label, ours, theirs, goal } = line;
        let (goal, verdict) = (goal.text(), line.verdict());
        let _ = writeln!(text, "{label:<64} {ours:>10.2} {theirs:>10.2} {ratio:>7} {goal:>10}  {verdict}");
    }
    text
}

/// Where bars may lie, in pixels.
const LEFT: f64 = 430.0;
const WIDTH: f64 = 330.0;
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
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 960 {:.0}\" role=\"img\">\n{STYLE}\
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
        let class = line.verdict();
        let goal = place(line.goal.advantage(line.goal.bound(line.theirs)));
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
        let own = table(&[line(0.95, 0.5, Goal::OwnAtLeast(0.9)), line(1.2, 3.0, Goal::OwnAtMost(1.1))]);
        assert!(own.contains(" met") && own.contains(" missed"), "{own}");
        let ends: Vec<&str> = text.lines().skip(1).filter_map(|line| line.split_whitespace().last()).collect();
        assert_eq!(ends, ["met", "missed"], "{text}");
    }

    #[test]
    fn less_is_drawn_to_the_right_where_less_is_better() {
        assert!(place(Goal::AtMost(0.5).advantage(0.25)) > place(1.0));
        assert!(place(Goal::AtLeast(2.0).advantage(0.25)) < place(1.0));
        // A goal of our own lies where our figure would just do, beside etcd's.
        assert!((Goal::OwnAtMost(1.1).advantage(Goal::OwnAtMost(1.1).bound(2.2)) - 2.0).abs() < 1e-9);
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
