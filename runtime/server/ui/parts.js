// What the views are made of: the template, hooks around the client, tables, JSON, numbers.

import { h } from "./vendor/preact.js";
import { useEffect, useState } from "./vendor/hooks.js";
import htm from "./vendor/htm.js";
import { poll } from "./client.js";

export const html = htm.bind(h);

/** Follows a store. */
export function useStore(store) {
  const [value, set] = useState(store.get());
  useEffect(() => {
    set(store.get());
    return store.follow(set);
  }, [store]);
  return value;
}

/** What a path says, asked again and again. What was there stays while the node is away. */
export function usePolled(path, interval = 2000) {
  const [answer, set] = useState({});
  useEffect(() => {
    set({});
    if (!path) return undefined;
    return poll(path, interval, (next) => set((before) => (next.problem ? { ...before, ...next } : { ...before, ...next, problem: undefined })));
  }, [path, interval]);
  return answer;
}

const whole = new Intl.NumberFormat("en");
export const count = (number) => (number === null || number === undefined ? "" : whole.format(number));

/** Microseconds, as people say them. */
export function duration(micros) {
  if (micros === null || micros === undefined) return "";
  for (const [unit, size] of [["s", 1e6], ["ms", 1e3]]) {
    if (micros >= size) return `${Number((micros / size).toPrecision(3))} ${unit}`;
  }
  return `${micros} µs`;
}

/** Bytes, as people say them. */
export function bytes(number) {
  for (const [unit, size] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) {
    if (number >= size) return `${(number / size).toFixed(number >= 10 * size ? 0 : 1)} ${unit}`;
  }
  return `${number} B`;
}

/** A time: the clock for today, else with its date; exact when it is pointed at. */
export function Time({ at }) {
  if (!at) return null;
  const date = new Date(at);
  const two = (number) => String(number).padStart(2, "0");
  const clock = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  const today = date.toDateString() === new Date().toDateString();
  return html`<time datetime=${at} title=${at}>${today ? clock : `${day} ${clock}`}</time>`;
}

/** A link into this page. */
export const link = (...segments) => "#/" + segments.map(encodeURIComponent).join("/");

/** What something is doing: a word, with a colour that never says more than the word. */
export const State = ({ kind, children }) => html`<span class=${`state ${kind}`}>${children}</span>`;

/** What the node says, with code between backticks. */
export const Said = ({ text }) => String(text ?? "").split(/`([^`]+)`/).map((part, at) => (at % 2 ? html`<code key=${at}>${part}</code>` : part));

/** An error, and what to do about it. */
export function Trouble({ problem }) {
  if (!problem) return null;
  // The header says that the node is away.
  if (problem.code === "unreachable" || problem.code === "unauthenticated") return null;
  return html`<div class="notice bad" role="alert">
    <p><strong>${problem.title || "Something went wrong"}:</strong> <${Said} text=${problem.message} />${/[.!?]$/.test(problem.message) ? "" : "."}</p>
    ${problem.document?.reason && html`<p><code>${problem.document.reason}</code></p>`}
    ${problem.hint && html`<p class="hint"><${Said} text=${problem.hint} /></p>`}
  </div>`;
}

/** Where there is nothing yet: what to do. */
export const Empty = ({ children }) => html`<div class="notice empty">${children}</div>`;

export const Loading = () => html`<p class="faint" role="status">Loading…</p>`;

/** A command to copy into a terminal. */
export const Command = ({ children }) => html`<pre class="command" tabindex="0"><code>${children}</code></pre>`;

/** A table; on a narrow screen each row becomes a card, so that the page never scrolls sideways. The roles say what it is
 * where the layout has taken that away. A column: `{ name, of: row => …, number, order, wide }`. */
export function Table({ caption, columns, rows, id, order, onOrder, hideCaption, rowClass }) {
  return html`<table role="table" class="cards">
    <caption class=${hideCaption ? "unseen" : ""}>${caption}</caption>
    <thead role="rowgroup"><tr role="row">${columns.map((column) => {
      const sorted = order && column.order === order;
      return html`<th role="columnheader" scope="col" key=${column.name} class=${column.number ? "number" : ""}
        aria-sort=${sorted ? (order.startsWith("-") ? "descending" : "ascending") : undefined}>
        ${column.order && onOrder
          ? html`<button type="button" class="sort" onClick=${() => onOrder(column.order)}>${column.name}<span aria-hidden="true">${sorted ? (order.startsWith("-") ? " ↓" : " ↑") : ""}</span></button>`
          : column.name}</th>`;
    })}</tr></thead>
    <tbody role="rowgroup">${rows.map((row) => html`<tr role="row" key=${id(row)} class=${rowClass?.(row) ?? ""}>
      ${columns.map((column, at) => {
        const of = { role: at === 0 ? "rowheader" : "cell", "data-name": column.name, class: `${column.number ? "number" : ""} ${column.class ?? ""}` };
        return at === 0
          ? html`<th scope="row" ...${of} key=${column.name}><span>${column.of(row)}</span></th>`
          : html`<td ...${of} key=${column.name}><span>${column.of(row)}</span></td>`;
      })}
    </tr>`)}</tbody>
  </table>`;
}

/** Lines of a JSON document, each marked with how it differs from another one: `same`, `new`, `old`. */
function lines(after, before, name, depth, out) {
  const isTree = (value) => value !== null && typeof value === "object";
  const prefix = name === undefined ? "" : `${JSON.stringify(name)}: `;
  const push = (text, mark) => out.push({ text: "  ".repeat(depth) + text, mark });
  if (isTree(after)) {
    const list = Array.isArray(after);
    const same = isTree(before) && Array.isArray(before) === list;
    const mark = before === undefined || !same ? "new" : "same";
    if (before !== undefined && !same) push(prefix + JSON.stringify(before), "old");
    const keys = Object.keys(after);
    if (keys.length === 0) {
      push(`${prefix}${list ? "[]" : "{}"}`, mark === "same" && Object.keys(before).length === 0 ? "same" : "new");
    } else push(prefix + (list ? "[" : "{"), mark);
    for (const key of keys) {
      const was = same && Object.hasOwn(before, key) ? before[key] : undefined;
      lines(after[key], was, list ? undefined : key, depth + 1, out);
    }
    if (same) {
      for (const key of Object.keys(before)) {
        if (!Object.hasOwn(after, key)) {
          out.push({ text: "  ".repeat(depth + 1) + (list ? "" : `${JSON.stringify(key)}: `) + JSON.stringify(before[key]), mark: "old" });
        }
      }
    }
    if (keys.length > 0) push(list ? "]" : "}", mark);
    return;
  }
  if (before !== undefined && before !== after) push(prefix + JSON.stringify(before), "old");
  push(prefix + JSON.stringify(after), before === undefined || before !== after ? "new" : "same");
}

const SIGNS = { same: " ", new: "+", old: "−" };

/** A JSON document on lines of its own; with `before`, what has changed since. */
export function Json({ value, before, label }) {
  const out = [];
  if (before === undefined) {
    for (const text of (JSON.stringify(value, null, 2) ?? "").split("\n")) out.push({ text, mark: "same" });
  } else lines(value, before, undefined, 0, out);
  const marked = before !== undefined;
  return html`<pre class="json" tabindex="0" role="group" aria-label=${label}>${out.map(({ text, mark }, at) =>
    html`<span key=${at} class=${mark}>${marked && `${SIGNS[mark]} `}${/^ */.exec(text)[0]}<span class="value">${text.trimStart()}</span>${"\n"}</span>`)}</pre>`;
}

/** An event's data: JSON, or that it is something else. */
export const dataOf = (event) => ("data" in event ? event.data : `${event.data_base64} (Base64)`);

/** A JSON document on one line, cut where it gets long. */
export function Brief({ value }) {
  const text = JSON.stringify(value) ?? "";
  return html`<code class="brief">${text.length > 160 ? `${text.slice(0, 160)}…` : text}</code>`;
}
