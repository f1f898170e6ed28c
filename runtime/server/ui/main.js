// The page: its frame, its views by the address's hash, the token.

import { render } from "./vendor/preact.js";
import { useEffect, useRef, useState } from "./vendor/hooks.js";
import { hasToken, path, reachable, setToken, wanted } from "./client.js";
import { Apps } from "./apps.js";
import { Events } from "./events.js";
import { Functions } from "./functions.js";
import { Models } from "./models.js";
import { Projections } from "./projections.js";
import { Streams } from "./streams.js";
import { html, link, usePolled, useStore } from "./parts.js";

const VIEWS = { functions: Functions, events: Events, streams: Streams, projections: Projections, models: Models };
const NAMES = { functions: "Functions", events: "Events", streams: "Streams", projections: "Projections", models: "Models" };

/** `#/apps/bank/streams/account-1/3`: an app, a view, and what the view makes of the rest. */
function address() {
  let segments;
  try {
    segments = location.hash.replace(/^#\/?/, "").split("/").filter(Boolean).map(decodeURIComponent);
  } catch {
    segments = [];
  }
  const [first, app, view = "functions", ...rest] = segments;
  return first === "apps" && app && Object.hasOwn(VIEWS, view) ? { app, view, rest } : { rest: [] };
}

function useAddress() {
  const [value, set] = useState(address);
  useEffect(() => {
    const changed = () => set(address());
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return value;
}

function SignIn({ why }) {
  const field = useRef();
  useEffect(() => field.current.focus(), []);
  const submit = (event) => {
    event.preventDefault();
    if (field.current.value.trim()) setToken(field.current.value.trim());
  };
  return html`<main class="sign-in" id="main">
    <h1>Ebbtide</h1>
    <form onSubmit=${submit}>
      <label for="token">Control token</label>
      <input id="token" type="password" ref=${field} autocomplete="off" spellcheck=${false}
        aria-describedby="token-help" aria-invalid=${why === "refused" ? "true" : undefined} />
      <p id="token-help" class=${why === "refused" ? "wrong" : "hint"} role=${why === "refused" ? "alert" : undefined}>
        ${why === "refused" ? "The node does not accept this token. " : ""}It is <code>control.token</code> in the node's settings, or <code>EBB_CONTROL_TOKEN</code>. It is kept for this tab only.
      </p>
      <button type="submit" class="main">Open</button>
    </form>
  </main>`;
}

function Header({ app, view, apps }) {
  const answers = useStore(reachable);
  const choose = (event) => (location.hash = event.target.value ? link("apps", event.target.value, view ?? "functions") : "#/");
  const names = apps?.map((entry) => entry.app) ?? [];
  return html`<header>
    <a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); document.querySelector("h1")?.focus(); }}>Skip to the content</a>
    <div class="bar">
      <a class="brand" href="#/"><img src="ui/icon.svg" alt="" width="26" height="26" />Ebbtide</a>
      ${apps && html`<label class="chooser"><span class="unseen">App</span>
        <select value=${app ?? ""} onChange=${choose}>
          <option value="">All apps</option>
          ${(app && !names.includes(app) ? [app, ...names] : names).map((name) => html`<option key=${name} value=${name}>${name}</option>`)}
        </select>
      </label>`}
      <span class=${`link-state ${answers ? "good" : "bad"}`} role="status">${answers ? "Connected" : "The node does not answer: trying again"}</span>
      ${hasToken() && html`<button type="button" class="quiet" onClick=${() => { setToken(null); location.reload(); }}>Sign out</button>`}
    </div>
    ${app && html`<nav aria-label=${`Views of ${app}`}>
      ${Object.keys(VIEWS).map((name) => html`<a key=${name} href=${link("apps", app, name)} aria-current=${name === view ? "page" : undefined}>${NAMES[name]}</a>`)}
    </nav>`}
  </header>`;
}

function Page() {
  const { app, view, rest } = useAddress();
  const { data, problem } = usePolled(path(["apps"]), 4000);
  const apps = data?.apps;
  const entry = apps?.find((one) => one.app === app);
  const heading = useRef();
  const first = useRef(true);
  const title = app ? `${NAMES[view]} · ${app}` : "Apps";
  useEffect(() => {
    document.title = `${title} · Ebbtide`;
    // Who reads with a screen reader is told where a link has led; nobody who has just come is moved.
    if (first.current) first.current = false;
    else heading.current?.focus({ preventScroll: true });
  }, [title]);
  const View = view && VIEWS[view];
  return html`<${Header} app=${app} view=${view} apps=${apps} />
    <main id="main">
      <h1 tabindex="-1" ref=${heading}>${app ? NAMES[view] : "Apps"}${app && html`<small> ${app}</small>`}</h1>
      ${!app && html`<${Apps} apps=${apps} problem=${problem} />`}
      ${app && apps && !entry && html`<div class="notice bad" role="alert"><p><strong>No app <code>${app}</code> is deployed on this node.</strong></p><p class="hint"><a href="#/">Look at the apps that are</a>.</p></div>`}
      ${app && entry?.unavailable && html`<div class="notice bad" role="alert"><p><strong>The app <code>${app}</code> is deployed, and can't be opened.</strong></p><p><code>${entry.unavailable}</code></p><p class="hint">The node's log says more: <code>ebb logs</code>. The other apps are served.</p></div>`}
      ${app && entry && !entry.unavailable && html`<${View} key=${`${app}/${view}`} app=${app} entry=${entry} rest=${rest} />`}
    </main>
    <footer><a href="ui/vendor/LICENSES.txt">Licences</a></footer>`;
}

function Root() {
  const why = useStore(wanted);
  return why ? html`<${SignIn} why=${why} />` : html`<${Page} />`;
}

document.body.replaceChildren();
render(html`<${Root} />`, document.body);
