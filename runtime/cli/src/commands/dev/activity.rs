//! What happens in an app, as its log has it: a line an event, a line a remembered refusal.

use crate::output::{Output, Palette, printable};
use ebb_app::app::App;
use ebb_domain::commit::Commit;
use ebb_domain::port::log::ReadLimits;
use std::sync::Arc;

/// Commits shown one by one at a time; more than that at once is an import, and is counted.
const BURST: usize = 20;

/// Shows commits from now on, until it is aborted.
pub(super) async fn show(output: Output, app: Arc<App>) {
    let mut durable = app.log().durable();
    let mut shown = durable.borrow_and_update().commit;
    while durable.changed().await.is_ok() {
        let end = durable.borrow_and_update().commit;
        let waiting = end.0.saturating_sub(shown.0);
        if waiting > BURST as u64 {
            output.note(output.note_style().faint(format_args!("… {waiting} commits")));
            shown = end;
            // A line for each fsync of an import would be as bad as a line for each of its events.
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            continue;
        }
        let limits = ReadLimits { items: BURST, bytes: 1 << 20 };
        match app.log().read_commits(shown, limits).await {
            Ok(commits) => {
                for commit in &commits {
                    shown = commit.header.number;
                    output.note(line(commit, output.note_style()));
                }
            }
            Err(error) => {
                output.always(format_args!("{} {error}", output.note_style().error("error:")));
                return;
            }
        }
    }
}

/// One commit.
fn line(commit: &Commit, style: Palette) -> String {
    let header = &commit.header;
    let command = header.command.as_ref().map_or("", |command| &command.name);
    let stream = style.strong(printable(header.stream.as_str()));
    let outcome = match &header.refusal {
        Some(refusal) => {
            let code = style.warning(format_args!("refused {}", printable(&refusal.code)));
            format!("{code}  {}", printable(&refusal.message))
        }
        None if commit.events.is_empty() => style.faint("nothing"),
        None => {
            let event = |event: &ebb_domain::event::StoredEvent| {
                let data =
                    event.json().map_or_else(|| "(not JSON)".to_owned(), |data| printable(&data.to_string()));
                format!("{} {data}", style.good(&event.event_type))
            };
            commit.events.iter().map(event).collect::<Vec<_>>().join("  ")
        }
    };
    format!("{stream}  {}  {outcome}", style.faint(printable(command)))
}
