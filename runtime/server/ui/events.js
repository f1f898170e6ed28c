// Events of an app, as they happen. The newest is at the top; a bounded number is kept.

import { useEffect, useRef, useState } from "./vendor/hooks.js";
import { ask, follow, insist, path } from "./client.js";
import { Brief, Command, count, dataOf, Empty, html, Json, link, Loading, State, Time, Trouble } from "./parts.js";

/** Events from before that are shown at first, and with each click for more. */
const PAGE = 50;
/** Positions that are looked through for certain types, and events of an answer at most. */
const WINDOW = 1000;
/** Events that are kept. */
const KEPT = 500;
/** How often the list is drawn at most while events rain, in milliseconds. */
const DRAWN = 250;

export function Events({ app, entry }) {
  const [types, setTypes] = useState("");
  const [draft, setDraft] = useState("");
  const [paused, setPaused] = useState(false);
  const [events, setEvents] = useState(null);
  const [waiting, setWaiting] = useState(0);
  const [state, setState] = useState({});
  const [oldest, setOldest] = useState(0);
  const [said, say] = useState("");
  const held = useRef([]);
  const isPaused = useRef(false);
  const redraw = useRef(() => {});
  // Where the log ends, about: what is from before then is shown first.
  const end = useRef(0);
  end.current = entry.position;

  useEffect(() => {
    setEvents(null);
    setWaiting(0);
    held.current = [];
    let timer, sayer, unsaid = 0;
    const draw = () => {
      timer = undefined;
      if (isPaused.current) return setWaiting(held.current.length);
      const news = held.current.splice(0).reverse();
      setWaiting(0);
      if (!news.length) return;
      setEvents((before) => {
        const all = [...news, ...(before ?? [])];
        if (all.length > KEPT) {
          all.length = KEPT;
          setOldest(all.at(-1).position - 1);
        }
        return all;
      });
    };
    const take = (news) => {
      held.current.push(...news);
      // What nobody will see any more is not kept while the list is paused.
      if (held.current.length > KEPT) held.current.splice(0, held.current.length - KEPT);
      timer ??= setTimeout(draw, DRAWN);
      unsaid += news.length;
      // A sentence now and then, not one an event.
      sayer ??= setTimeout(() => {
        say(`${count(unsaid)} new ${unsaid === 1 ? "event" : "events"}`);
        unsaid = 0;
        sayer = undefined;
      }, 5000);
    };
    const stop = new AbortController();
    let unfollow = () => {};
    const from = Math.max(0, end.current - (types ? WINDOW : PAGE));
    setOldest(from);
    // First what there is, so that an empty log is known to be empty, and then what comes.
    insist(path(["apps", app, "events"], { after: from, limit: WINDOW, types }), stop.signal, (problem) => setState({ problem }))
      .then(({ data, headers }) => {
        setState({});
        setEvents(data.events.reverse());
        const last = data.next ?? headers.get("ebb-position");
        unfollow = follow(path(["apps", app, "events"], { types }), last, take, (next) => setState(next));
      })
      .catch((problem) => {
        if (!stop.signal.aborted) throw problem;
      });
    redraw.current = draw;
    return () => {
      stop.abort();
      unfollow();
      clearTimeout(timer);
      clearTimeout(sayer);
    };
  }, [app, types]);

  const pause = () => {
    isPaused.current = !paused;
    setPaused(!paused);
    redraw.current();
  };
  const filter = (event) => {
    event.preventDefault();
    setTypes(draft.split(",").map((type) => type.trim()).filter(Boolean).join(","));
  };
  const older = async () => {
    const to = oldest, from = Math.max(0, to - (types ? WINDOW : PAGE));
    try {
      const { data } = await ask(path(["apps", app, "events"], { after: from, limit: WINDOW, types }));
      const behind = data.events.filter((event) => event.position <= to).reverse();
      setEvents((before) => [...before, ...behind]);
      setOldest(from);
    } catch (problem) {
      setState((before) => ({ ...before, problem }));
    }
  };

  return html`
    <${Trouble} problem=${state.problem} />
    <div class="tools">
      <form onSubmit=${filter}>
        <label>Types <input type="text" value=${draft} onInput=${(event) => setDraft(event.target.value)} placeholder="Opened, Deposited" spellcheck=${false} autocapitalize="off" /></label>
        <button type="submit">Filter</button>
      </form>
      <button type="button" onClick=${pause} aria-pressed=${paused}>${paused ? `Resume${waiting ? ` (${count(waiting)} waiting)` : ""}` : "Pause"}</button>
      <${State} kind=${paused ? "calm" : state.live ? "good" : "faint"}>${paused ? "paused" : state.live ? "live" : "connecting"}<//>
      <span class="unseen" role="status">${said}</span>
    </div>
    ${events === null && !state.problem && html`<${Loading} />`}
    ${events?.length === 0 && html`<${Empty}>
      <p><strong>${types ? "No event of these types among the latest." : "Nothing has happened in this app yet."}</strong> ${types ? "New ones appear here." : "Send it a command; its events appear here:"}</p>
      ${!types && html`<${Command}>${`ebb command ${entry.aggregates[0] ?? "AGGREGATE"} ID COMMAND '{}' --app ${app}`}<//>`}
    <//>`}
    ${events?.length > 0 && html`<ol class="events" aria-label="Events, the newest first">
      ${events.map((event) => html`<li key=${event.position}><details>
        <summary>
          <span class="position">${count(event.position)}</span>
          <span class="when"><${Time} at=${event.time} /></span>
          <span class="type">${event.type}</span>
          <span class="subject">${event.subject}</span>
          <${Brief} value=${dataOf(event)} />
        </summary>
        <p><a href=${link("apps", app, "streams", event.subject, String(event.sequence))}>State of ${event.subject} at revision ${count(event.sequence)}</a></p>
        <${Json} value=${event} label=${`Event ${event.position}`} />
      </details></li>`)}
    </ol>`}
    ${events && oldest > 0 && html`<p><button type="button" onClick=${older}>Older events</button></p>`}`;
}
