//! The live page at `/` of the admin API.
//!
//! Owns: one HTML document that polls `/config` and `/upstreams`. Does not own: the data (see
//! [`super::views`]).
#![forbid(unsafe_code)]

/// The page. Text from the API is set as text, never as markup.
pub const LIVE_PAGE: &str = r#"<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Blitz</title>
<style>
body { font: 14px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
:root { color-scheme: light dark; }
h1 { font-size: 1.3rem; } h2 { font-size: 1rem; margin-top: 1.5rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .2rem .6rem .2rem 0; border-bottom: 1px solid #8884; }
td { font-variant-numeric: tabular-nums; }
.bad { color: #c22; }
</style>
<h1>Blitz <span id="version"></span></h1>
<p id="state"></p>
<h2>Workers</h2>
<table id="workers"></table>
<h2>Endpoints</h2>
<table id="endpoints"></table>
<p><a href="/metrics">/metrics</a> <a href="/config">/config</a> <a href="/upstreams">/upstreams</a>
<a href="/connections">/connections</a> <a href="/healthz">/healthz</a> <a href="/readyz">/readyz</a></p>
<script>
const byId = id => document.getElementById(id);
function table(id, head, rows) {
  const row = (cells, kind, bad) => {
    const tr = document.createElement("tr");
    if (bad) tr.className = "bad";
    for (const cell of cells) {
      const td = document.createElement(kind);
      td.textContent = cell;
      tr.append(td);
    }
    return tr;
  };
  byId(id).replaceChildren(row(head, "th"), ...rows.map(([cells, bad]) => row(cells, "td", bad)));
}
async function refresh() {
  try {
    const get = async path => (await fetch(path)).json();
    const [config, upstreams] = await Promise.all(["/config", "/upstreams"].map(get));
    byId("version").textContent = config.version;
    const addresses = config.listeners.map(l => l.name + " on " + (l.bound || l.address)).join(", ");
    let state = config.state + ", generation " + config.generation + ", up " + config.uptime_s + " s; " + addresses;
    if (config.last_reload && !config.last_reload.ok) state += "; last reload refused: " + config.last_reload.message;
    byId("state").textContent = state;
    table("workers", ["worker", "pid", "state", "starts", "generation", "connections"],
      config.workers.map(w =>
        [[w.worker, w.pid, w.state, w.starts, w.generation, w.connections], w.state !== "serving"]));
    const rows = [];
    for (const upstream of upstreams) for (const endpoint of upstream.endpoints) {
      if (!endpoint.addresses.length)
        rows.push([[upstream.name, endpoint.endpoint, endpoint.lookup_failure || "no address", "", "", "", ""], true]);
      for (const a of endpoint.addresses) {
        const out = a.health.filter(h => !h.healthy).length;
        rows.push([[upstream.name, endpoint.endpoint, a.address, a.in_flight, a.requests, a.failures,
          out ? "out in " + out + " of " + a.health.length + " workers" : "healthy"], out > 0]);
      }
    }
    table("endpoints", ["upstream", "endpoint", "address", "in flight", "requests", "failures", "health"], rows);
  } catch (error) {
    byId("state").textContent = "no answer: " + error;
  }
}
refresh();
setInterval(refresh, 1000);
</script>
</html>
"#;
