// Keeps the parts of a page marked data-live up to date, without moving what is being read:
// an event says that something changed, the page is fetched again, and only parts that differ are replaced.
const parts = () => [...document.querySelectorAll("[data-live][id]")];
let timer = null;

async function refresh() {
  timer = null;
  if (document.hidden) return;
  const answer = await fetch(location.href, { headers: { accept: "text/html" } });
  if (!answer.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of parts()) {
    const next = fresh.getElementById(part.id);
    if (next && next.innerHTML !== part.innerHTML && !part.contains(document.activeElement)) part.innerHTML = next.innerHTML;
  }
}

function soon() {
  timer ??= setTimeout(refresh, 500);
}

if (parts().length) {
  const batch = document.body.dataset.batch;
  const stream = new EventSource(batch ? `/live?batch=${batch}` : "/live");
  stream.addEventListener("change", soon);
  document.addEventListener("visibilitychange", () => document.hidden || soon());
}
