//! A replay's report for people: what was decided again, what differs in summary, then difference by difference.

use crate::output::{Align, Elapsed, Grouped, Palette, Table, printable};
use ebb_app::replay::{
    Difference, DifferenceKind, EventView, FieldChange, Isolation, OutcomeView, ReplayReport,
};
use serde_json::Value;
use std::fmt::Write as _;
use std::time::Duration;

/// Characters of one value on one line.
const VALUE: usize = 400;

/// The whole report.
pub(super) fn render(report: &ReplayReport, style: Palette) -> String {
    let mut parts = Vec::new();
    let mut table =
        Table::new([("command", Align::Left), ("decided again", Align::Right), ("different", Align::Right)]);
    for (command, summary) in &report.by_command {
        let (commands, different) = (Grouped(summary.commands), Grouped(summary.different));
        table.row([command.clone(), commands.to_string(), different.to_string()]);
    }
    parts.push(table.render(style));
    if !report.summary.is_empty() {
        parts.push(summary(report, style));
    }
    let shown = report.differences.len() as u64;
    parts.extend(report.differences.iter().map(|difference| render_difference(difference, style)));
    if report.different > shown {
        let rest = Grouped(report.different - shown);
        parts.push(style.faint(format_args!("{rest} more differences; --details N shows more")));
    }
    if report.summary.iter().any(|group| group.kind == DifferenceKind::NotDeterministic) {
        parts.push(format!(
            "{} a module decides otherwise than it did on the same history: look for what it keeps outside of the aggregate (a static, a cache), and for maps whose order is left to chance",
            style.hint("hint:")
        ));
    }
    parts.push(verdict(report, style));
    parts.join("\n\n")
}

fn summary(report: &ReplayReport, style: Palette) -> String {
    let mut table = Table::new([
        ("count", Align::Right),
        ("command", Align::Left),
        ("difference", Align::Left),
        ("what", Align::Left),
        ("first commit", Align::Right),
        ("last commit", Align::Right),
    ]);
    for group in &report.summary {
        table.row([
            Grouped(group.count).to_string(),
            format!("{}/{}", group.aggregate, group.command),
            kind(group.kind).to_owned(),
            group.what.clone(),
            group.first.commit.to_string(),
            group.last.commit.to_string(),
        ]);
    }
    let mut text = table.render(style);
    if report.not_summarised > 0 {
        let rest = Grouped(report.not_summarised);
        let _ = write!(text, "\n{}", style.faint(format_args!("{rest} more, in groups of their own")));
    }
    text
}

fn verdict(report: &ReplayReport, style: Palette) -> String {
    let elapsed = Elapsed(Duration::from_millis(report.elapsed_ms));
    let how = match report.isolation {
        Isolation::Both => "each alone and in shuffled company",
        Isolation::Shared => "in shuffled company",
        Isolation::Fresh => "each alone",
    };
    let verdict = if report.different == 0 {
        style.good(format_args!("no differences"))
    } else {
        let (different, streams) = (Grouped(report.different), Grouped(report.streams_affected));
        style.warning(format_args!("{different} different, in {streams} streams"))
    };
    let mut last =
        format!("{} commands decided again in {elapsed}, {how}: {verdict}", Grouped(report.commands));
    for (count, why) in skipped(report) {
        let _ = write!(last, "\n{}", style.faint(format_args!("{} {why}", Grouped(count))));
    }
    last
}

/// What was left out, and why.
pub(super) fn skipped(report: &ReplayReport) -> impl Iterator<Item = (u64, &'static str)> {
    let skipped = &report.skipped;
    [
        (skipped.without_body, "left out: recorded without the command's body (record-commands = false)"),
        (skipped.not_sampled, "left out: of streams that are not in the sample"),
        (skipped.other_aggregates, "left out: of other aggregates"),
        (skipped.without_command, "left out: recorded by the platform, not decided"),
    ]
    .into_iter()
    .filter(|(count, _)| *count > 0)
}

fn kind(kind: DifferenceKind) -> &'static str {
    match kind {
        DifferenceKind::NotDeterministic => "not deterministic",
        DifferenceKind::Failed => "fails",
        DifferenceKind::Rejected => "not taken",
        DifferenceKind::NowRefused => "now refused",
        DifferenceKind::NowAccepted => "now accepted",
        DifferenceKind::OtherRefusal => "other refusal",
        DifferenceKind::OtherEvents => "other events",
        DifferenceKind::OtherData => "other data",
        DifferenceKind::OtherBytes => "same JSON, other bytes",
    }
}

fn render_difference(difference: &Difference, style: Palette) -> String {
    let place = match difference.revision {
        Some(revision) => format!("at revision {revision}"),
        None => "in an empty stream".to_owned(),
    };
    let mut text = format!(
        "{}  {} {}  {}",
        style.strong(printable(&difference.place.stream)),
        printable(&difference.command),
        value(&difference.data),
        style.faint(format_args!(
            "commit {}, {place}, {}",
            difference.place.commit, difference.place.recorded_at
        )),
    );
    // Writing to a string does not fail.
    let _ = write!(text, "\n  {}", style.warning(kind(difference.kind)));
    let mut line = |mark: String, what: &str| {
        let _ = write!(text, "\n  {mark} {what}");
    };
    if is_by_field(difference) {
        line(style.faint("="), &names(&difference.recorded));
    } else {
        line(style.error("-"), &outcome(&difference.recorded));
        let company = if difference.replayed_alone.is_some() { "in company: " } else { "" };
        line(style.good("+"), &format!("{company}{}", outcome(&difference.replayed)));
        if let Some(alone) = &difference.replayed_alone {
            line(style.good("+"), &format!("alone: {}", outcome(alone)));
        }
    }
    for change in &difference.changes {
        let _ = write!(text, "\n      {}", field(change, &difference.recorded, style));
    }
    text
}

/// Whether what changed is said best by the fields that did.
fn is_by_field(difference: &Difference) -> bool {
    difference.replayed_alone.is_none()
        && !difference.changes.is_empty()
        && names(&difference.recorded) == names(&difference.replayed)
}

fn field(change: &FieldChange, recorded: &OutcomeView, style: Palette) -> String {
    let show = |value: &Option<Value>| value.as_ref().map_or_else(|| "nothing".to_owned(), self::value);
    let event = match (change.event, recorded) {
        (Some(index), OutcomeView::Events(events)) => events.get(index).map_or("", |event| &event.event_type),
        _ => "",
    };
    format!(
        "{}  {} -> {}",
        printable(&format!("{event}{}", change.path)),
        style.error(show(&change.recorded)),
        style.good(show(&change.replayed))
    )
}

fn names(outcome: &OutcomeView) -> String {
    match outcome {
        OutcomeView::Events(events) => {
            events.iter().map(|event| printable(&event.event_type)).collect::<Vec<_>>().join(", ")
        }
        OutcomeView::Refused { code, .. } => format!("refused {}", printable(code)),
        OutcomeView::Rejected(why) | OutcomeView::Failed(why) => printable(why),
    }
}

fn outcome(outcome: &OutcomeView) -> String {
    match outcome {
        OutcomeView::Events(events) if events.is_empty() => "nothing happened".to_owned(),
        OutcomeView::Events(events) => {
            let event =
                |event: &EventView| format!("{} {}", printable(&event.event_type), value(&event.data));
            events.iter().map(event).collect::<Vec<_>>().join(", ")
        }
        OutcomeView::Refused { code, message, details } => {
            let details = details.as_ref().map_or_else(String::new, |details| format!(" {}", value(details)));
            format!("refused {}: {}{details}", printable(code), printable(message))
        }
        OutcomeView::Rejected(why) => format!("not taken: {}", printable(why)),
        OutcomeView::Failed(why) => format!("failed: {}", printable(why)),
    }
}

/// A value on one line, cut where it is long: `--json` has more of it.
fn value(value: &Value) -> String {
    let text = printable(&value.to_string());
    match text.char_indices().nth(VALUE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn report(summary: &Value, differences: &Value) -> ReplayReport {
        serde_json::from_value(json!({
            "commands": 18259, "identical": 18241, "different": 18, "streams_affected": 18, "elapsed_ms": 412,
            "isolation": "both", "seed": 1, "sample": 1.0, "not_summarised": 0,
            "skipped": { "without_command": 0, "without_body": 3, "other_aggregates": 0, "not_sampled": 0 },
            "by_command": {
                "flight/depart": { "commands": 6064, "different": 18 },
                "flight/schedule": { "commands": 6099, "different": 0 }
            },
            "summary": summary, "differences": differences
        }))
        .unwrap()
    }

    fn difference(kind: &str, recorded: &Value, replayed: &Value, more: &Value) -> Value {
        let mut difference = json!({
            "kind": kind, "stream": "flight-MQ3944-JFK", "commit": 4101, "recorded_at": "2013-01-01T12:00:00Z",
            "revision": 0, "command": "depart", "command_id": "0190a0a0-0000-7000-8000-000000000000",
            "data": { "delay": 853 }, "recorded": recorded, "replayed": replayed, "changes": []
        });
        difference.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        difference
    }

    #[test]
    fn a_report_shows_the_summary_then_the_exact_differences() {
        let group = json!({
            "aggregate": "flight", "command": "depart", "kind": "now_refused", "count": 18,
            "what": "Departed -> refused crew_went_home",
            "first": { "stream": "flight-MQ3944-JFK", "commit": 4101, "recorded_at": "2013-01-01T12:00:00Z" },
            "last": { "stream": "flight-AA2019-LGA", "commit": 17345, "recorded_at": "2013-01-07T12:00:00Z" }
        });
        let departed = json!({ "events": [{ "type": "Departed", "data": { "delay": 853 } }] });
        let refused = json!({ "refused": { "code": "crew_went_home", "message": "after 240 minutes", "details": { "delay": 853 } } });
        let report =
            report(&json!([group]), &json!([difference("now_refused", &departed, &refused, &json!({}))]));
        insta::assert_snapshot!(render(&report, Palette(false)), @r#"
        command          decided again  different
        flight/depart            6,064         18
        flight/schedule          6,099          0

        count  command        difference   what                                first commit  last commit
           18  flight/depart  now refused  Departed -> refused crew_went_home          4101        17345

        flight-MQ3944-JFK  depart {"delay":853}  commit 4101, at revision 0, 2013-01-01T12:00:00.000000Z
          now refused
          - Departed {"delay":853}
          + refused crew_went_home: after 240 minutes {"delay":853}

        17 more differences; --details N shows more

        18,259 commands decided again in 412 ms, each alone and in shuffled company: 18 different, in 18 streams
        3 left out: recorded without the command's body (record-commands = false)
        "#);
    }

    #[test]
    fn events_that_differ_in_data_are_shown_field_by_field() {
        let event = |delay| json!({ "events": [{ "type": "Departed", "data": { "delay": delay } }] });
        let changes = json!({ "changes": [
            { "event": 0, "path": "/delay", "recorded": 853, "replayed": 800 },
            { "event": 0, "path": "/gate", "replayed": "\u{1b}[31m" }
        ] });
        let difference = difference("other_data", &event(853), &event(800), &changes);
        let difference = serde_json::from_value(difference).unwrap();
        insta::assert_snapshot!(render_difference(&difference, Palette(false)), @r#"
        flight-MQ3944-JFK  depart {"delay":853}  commit 4101, at revision 0, 2013-01-01T12:00:00.000000Z
          other data
          = Departed
              Departed/delay  853 -> 800
              Departed/gate  nothing -> "\u001b[31m"
        "#);
    }

    #[test]
    fn a_leak_shows_what_was_decided_then_in_company_and_alone() {
        let event = |number| json!({ "events": [{ "type": "Departed", "data": { "number": number } }] });
        let more = json!({ "replayed_alone": event(1) });
        let difference = difference("not_deterministic", &event(7), &event(9), &more);
        let difference = serde_json::from_value(difference).unwrap();
        insta::assert_snapshot!(render_difference(&difference, Palette(false)), @r#"
        flight-MQ3944-JFK  depart {"delay":853}  commit 4101, at revision 0, 2013-01-01T12:00:00.000000Z
          not deterministic
          - Departed {"number":7}
          + in company: Departed {"number":9}
          + alone: Departed {"number":1}
        "#);
    }
}
